"""A finished artifact distilled further, into a new one: the last stage of a run by itself."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.artifact import TOKENIZER_FILES, Artifact, artifact_hash, read_json, write_json
from lutllm.checkpoint import Checkpoint
from lutllm.errors import ConfigError
from lutllm.hub_files import HUB_FILE
from lutllm.version import __version__
from quant.engine import TableEngine
from quant.pipeline import checkpoint_digest, report_facts
from quant.refine import Schedule, check_training_memory, check_windows, refine
from quant.resources import check_disk
from quant.workspace import Workspace, check_output, finished_report

#: Files of an artifact that training leaves as they are.
_KEPT = ("config.json", *TOKENIZER_FILES, HUB_FILE)
#: What the report goes on to say; accuracy and speed were of other tensors.
_INHERITED = ("calibration", "allocation", "tie_head", "layers")


def distill_further(
    artifact: Artifact,
    checkpoint: Checkpoint,
    out: Path,
    windows: np.ndarray,
    schedule: Schedule,
    *,
    engine: TableEngine | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train codebooks, scales and norms of `artifact` towards `checkpoint`; write the folder `out`.

    windows: i64[N, ctx], the calibration text; engine: see `quant.pipeline.quantize`. Returns the
    report, which is also written as report.json: what that of `artifact` says of its making, with
    "distillation" anew and "distilled_from", what was trained, on what and how long, and its own
    "distillation". A killed run is continued with resume=True; with a number of steps it gives
    the same bytes.
    """
    started = time.monotonic()
    check_output(out)
    if out.absolute() == artifact.path.absolute():
        raise ConfigError(f"{out}: is what is to be trained; give another folder with -o")
    check_windows(windows)
    # files twice, and the values and moments of training, saved beside the last ones
    check_disk(out, 5 * sum(artifact.tensor_bytes().values()), "distillation")
    check_training_memory(artifact.model, artifact.quant)
    before = _report_of(artifact.path)
    inputs = {
        "artifact": artifact_hash(artifact.path),
        "checkpoint": checkpoint_digest(checkpoint),
        "calibration text": hashlib.sha256(windows.tobytes()).hexdigest(),
        "schedule": vars(schedule),
        "lutllm version": __version__,
    }
    origin = {"inputs": inputs, "distillation": before.get("distillation")}
    if resume and (done := finished_report(out)).get("distilled_from") == origin:
        return done
    workspace = Workspace(out, inputs, resume)
    for name in _KEPT:
        if (artifact.path / name).is_file():
            shutil.copyfile(artifact.path / name, workspace.path / name)
    record = refine(
        artifact, workspace, checkpoint, windows, schedule, engine=engine, progress=progress
    )
    report = {key: before[key] for key in _INHERITED if key in before} | {
        **report_facts(workspace.path, checkpoint, artifact.quant),
        "distillation": record,
        "distilled_from": origin,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(workspace.path / "report.json", report)
    workspace.finish()
    return report


def _report_of(folder: Path) -> dict[str, Any]:
    file = folder / "report.json"
    return read_json(file) if file.is_file() else {}
