"""An exported model beside the emulator: differences of logits, flipped codes, integer sums."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from codegen.onnx.export import MODEL_FILE
from codegen.onnx.linear import add_taps
from lutllm import intmath
from lutllm.artifact import Artifact
from lutllm.errors import ArtifactError
from lutllm.lut_linear import LutLinear


@dataclass(frozen=True)
class Expected:
    """What the emulator gives for one sequence of T tokens.

    logits f32[T, V]; by linear name inputs f32[T, D] and sums i32[T, M].
    """

    ids: np.ndarray
    logits: np.ndarray
    inputs: dict[str, np.ndarray]
    sums: dict[str, np.ndarray]


def open_session(folder: str | Path, threads: int | None = None, taps: bool = False) -> Any:
    """An onnxruntime session of an export. taps: also output acc and codes of every linear."""
    import onnxruntime

    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise ArtifactError(f"{path}: file not found; give a folder of lutllm export --format onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # threads that poll while they wait slow a busy machine many times over
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    if not taps:
        return onnxruntime.InferenceSession(str(path), options)
    model = onnx.load(path, load_external_data=False)
    add_taps(model.graph)
    # beside the data file, which its tensors name relative to the model
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as file:
        file.write(model.SerializeToString())
        file.flush()
        return onnxruntime.InferenceSession(file.name, options)


def empty_cache(session: Any) -> dict[str, np.ndarray]:
    """The inputs past_key_values.* of a sequence that begins."""
    caches = [v for v in session.get_inputs() if v.name.startswith("past_key_values.")]
    return {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for v in caches}


def run_ids(session: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Every output of one sequence i64[T] by name."""
    names = [value.name for value in session.get_outputs()]
    inputs = {"input_ids": np.asarray(ids, np.int64)[None], **empty_cache(session)}
    return dict(zip(names, session.run(names, inputs), strict=True))


def compare(folder: str | Path, artifact: Artifact, expected: Expected) -> dict[str, Any]:
    """Run an export on the tokens of `expected` and count what differs.

    A code flips where a float step, which adds in another order, moves an activation over the
    border between two integers or centroids; everything after it may differ by quantization noise.
    `integer_mismatches` counts sums that differ although all codes of their token are equal:
    there must be none.
    """
    found = run_ids(open_session(folder, taps=True), expected.ids)
    flipped, total, mismatches, first = 0, 0, 0, None
    for shape in artifact.model.linears():
        codes = expected_codes(expected.inputs[shape.name], artifact.linear(shape))
        differs = found[f"{shape.name}.codes"] != codes
        tokens = differs.reshape(len(codes), -1).any(axis=1)
        wrong = found[f"{shape.name}.acc"] != expected.sums[shape.name]
        mismatches += int(wrong[~tokens].sum())
        flipped, total = flipped + int(differs.sum()), total + differs.size
        if first is None and tokens.any():
            first = {"linear": shape.name, "token": int(tokens.argmax())}
    logits = found["logits"][0]
    return {
        "tokens_compared": len(logits),
        "tokens_equal": int((logits.argmax(-1) == expected.logits.argmax(-1)).sum()),
        "max_abs_error": float(np.abs(logits - expected.logits).max()),
        "max_abs_logit": float(np.abs(expected.logits).max()),
        "integer_mismatches": mismatches,
        "codes_compared": total,
        "codes_flipped": flipped,
        "first_flip": first,
    }


def expected_codes(x: np.ndarray, linear: LutLinear) -> np.ndarray:
    """The output `codes` for inputs f32[T, D]: u8[T, Sa, P], or x_int i8[T, P, v]."""
    x_int, _ = intmath.quantize_activation(x, linear)
    if linear.act_codebook is None:
        return x_int.astype(np.int8)
    return intmath.search(x_int, linear.act_codebook)
