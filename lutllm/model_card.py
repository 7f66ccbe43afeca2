"""README.md of an artifact: what it was made from, how, and what it is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_CARD = """\
---
library_name: lutllm
base_model: {quoted}
tags: [lutllm, vector-quantization, lookup-table]
---

# {name}

{source}, quantized to lookup tables by lutllm {lutllm_version}.

| | |
|---|---|
{rows}

Run it:

    lutllm generate {name} --prompt "Once upon a time"

Check it:

    lutllm verify {name}

`report.json` has the error of every layer beside round-to-nearest at the same number of bits.
"""


def write_model_card(folder: Path, report: dict[str, Any]) -> None:
    """Write README.md into the artifact `folder` from its report."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in _rows(report))
    source = Path(report["source"]).name if Path(report["source"]).exists() else report["source"]
    card = _CARD.format(
        source=source,
        quoted=json.dumps(source),
        name=folder.name,
        lutllm_version=report["lutllm_version"],
        rows=rows,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    setting = report["quantization"]
    rows = [(key, str(value)) for key, value in setting["default"].items()]
    for pattern, changes in setting["overrides"].items():
        rows.append((f"override `{pattern}`", ", ".join(f"{k} {v}" for k, v in changes.items())))
    rows.append(("embedding and head", setting.get("head", "source")))
    rows.append(("seed", str(setting["seed"])))
    rows.append(("bits per weight, everything counted", f"{report['bits_per_weight']:.2f}"))
    rows += [
        (f"perplexity {when}", f"{report[f'perplexity_{when}']:.3f}")
        for when in ("before", "after")
        if report.get(f"perplexity_{when}") is not None
    ]
    if evaluation := report.get("evaluation"):
        text = f"{evaluation['tokens']} tokens in windows of {evaluation['ctx']}"
        rows.append(("perplexity measured over", text))
    rows.append(("hash", f"`{report['artifact_hash']}`"))
    return rows
