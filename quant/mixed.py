"""Mixed precision: weight stages and codebooks of every linear, chosen by measured sensitivity."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutllm.checkpoint import Checkpoint
from lutllm.config import HEAD_LINEAR, LutConfig, QuantConfig
from lutllm.errors import ConfigError
from quant.allocation import allocate
from quant.sensitivity import sensitivities


@dataclass(frozen=True)
class Option:
    """A way to code weights, and the output error it leaves, relative to the output's variation."""

    weight_stages: int
    weight_centroids: int
    error: float

    def fields(self) -> dict[str, Any]:
        return {"weight_stages": self.weight_stages, "weight_centroids": self.weight_centroids}


#: For vectors of two; all codebooks fit a byte shuffle. Errors are means over gate and up
#: projections of SmolLM2-135M, 16k calibration tokens: 30 of them with two stages, 21 with one
#: (those that a mixed run gave one stage). That of three stages is not measured; it takes the
#: step from one to two again.
OPTIONS = (
    Option(1, 16, 0.067),
    Option(2, 8, 0.037),
    Option(2, 16, 0.010),
    Option(3, 16, 0.0015),
)
#: Windows that sensitivity is measured on.
_WINDOWS = 4


def mixed_precision(
    checkpoint: Checkpoint,
    config: QuantConfig,
    bits: float,
    windows: np.ndarray,
    progress: bool = False,
) -> tuple[QuantConfig, dict[str, Any]]:
    """`config` with one of OPTIONS per linear, at most `bits` index bits a weight on average.

    windows: i64[N, ctx] of calibration text. Returns the configuration and a record for the
    report. Raises ConfigError when no choice meets `bits`, or vec_len is not 2.
    """
    shapes = list(checkpoint.model.linears())
    sizes = np.array([s.in_features * s.out_features for s in shapes])
    luts = [_coded(config.default, option) for option in OPTIONS]
    per_weight = [lut.index_bits_per_weight for lut in luts]
    if not min(per_weight) <= bits <= max(per_weight):
        raise ConfigError(
            f"bits is {bits}; index bits can be {min(per_weight):g} to {max(per_weight):g}"
        )
    if any(config.for_linear(s.name).vec_len != 2 for s in shapes):
        raise ConfigError("bits are chosen for vectors of two; leave vec_len at 2")
    found = sensitivities(checkpoint, windows[:_WINDOWS], config.seed, progress)
    cost = np.outer([found[s.name] for s in shapes], [option.error for option in OPTIONS])
    price = np.outer(sizes, [round(2 * b) for b in per_weight])  # in half bits, to be whole
    chosen = allocate(cost, price, int(2 * bits * sizes.sum()))
    rows = np.arange(len(shapes))
    return _with_options(config, [s.name for s in shapes], [OPTIONS[i] for i in chosen]), {
        "bits": bits,
        "index_bits": float(price[rows, chosen].sum() / (2 * sizes.sum())),
        "expected_divergence": float(cost[rows, chosen].sum()),
        "sensitivity": found,
    }


def _coded(lut: LutConfig, option: Option) -> LutConfig:
    return dataclasses.replace(lut, vec_len=2, **option.fields())


def _with_options(config: QuantConfig, names: list[str], options: list[Option]) -> QuantConfig:
    """The most frequent option as the default, overrides for the other linears."""
    common = Counter(options).most_common(1)[0][0]
    default = _coded(config.default, common)
    overrides = {k: dict(v) for k, v in config.overrides.items()}
    for pattern, fields in overrides.items():
        for name in () if pattern == HEAD_LINEAR else common.fields():
            fields.pop(name, None)
    for name, option in zip(names, options, strict=True):
        if option != common:
            overrides.setdefault(name, {}).update(option.fields())
    kept = {k: v for k, v in overrides.items() if v}
    return dataclasses.replace(config, default=default, overrides=kept)
