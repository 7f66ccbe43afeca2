"""Writes docs/API.md from the docstrings of the public names of lutllm.

python scripts/api_reference.py
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import lutllm  # noqa: E402
from lutllm.emulator import Generation, LutModel  # noqa: E402

OUT = ROOT / "docs" / "API.md"
_HEAD = """\
# Python API

Written by `python scripts/api_reference.py` from the docstrings. Every command is a function with
the names of the command line; results are plain values.
"""


def section(name: str, value: Any) -> str:
    """Heading, signature and docstring of a function or class, then its public methods."""
    parts = [f"## {name}", block(f"{name}{signature(value)}"), text(value)]
    if inspect.isclass(value) and not issubclass(value, Exception):
        for key, member in vars(value).items():
            if public_method(key, member, value):
                call = member.__func__ if isinstance(member, classmethod) else member
                parts += [block(f"{name}.{key}{signature(call)}"), text(call)]
    return "\n".join(part for part in parts if part)


def public_method(key: str, member: Any, owner: type) -> bool:
    if key.startswith("_"):
        return False
    call = member.__func__ if isinstance(member, classmethod) else member
    return inspect.isfunction(call) and bool(call.__doc__)


def signature(value: Any) -> str:
    """The signature on one line, or an argument a line where that would be long."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return ""
    found = inspect.signature(value)
    shown = []
    for parameter in found.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown.append(argument(parameter))
    returns = found.return_annotation
    end = "" if returns in (inspect.Signature.empty, None, "None") else f" -> {returns}"
    line = f"({', '.join(shown)}){end}"
    return line if len(line) < 70 else "(\n    " + ",\n    ".join(shown) + f",\n){end}"


def argument(parameter: inspect.Parameter) -> str:
    """name: type = default; annotations are text in this code base."""
    out = "**" * (parameter.kind is parameter.VAR_KEYWORD) + parameter.name
    if parameter.annotation is not parameter.empty:
        out += f": {parameter.annotation}"
    if parameter.default is not parameter.empty:
        value = parameter.default
        shown = f"{type(value).__name__}()" if dataclasses.is_dataclass(value) else repr(value)
        out += f" = {shown.replace('<factory>', '{}')}"
    return out


def block(code: str) -> str:
    return f"\n```python\n{code}\n```\n"


def text(value: Any) -> str:
    """The docstring; its indented parts are tables of names, kept as they are."""
    lines = (inspect.getdoc(value) or "").splitlines()
    if not lines:
        return ""
    summary, rest = lines[0], "\n".join(lines[1:]).strip("\n")
    return summary + (f"\n\n```text\n{rest}\n```" if rest else "")


def reference() -> str:
    names = [name for name in lutllm.__all__ if not name.startswith("__")]
    functions = [n for n in names if not inspect.isclass(getattr(lutllm, n))]
    classes = [n for n in names if n not in functions]
    parts = [section(f"lutllm.{n}", getattr(lutllm, n)) for n in functions]
    parts += [section("LutModel", LutModel), section("Generation", Generation)]
    parts += [section(f"lutllm.{n}", getattr(lutllm, n)) for n in classes]
    return _HEAD + "\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    OUT.write_text(reference(), encoding="utf-8")
    print(OUT)
