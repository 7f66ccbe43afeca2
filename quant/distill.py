"""Distillation: codebooks, output scales and norms trained towards the float model's predictions.

The loss is the Kullback-Leibler divergence from the float model to the quantized one over the whole
vocabulary. Codes stay as they are; codebooks and, given an engine, table entries are rounded in
every forward pass, so what is trained is what will run.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib.decoder import FloatDecoder, LayerWeights, ResidentDecoder
from calib.matmul import fast_dtype
from calib.operators import rms_norm
from lutllm.artifact import Artifact
from lutllm.checkpoint import Checkpoint
from lutllm.config import QuantConfig
from lutllm.errors import ConfigError
from lutllm.lut_linear import LutLinear
from lutllm.model_config import LinearShape
from lutllm.progress import Progress
from quant.divergence import divergence
from quant.engine import TableEngine
from quant.head import stored_values
from quant.state import load_arrays, save_arrays
from quant.student import StudentLinear

#: Times that the divergence on held-out text is measured.
_MARKS = 8
#: Seconds between two saves of the state.
SAVE_INTERVAL_S = 60.0


@dataclass(frozen=True)
class DistillConfig:
    """steps of `windows` windows each; learning_rate is relative to the size of a codebook.

    dtype: what matrices are multiplied in, None for what is fast on this processor.

    warmup: share of the steps in which the rate rises; Adam's moments are rough at first.

    Norm weights and output scales learn at `scale_rate` times that rate, activation codebooks at
    `act_rate` times it.
    """

    steps: int = 100
    windows: int = 2
    learning_rate: float = 1e-3
    scale_rate: float = 0.3
    act_rate: float = 0.3
    warmup: float = 0.05
    seed: int = 0
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distillation: {name} is {getattr(self, name)}; at least 1")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to 2 per cent."""
        warm = min(1.0, (step + 1) / max(1.0, self.warmup * self.steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * warm * (0.98 * cosine + 0.02)


@dataclass
class Student:
    """The quantized model: trainable linears and norms per layer, embedding and head fixed.

    head: [vocab, hidden], the values that the artifact holds.
    """

    decoder: FloatDecoder
    config: QuantConfig
    layers: list[LayerWeights]
    linears: list[dict[str, StudentLinear]]
    final_norm: torch.Tensor
    head: torch.Tensor
    _norms: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        decoder: FloatDecoder,
        dtype: torch.dtype = torch.float32,
        engine: TableEngine | None = None,
    ) -> Student:
        """dtype: what matrices are multiplied in; engine: runs the tables, None for no rounding."""
        layers, linears, norms = [], [], []
        model = artifact.model

        def norm(name: str) -> torch.Tensor:
            value = torch.from_numpy(artifact.float32(name)).requires_grad_()
            norms.append(value)
            return value

        for i in range(model.num_hidden_layers):
            prefix = f"model.layers.{i}"
            shapes = model.layer_linears(i)
            qk = model.qk_norm
            layers.append(
                LayerWeights(
                    shapes,
                    {},
                    {},
                    norm(f"{prefix}.input_layernorm.weight"),
                    norm(f"{prefix}.post_attention_layernorm.weight"),
                    norm(f"{prefix}.self_attn.q_norm.weight") if qk else None,
                    norm(f"{prefix}.self_attn.k_norm.weight") if qk else None,
                )
            )
            linears.append(
                {s.name: StudentLinear(artifact.linear(s), dtype, engine) for s in shapes}
            )
        final = norm("model.norm.weight")
        head = torch.from_numpy(artifact.float32(artifact.head_name)).to(dtype)
        return cls(decoder, artifact.quant, layers, linears, final, head, norms)

    def hidden(self, ids: np.ndarray) -> torch.Tensor:
        """Normalised last hidden states f32[N, ctx, hidden]. ids: i64[N, ctx]."""
        hidden = stored_values(self.decoder.embed(ids), self.config)
        for weights, linears in zip(self.layers, self.linears, strict=True):

            def apply(
                shape: LinearShape,
                x: torch.Tensor,
                linears: dict[str, StudentLinear] = linears,
            ) -> torch.Tensor:
                return linears[shape.name].apply(x)

            hidden = self.decoder.run_layer(hidden, weights, apply)
        return rms_norm(hidden, self.final_norm, self.decoder.config.rms_norm_eps)

    def groups(self, config: DistillConfig) -> list[dict[str, Any]]:
        """Adam parameter groups; `factor` scales the rate to the size of the parameter."""
        linears = [s for layer in self.linears for s in layer.values()]
        slow = config.scale_rate
        act = [s.act_books for s in linears if s.act_books is not None]
        groups: list[dict[str, Any]] = [
            {"params": [s.books for s in linears], "factor": 1.0},
            *([{"params": act, "factor": config.act_rate}] if act else []),
            {"params": [s.gain for s in linears], "factor": slow},
        ]
        for value in self._norms:
            groups.append(
                {"params": [value], "factor": slow * float(value.detach().abs().median())}
            )
        return groups

    def tensors(self) -> list[torch.Tensor]:
        """Every trained tensor in a fixed order, for saving and resuming."""
        linears = [s for layer in self.linears for s in layer.values()]
        return [t for s in linears for t in s.parameters()] + self._norms


def distill(
    artifact: Artifact,
    checkpoint: Checkpoint,
    windows: np.ndarray,
    held_out: np.ndarray,
    config: DistillConfig,
    *,
    state_path: Path | None = None,
    engine: TableEngine | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> tuple[Student, dict[str, Any]]:
    """Train the artifact's codebooks, scales and norms.

    windows, held_out: i64[N, ctx]; engine: see `Student.from_artifact`. With `deadline`
    (time.monotonic()), the number of steps is what fits, judged after the first steps and twice
    more, and stated in the record. A run that was killed goes on from `state_path`. Returns the
    trained student and a record for the report.
    """
    dtype = config.dtype or fast_dtype()
    decoder = FloatDecoder(checkpoint, dtype)
    teacher = ResidentDecoder(decoder, dtype)
    student = Student.from_artifact(artifact, decoder, dtype, engine)
    optimizer = torch.optim.Adam(student.groups(config), lr=1.0, betas=(0.9, 0.95), fused=True)
    order = np.random.default_rng(config.seed).permutation(len(windows))
    record: dict[str, Any] = {"steps": config.steps, "curve": [], "held_out_curve": []}
    first = _restore(state_path, student, optimizer, record)
    if first == 0:
        record["held_out_curve"].append([0, _held_out(student, teacher, held_out)])
    limit = config.steps
    config = DistillConfig(**{**vars(config), "steps": record["steps"]})
    begun, saved = time.monotonic(), time.monotonic()
    step = first
    with Progress(config.steps, "distilling", progress, done=first) as bar:
        while step < config.steps:
            chosen = order[
                np.arange(step * config.windows, (step + 1) * config.windows) % len(order)
            ]
            loss = _train_step(student, teacher, windows[chosen], optimizer, config.rate(step))
            record["curve"].append(round(loss, 5))
            step += 1
            done = step - first
            if deadline is not None and (done in (1, 3) or step in _checks(config.steps)):
                pace = (time.monotonic() - begun) / done
                config = _fit_to_deadline(config, limit, step, pace, deadline)
                record["steps"] = config.steps
                bar.total = config.steps
            if step in _marks(config.steps):
                record["held_out_curve"].append([step, _held_out(student, teacher, held_out)])
            if state_path is not None and time.monotonic() - saved > SAVE_INTERVAL_S:
                _save(state_path, student, optimizer, record, step)
                saved = time.monotonic()
            bar.advance(note=f"KL {loss:.4f}")
    kept = record["held_out_curve"]
    record["held_out_before"], record["held_out_after"] = kept[0][1], kept[-1][1]
    return student, record


def _marks(steps: int) -> set[int]:
    """Steps behind which the divergence on held-out text is measured, the last among them."""
    return {steps * (i + 1) // _MARKS for i in range(_MARKS)}


def _checks(steps: int) -> tuple[int, int]:
    """Steps behind which the pace is measured again: other programs may have come or gone."""
    return steps // 8, steps // 3


def _fit_to_deadline(
    config: DistillConfig, limit: int, step: int, seconds: float, deadline: float
) -> DistillConfig:
    """As many steps as fit before the deadline at `seconds` a step, at most `limit`."""
    left = int((deadline - time.monotonic()) / max(seconds, 1e-6))
    steps = max(step, min(limit, step + left))
    return DistillConfig(**{**vars(config), "steps": steps})


def _train_step(
    student: Student,
    teacher: ResidentDecoder,
    ids: np.ndarray,
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> float:
    """One Adam step; returns the loss before it."""
    target = teacher.hidden(ids).flatten(0, 1)
    hidden = student.hidden(ids).flatten(0, 1)
    loss, gradient = divergence(hidden, target, (student.head, teacher.head), gradient=True)
    optimizer.zero_grad(set_to_none=True)
    hidden.backward(gradient)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.step()
    return loss


@torch.no_grad()
def _held_out(student: Student, teacher: ResidentDecoder, windows: np.ndarray) -> float:
    """Mean KL divergence on held-out windows."""
    losses = [
        divergence(
            student.hidden(part).flatten(0, 1),
            teacher.hidden(part).flatten(0, 1),
            (student.head, teacher.head),
            gradient=False,
        )[0]
        for part in np.split(windows, len(windows))
    ]
    return round(float(np.mean(losses)), 5)


def _save(
    path: Path,
    student: Student,
    optimizer: torch.optim.Optimizer,
    record: dict[str, Any],
    step: int,
) -> None:
    """Values, Adam moments and record, written beside the target and renamed."""
    arrays: dict[str, np.ndarray] = {"step": np.array(step)}
    for i, tensor in enumerate(student.tensors()):
        arrays[f"value_{i}"] = tensor.detach().numpy()
        state = optimizer.state[tensor]
        arrays[f"first_{i}"] = state["exp_avg"].numpy()
        arrays[f"second_{i}"] = state["exp_avg_sq"].numpy()
    arrays["curve"] = np.array(record["curve"])
    arrays["steps"] = np.array(record["steps"])
    arrays["held_out_curve"] = np.array(record["held_out_curve"])
    save_arrays(path, arrays)


def _restore(
    path: Path | None,
    student: Student,
    optimizer: torch.optim.Optimizer,
    record: dict[str, Any],
) -> int:
    """Load what `_save` wrote; returns the step to go on with, 0 where there is nothing."""
    saved = load_arrays(path)
    if saved is None:
        return 0
    step = int(saved["step"])
    for i, tensor in enumerate(student.tensors()):
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(saved[f"value_{i}"]))
        optimizer.state[tensor] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.from_numpy(saved[f"first_{i}"]),
            "exp_avg_sq": torch.from_numpy(saved[f"second_{i}"]),
        }
    record["curve"] = saved["curve"].tolist()
    record["steps"] = int(saved["steps"])
    record["held_out_curve"] = [[int(at), kl] for at, kl in saved["held_out_curve"].tolist()]
    return step


def trained_tensors(student: Student, layer: int) -> tuple[list[LutLinear], dict[str, np.ndarray]]:
    """The trained linears of a layer, and its norms by tensor name."""
    weights = student.layers[layer]
    prefix = f"model.layers.{layer}"
    norms = {
        f"{prefix}.input_layernorm.weight": weights.input_norm,
        f"{prefix}.post_attention_layernorm.weight": weights.post_attention_norm,
    }
    if weights.q_norm is not None and weights.k_norm is not None:
        norms[f"{prefix}.self_attn.q_norm.weight"] = weights.q_norm
        norms[f"{prefix}.self_attn.k_norm.weight"] = weights.k_norm
    linears = [s.trained() for s in student.linears[layer].values()]
    return linears, {name: value.detach().numpy() for name, value in norms.items()}
