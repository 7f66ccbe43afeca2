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
from lutllm.artifact import Artifact
from lutllm.divergence import activation_codes, compare_runs
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

    Returns what `lutllm.divergence.compare_runs` does, and integer_mismatches: sums that differ
    although all codes of their token are equal. There must be none.
    """
    found = run_ids(open_session(folder, taps=True), expected.ids)
    wanted: dict[str, np.ndarray] = {}

    def code(linear: LutLinear) -> np.ndarray:
        wanted[linear.name] = activation_codes(expected.inputs[linear.name], linear)
        return wanted[linear.name]

    report = compare_runs(
        artifact.linears(),
        (lambda linear: found[f"{linear.name}.codes"], code),
        (found["logits"][0], expected.logits),
    )
    mismatches = 0
    for name, codes in wanted.items():
        equal = (found[f"{name}.codes"] == codes).reshape(len(codes), -1).all(axis=1)
        wrong = found[f"{name}.acc"] != expected.sums[name]
        mismatches += int(wrong[equal].sum())
    return report | {"integer_mismatches": mismatches}
