"""Mixed precision: the number of weight stages of every linear, chosen by measured sensitivity."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from lutllm.checkpoint import Checkpoint
from lutllm.config import QuantConfig
from lutllm.errors import ConfigError
from quant.allocation import allocate
from quant.sensitivity import sensitivities

STAGES = (1, 2, 3)
#: Output error of a further weight stage, relative to that without it (16 centroids of 2 channels:
#: 0.066 with one stage, 0.0082 with two, mean of the gate and up projections of SmolLM2-135M).
ERROR_PER_STAGE = 0.12
#: Windows that sensitivity is measured on.
_WINDOWS = 4


def mixed_precision(
    checkpoint: Checkpoint,
    config: QuantConfig,
    bits: float,
    windows: np.ndarray,
    progress: bool = False,
) -> tuple[QuantConfig, dict[str, Any]]:
    """`config` with weight stages per linear, at most `bits` index bits a weight on average.

    windows: i64[N, ctx] of calibration text. Returns the configuration and a record for the
    report. Raises ConfigError when no choice of stages meets `bits`.
    """
    shapes = list(checkpoint.model.linears())
    sizes = np.array([s.in_features * s.out_features for s in shapes])
    luts = [config.for_linear(s.name) for s in shapes]
    per_stage = np.array([lut.code_bits / lut.vec_len for lut in luts])
    low, high = (
        float((sizes * per_stage * n).sum() / sizes.sum()) for n in (STAGES[0], STAGES[-1])
    )
    if not low <= bits <= high:
        raise ConfigError(
            f"bits is {bits}; with 1 to {STAGES[-1]} stages of these codebooks index bits are "
            f"{low:g} to {high:g}"
        )
    found = sensitivities(checkpoint, windows[:_WINDOWS], config.seed, progress)
    stages = np.array(STAGES)
    cost = np.array([found[s.name] for s in shapes])[:, None] * ERROR_PER_STAGE**stages
    # Prices in bits: vec_len divides the size of a padded row, not always that of the weight.
    price = np.rint(sizes[:, None] * per_stage[:, None] * stages).astype(np.int64)
    chosen = stages[allocate(cost, price, int(bits * sizes.sum()))]
    return _with_stages(config, [s.name for s in shapes], chosen), {
        "bits": bits,
        "index_bits": float((sizes * per_stage * chosen).sum() / sizes.sum()),
        "expected_divergence": float((cost[np.arange(len(chosen)), chosen - STAGES[0]]).sum()),
        "sensitivity": found,
    }


def _with_stages(config: QuantConfig, names: list[str], stages: np.ndarray) -> QuantConfig:
    """The most frequent number of stages as the default, an override for every other linear."""
    common = Counter(stages.tolist()).most_common(1)[0][0]
    default = dataclasses.replace(config.default, weight_stages=common)
    overrides = {k: dict(v) for k, v in config.overrides.items()}
    for fields in overrides.values():
        fields.pop("weight_stages", None)
    for name, count in zip(names, stages.tolist(), strict=True):
        if count != common:
            overrides.setdefault(name, {})["weight_stages"] = count
    kept = {k: v for k, v in overrides.items() if v}
    return dataclasses.replace(config, default=default, overrides=kept)
