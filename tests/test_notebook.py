"""What notebooks show of a model and of a report."""

from __future__ import annotations

import html
import re

import lutllm
from lutllm.emulator import LutModel
from lutllm.notebook import facts_table
from tests.embedded import embedded_artifact


def test_a_model_shows_its_facts():
    model = LutModel.load(embedded_artifact(), threads=1)
    model.prefill([1, 2, 3])
    shown = model._repr_html_()
    assert "qwen3, 6 layers" in shown
    assert "3 of 512 tokens" in shown


def test_a_report_shows_its_page(tmp_path):
    found = lutllm.report(embedded_artifact(), tmp_path / "r.html")
    frame = re.search(r'srcdoc="([^"]*)"', found._repr_html_())
    assert frame is not None
    assert html.unescape(frame.group(1)) == (tmp_path / "r.html").read_text()
    assert found["artifacts"] == ["tiny-lut"]


def test_names_are_text():
    assert "&lt;b&gt;" in facts_table("<b>", [("a", "<i>")])
    assert "<i>" not in facts_table("<b>", [("a", "<i>")])
