"""The distillation stage of a quantization: trains the finished layers in their work folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lutllm.artifact import Artifact, linear_tensors
from lutllm.checkpoint import Checkpoint
from lutllm.config import QuantConfig
from lutllm.errors import ConfigError
from lutllm.tensorfile import write_tensors
from quant.distill import DistillConfig, Student, distill, trained_tensors
from quant.engine import TableEngine
from quant.workspace import Workspace

#: Windows kept back, spread over the text, to measure what distillation brought.
_HELD_OUT = 4
#: Upper limit of steps when only a time is given; the time decides.
_MANY_STEPS = 100_000


def learning_rate(config: QuantConfig, linears: list[str]) -> float:
    """A rate that helps at the model's index bits.

    Measured: coarse codes gain most from large steps; at 4 bits a rate of 2e-3 does harm.
    """
    bits = _index_bits(config, linears)
    if bits <= 2.5:
        return 3e-3
    return 1.5e-3 if bits <= 3.5 else 6e-4


def multiply_dtype(config: QuantConfig, linears: list[str]) -> torch.dtype | None:
    """None, what is fast, up to 4 index bits; above, rounding to bfloat16 is no longer small."""
    return None if _index_bits(config, linears) <= 4 else torch.float32


def _index_bits(config: QuantConfig, linears: list[str]) -> float:
    return float(np.mean([config.for_linear(name).index_bits_per_weight for name in linears]))


def refine(
    workspace: Workspace,
    checkpoint: Checkpoint,
    config: QuantConfig,
    windows: np.ndarray,
    minutes: float,
    engine: TableEngine | None,
    progress: bool,
) -> dict[str, Any]:
    """Distil the model in the work folder for about `minutes`, in place; returns a record.

    windows: i64[N, ctx], all of the calibration text. A killed run goes on from its saved state.
    """
    if workspace.refined is not None:
        _adopt(workspace)
        return workspace.refined
    if len(windows) <= _HELD_OUT:
        raise ConfigError(
            f"the calibration text has {len(windows)} windows, distillation needs more than "
            f"{_HELD_OUT}; give a longer text with --calib"
        )
    begun = time.monotonic()
    kept = (2 * np.arange(_HELD_OUT) + 1) * len(windows) // (2 * _HELD_OUT)
    names = [s.name for s in checkpoint.model.linears()]
    settings = DistillConfig(
        steps=_MANY_STEPS,
        learning_rate=learning_rate(config, names),
        seed=config.seed,
        dtype=multiply_dtype(config, names),
    )
    student, record = distill(
        Artifact.open(workspace.path),
        checkpoint,
        np.delete(windows, kept, axis=0),
        windows[kept],
        settings,
        state_path=workspace.state_file("distill.npz"),
        engine=engine,
        progress=progress,
        deadline=begun + 60 * minutes,
    )
    record |= {
        "learning_rate": settings.learning_rate,
        "windows_per_step": settings.windows,
        "seconds": round(time.monotonic() - begun, 1),
    }
    _write(workspace, student)
    workspace.finish_refinement(record)
    _adopt(workspace)
    return record


def _write(workspace: Workspace, student: Student) -> None:
    """The trained tensor files, in the state folder under their final names."""
    folder = workspace.state_file("refined")
    folder.mkdir(exist_ok=True)
    files = sorted(workspace.path.glob("*.safetensors"))
    for layer in range(len(student.layers)):
        linears, norms = trained_tensors(student, layer)
        tensors: dict[str, tuple[str, np.ndarray]] = {n: ("F32", v) for n, v in norms.items()}
        for linear in linears:
            tensors |= linear_tensors(linear)
        write_tensors(folder / files[layer].name, tensors)
    artifact = Artifact.open(workspace.path)
    rest = {
        name: artifact.stored(name)
        for name in artifact.float_tensors()
        if not name.startswith("model.layers.")
    }
    rest["model.norm.weight"] = ("F32", student.final_norm.detach().numpy())
    head = artifact.head_linear()
    if head is not None:
        rest |= linear_tensors(head)
    write_tensors(folder / files[-1].name, rest)


def _adopt(workspace: Workspace) -> None:
    """Move the trained files to their place; safe to repeat after a kill."""
    for file in sorted(Path(workspace.state_file("refined")).glob("*.safetensors")):
        os.replace(file, workspace.path / file.name)
