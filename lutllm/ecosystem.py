"""The commands that meet other tools, as functions: ONNX, the HTML report, the hub.

With `lutllm.api` the only modules that join calibration, emulator and export. Heavy modules are
imported inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lutllm.artifact import Artifact
from lutllm.errors import ConfigError

Source = str | Path


def export_onnx(
    artifact: Source, out: Source, *, layer: str | None = None, check_tokens: int = 0
) -> dict[str, Any]:
    """Write an artifact as an ONNX model into `out`; stock onnxruntime runs it.

    layer         name of one LUT linear to write instead of the model
    check_tokens  also run so many tokens of our text through onnxruntime and compare with the
                  emulator; adds what `codegen.onnx.run.compare` returns
    """
    from codegen.onnx.export import export

    if layer is not None and check_tokens:
        raise ConfigError("only a whole model is checked; leave `layer` or `check_tokens` out")
    found = export(artifact, out, layer=layer)
    if check_tokens:
        found |= compare_onnx(artifact, out, tokens=check_tokens)
    return found


def compare_onnx(artifact: Source, folder: Source, *, tokens: int = 32) -> dict[str, Any]:
    """An ONNX export beside the emulator, on the first `tokens` tokens of our text."""
    from calib.text import default_text
    from codegen.onnx.run import Expected, compare
    from lutllm.emulator import LutModel

    model = LutModel.load(artifact)
    text = default_text()[: 64 * tokens]  # no tokenizer needs 64 characters a token
    ids = np.array(model.tokenizer.encode_prompt(text)[: min(tokens, model.context)], np.int64)
    inputs, sums = model.capture(ids)
    return compare(folder, Artifact.open(artifact), Expected(ids, model.logits(ids), inputs, sums))
