"""Distillation into a work folder: of the layers a quantization has just finished, or another's."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calib.matmul import fast_dtype
from lutllm.artifact import Artifact, linear_tensors
from lutllm.checkpoint import Checkpoint
from lutllm.config import QuantConfig
from lutllm.errors import ConfigError
from lutllm.lut_linear import array_specs
from lutllm.model_config import ModelConfig
from quant.distill import DistillConfig, Student, distill, trained_tensors
from quant.engine import TableEngine
from quant.resources import check_memory
from quant.shards import shard_name, write_index, write_shard
from quant.workspace import Workspace

#: Windows kept back, spread over the text, to measure what distillation brought.
_HELD_OUT = 4
#: Tokens of a window, at most.
_CTX = 512
#: Upper limit of steps when only a time is given; the time decides.
_MANY_STEPS = 100_000
#: Far beyond every rate that has helped (`usual_step`).
_MAX_RATE = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    minutes        about how long, or
    steps          exactly how often, the same bytes on a machine of any speed; the other is 0
    learning_rate  the largest of the run, relative to the size of a codebook; None for one that
                   helps at the model's index bits (`usual_step`)
    """

    minutes: float = 0
    steps: int = 0
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if (self.minutes > 0) == (self.steps > 0) or min(self.minutes, self.steps) < 0:
            raise ConfigError(
                f"distillation for {self.minutes:g} minutes and {self.steps} steps; give one of "
                "them, above 0"
            )
        if self.learning_rate is not None and not 0 < self.learning_rate <= _MAX_RATE:
            raise ConfigError(
                f"learning_rate is {self.learning_rate:g}; it must be above 0 and at most "
                f"{_MAX_RATE:g}, or be left out"
            )

    def deadline(self, begun: float) -> float | None:
        """When to stop, in the clock of `begun`, or None where steps decide."""
        return begun + 60 * self.minutes if self.minutes else None


def usual_step(config: QuantConfig, linears: list[str]) -> tuple[float, int]:
    """A rate that helps at the model's index bits, and windows of a step.

    Measured: coarse codes gain most from large steps, and from twice as many of half the tokens;
    at 4 bits a rate of 2e-3 does harm.
    """
    bits = _index_bits(config, linears)
    if bits <= 2.5:
        return 2e-3, 1
    return (1.5e-3, 2) if bits <= 3.5 else (6e-4, 2)


def multiply_dtype(config: QuantConfig, linears: list[str]) -> torch.dtype | None:
    """None, what is fast, up to some 4 index bits; above, rounding to bfloat16 is not small."""
    return None if _index_bits(config, linears) <= 4.5 else torch.float32


def _index_bits(config: QuantConfig, linears: list[str]) -> float:
    return float(np.mean([config.for_linear(name).index_bits_per_weight for name in linears]))


def refine(
    artifact: Artifact,
    workspace: Workspace,
    checkpoint: Checkpoint,
    windows: np.ndarray,
    schedule: Schedule,
    *,
    engine: TableEngine | None,
    progress: bool,
) -> dict[str, Any]:
    """Distil `artifact` and put its tensor files into the work folder; returns a record.

    artifact: may be the one in the work folder, whose files are then replaced. windows:
    i64[N, ctx], all of the calibration text. A killed run goes on from its saved state.
    """
    if workspace.refined is None:
        check_windows(windows)
        workspace.finish_refinement(
            _train(artifact, workspace, checkpoint, windows, schedule, engine, progress)
        )
    _adopt(workspace)
    write_index(workspace.path, artifact.model.num_hidden_layers + 1)
    assert workspace.refined is not None
    return workspace.refined


def check_windows(windows: np.ndarray) -> None:
    """ConfigError where a text is too short to train on some of it and measure on the rest."""
    if len(windows) <= _HELD_OUT:
        raise ConfigError(
            f"the calibration text has {len(windows)} windows, distillation needs more than "
            f"{_HELD_OUT}; give a longer text with --calib"
        )


