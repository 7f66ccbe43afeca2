"""Codebooks whose table entries are dot products, with nothing rounded after them.

Where entries hold every dot product (`LutConfig.exact_entries`) and all centroids that share an
accumulator exponent are integers of one unit, table entries need no shift. Then lookups are
products with decoded centroids, which a processor may compute in their place.
"""

from __future__ import annotations

import numpy as np

from lutllm.config import LutConfig
from quant.error_feedback import CodedWeight, reconstruct
from quant.tables import lowest_unit, per_block


def has_exact_entries(config: LutConfig) -> bool:
    """Whether all table entries of a linear may be dot products: with one activation stage, since
    the units of several lie far apart in an accumulator."""
    return config.act_stages == 1 and config.all_entries_exact


def round_to(coded: CodedWeight, exponents: np.ndarray, config: LutConfig) -> None:
    """Round the centroids of all groups to units of 2^exponents, i32[P, Sw], not finer than now."""
    finer = np.minimum(coded.exponents - exponents[:, None], 0)  # a codebook of zeros may have any
    scale = np.exp2(finer.astype(np.float64))[..., None, None]
    coded.integers[:] = np.rint(coded.integers * scale)
    coded.exponents[:] = exponents[:, None]
    coded.shared = True
    if len(coded.values):
        coded.values[:] = reconstruct(coded, config.group_size)


def common_exponents(coded: CodedWeight, config: LutConfig) -> np.ndarray:
    """Largest exponent of a block of positions, raised to an accumulator unit: i32[P, Sw]."""
    positions, size = len(coded.integers), config.block_positions
    largest = np.where(_used(coded), coded.exponents, np.iinfo(np.int32).min).max(axis=1)
    level = per_block(largest.astype(np.int64), size, -(-positions // size))
    level = np.maximum(level, lowest_unit(level[None], config, positions))
    return np.repeat(level, size, axis=1)[:, :positions].T.astype(np.int32)


def rounding_error(coded: CodedWeight, exponents: np.ndarray, importance: np.ndarray) -> float:
    """Squared error of a row that `round_to` is expected to add.

    importance: f32[P, v], what a squared error of a weight in integer units costs.
    """
    own, common = np.exp2(2.0 * coded.exponents), np.exp2(2.0 * exponents[:, None])
    # Integers are rounded to a multiple of a power of two, halves among them.
    coarser = np.where((own < common) & _used(coded), common + 2 * own, 0.0)
    return float((coarser.mean(axis=1).sum(axis=1) * importance.sum(axis=1)).sum() / 12)


def _used(coded: CodedWeight) -> np.ndarray:
    """Codebooks that are not zero: bool[P, B, Sw]."""
    return (coded.integers != 0).any(axis=(3, 4))
