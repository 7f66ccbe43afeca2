"""How models and reports show themselves in a notebook (`_repr_html_`)."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any


def facts_table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A small HTML table of names and values."""
    body = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption><b>{html.escape(title)}</b></caption>{body}</table>"


class Page(dict[str, Any]):
    """What `lutllm.report` found; a notebook shows the page itself.

    text: the page, which also lies in the file self["file"].
    """

    def __init__(self, found: dict[str, Any], text: str):
        super().__init__(found)
        self.text = text

    def _repr_html_(self) -> str:
        # in a frame of its own, so that its style does not reach the notebook
        page = html.escape(self.text, quote=True)
        style = "width:100%;height:40rem;border:1px solid #ccc"
        return f'<iframe sandbox srcdoc="{page}" style="{style}"></iframe>'
