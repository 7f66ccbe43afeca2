"""How evenly the centroids of weight codebooks are used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutllm.lut_linear import LutLinear


@dataclass(frozen=True)
class Usage:
    """Over all weight codebooks of a linear.

    effective  mean of e^entropy / Kw: 1 where every centroid is used alike
    unused     share of centroids that no weight takes
    """

    name: str
    codebooks: int
    centroids: int
    effective: float
    unused: float


def centroid_usage(linear: LutLinear) -> Usage:
    """Counted from the weight codes."""
    counts = code_counts(linear)
    share = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    effective = np.exp(-(share * logs).sum(axis=1)) / linear.config.weight_centroids
    return Usage(
        linear.name,
        len(counts),
        linear.config.weight_centroids,
        float(effective.mean()),
        float((counts == 0).mean()),
    )


def code_counts(linear: LutLinear) -> np.ndarray:
    """Weights that take each centroid: i64[Sw * P * B, Kw]."""
    codes = linear.unpack_weight_codes()
    stages, positions, outputs = codes.shape
    centroids, groups = linear.config.weight_centroids, linear.num_groups
    group = np.arange(outputs) // linear.config.group_size
    book = np.arange(stages * positions).reshape(stages, positions, 1) * groups + group
    total = stages * positions * groups * centroids
    counts = np.bincount((book * centroids + codes).reshape(-1), minlength=total)
    return counts.reshape(-1, centroids)