def check_training_memory(model: ModelConfig, config: QuantConfig) -> None:
    """ResourceError where the memory cannot hold what distillation needs."""
    need = estimate_training_rss(model, config)
    check_memory(need, "distillation", "close other programs, or take a smaller model")


def estimate_training_rss(model: ModelConfig, config: QuantConfig) -> int:
    """Upper estimate of the peak resident memory of distillation in bytes.

    Libraries; the float model and the head of the quantized one, in the type that matrices are
    multiplied in; codes as bytes; codebooks, their gradients and moments, and copies at work;
    inputs and outputs of all linears for the tokens of a step, and what the rest of a layer keeps.
    """
    names = [shape.name for shape in model.linears()]
    wide = (multiply_dtype(config, names) or fast_dtype()).itemsize
    rows = model.vocab_size * model.hidden_size
    weights = codes = books = kept = 0
    for shape in model.linears():
        setting = config.for_linear(shape.name)
        specs = array_specs(setting, shape.in_features, shape.out_features)
        _, (stages, _, *book_shape), _ = specs["weight_codebook"]
        weights += shape.in_features * shape.out_features
        positions = setting.num_positions(shape.in_features)
        codes += stages * positions * shape.out_features
        books += stages * positions * int(np.prod(book_shape))
        kept += wide * shape.in_features + 4 * shape.out_features
    tokens = usual_step(config, names)[1] * _CTX
    floats = wide * (weights + 2 * rows) + 20 * books
    return (700 << 20) + floats + codes + int(2.5 * tokens * kept)


def _train(
    artifact: Artifact,
    workspace: Workspace,
    checkpoint: Checkpoint,
    windows: np.ndarray,
    schedule: Schedule,
    engine: TableEngine | None,
    progress: bool,
) -> dict[str, Any]:
    """Train, write the tensor files into the state folder and return the record."""
    begun = time.monotonic()
    kept = (2 * np.arange(_HELD_OUT) + 1) * len(windows) // (2 * _HELD_OUT)
    names = [s.name for s in artifact.model.linears()]
    rate, count = usual_step(artifact.quant, names)
    settings = DistillConfig(
        steps=schedule.steps or _MANY_STEPS,
        windows=count,
        learning_rate=schedule.learning_rate or rate,
        seed=artifact.quant.seed,
        dtype=multiply_dtype(artifact.quant, names),
    )
    student, record = distill(
        artifact,
        checkpoint,
        np.delete(windows, kept, axis=0),
        windows[kept],
        settings,
        state_path=workspace.state_file("distill.npz"),
        engine=engine,
        progress=progress,
        deadline=schedule.deadline(begun),
    )
    record |= {
        "learning_rate": settings.learning_rate,
        "windows_per_step": settings.windows,
        "seconds": round(time.monotonic() - begun, 1),
    }
    _write(artifact, workspace, student)
    return record


def _write(artifact: Artifact, workspace: Workspace, student: Student) -> None:
    """The trained tensor files, in the state folder under their final names."""
    folder = workspace.state_file("refined")
    folder.mkdir(exist_ok=True)
    count = len(student.layers) + 1
    for layer in range(len(student.layers)):
        linears, norms = trained_tensors(student, layer)
        tensors: dict[str, tuple[str, np.ndarray]] = {n: ("F32", v) for n, v in norms.items()}
        for linear in linears:
            tensors |= linear_tensors(linear)
        write_shard(folder / shard_name(layer, count), tensors)
    rest = {
        name: artifact.stored(name)
        for name in artifact.float_tensors()
        if not name.startswith("model.layers.")
    }
    rest["model.norm.weight"] = ("F32", student.final_norm.detach().numpy())
    head = artifact.head_linear()
    if head is not None:
        rest |= linear_tensors(head)
    write_shard(folder / shard_name(count - 1, count), rest)


def _adopt(workspace: Workspace) -> None:
    """Move the trained files to their place; safe to repeat after a kill."""
    for file in sorted(workspace.state_file("refined").glob("*.safetensors")):
        os.replace(file, workspace.path / file.name)
