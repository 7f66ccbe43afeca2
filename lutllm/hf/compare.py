"""A loaded model beside the emulator: logits and flipped activation codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lutllm.artifact import Artifact
from lutllm.divergence import activation_codes, compare_runs
from lutllm.emulator.model import LutModel
from lutllm.hf.module import LutLinear


@torch.no_grad()
def run_ids(model: Any, ids: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits f32[T, V] of one sequence i64[T], and the input f32[T, D] of every linear by name."""
    inputs: dict[str, np.ndarray] = {}

    def keep(module: LutLinear, args: tuple[torch.Tensor, ...]) -> None:
        inputs[module.name] = args[0].reshape(-1, module.in_features).numpy().copy()

    hooks = [m.register_forward_pre_hook(keep) for m in model.modules() if isinstance(m, LutLinear)]
    try:
        logits = model(torch.from_numpy(np.asarray(ids, np.int64))[None]).logits[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return logits, inputs


def compare(model: Any, emulator: LutModel, ids: np.ndarray) -> dict[str, Any]:
    """What `lutllm.divergence.compare_runs` finds between `model` and the emulator."""
    logits, inputs = run_ids(model, ids)
    expected = emulator.capture_inputs(ids)
    return compare_runs(
        Artifact.open(emulator.path).linears(),
        (
            lambda linear: activation_codes(inputs[linear.name], linear),
            lambda linear: activation_codes(expected[linear.name], linear),
        ),
        (logits, emulator.logits(ids)),
    )
