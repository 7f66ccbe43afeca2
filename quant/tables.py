"""Exponents of the integer tables: right shifts to a table entry, left shifts of block sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from lutllm.config import STAGE_BITS, LutConfig
from lutllm.lut_linear import MAX_BLOCK_SHIFT, MAX_TABLE_SHIFT, accumulator_bound

#: Tokens that stand for the activations of scheme "weight" where table ranges are chosen.
RANGE_TOKENS = 512
#: How many halvings of a block's range are tried; the entries beyond it saturate.
_CLIP_TRIALS = 5
#: Stands for "no entry, any level will do".
_NO_LEVEL = -(1 << 20)


@dataclass(frozen=True)
class TableUse:
    """The vectors that meet the weight codebooks of a layer, and how often.

    vectors     f32[N, P, v]        centroids of one activation stage, or quantized activations
    frequency   f32[N, P]           share of the tokens with that vector
    """

    vectors: np.ndarray
    frequency: np.ndarray


def code_frequency(codes: np.ndarray, count: int, group_size: int) -> np.ndarray:
    """Share of the rows of a group with each code. codes: u8[Sw, P, M] -> f32[P, B, Sw, Kw]."""
    stages, positions, rows = codes.shape
    groups = -(-rows // group_size)
    out = np.zeros((positions, groups, stages, count), np.float32)
    for g in range(groups):
        part = codes[:, :, g * group_size : (g + 1) * group_size]
        for k in range(count):
            out[:, g, :, k] = (part == k).mean(axis=2).T
    return out


@njit(cache=True, parallel=True)
def _largest_dot(vectors: np.ndarray, integers: np.ndarray, out: np.ndarray) -> None:
    """out f32[P, B, Sw] = largest |vector . centroid|; integers: i8[P, B, Sw, Kw, v]."""
    _, groups, stages, count, v = integers.shape
    for p in prange(integers.shape[0]):
        for g in range(groups):
            for s in range(stages):
                top = np.float32(0)
                for k in range(count):
                    for a in range(vectors.shape[0]):
                        dot = np.float32(0)
                        for j in range(v):
                            dot += vectors[a, p, j] * integers[p, g, s, k, j]
                        top = max(top, abs(dot))
                out[p, g, s] = top


@njit(cache=True, parallel=True)
def _clip_loss(
    vectors: np.ndarray,
    frequency: np.ndarray,
    integers: np.ndarray,
    code_share: np.ndarray,
    worth: np.ndarray,
    level: np.ndarray,
    limits: np.ndarray,
    out: np.ndarray,
) -> None:
    """Expected squared rounding and saturation error of a position at lower and lower levels.

    worth: i64[P, B, Sw] exponent of a dot; level: i64[P, Sw] exponent of an entry that holds
    all; limits: i64[Sw], the largest entry; out: f64[P, Sw, trials], the error with entries of
    2^(level - trial).
    """
    _, groups, stages, count, v = integers.shape
    for p in prange(integers.shape[0]):
        for s in range(stages):
            limit = np.float32(limits[s])
            for trial in range(out.shape[2]):
                unit = 2.0 ** (level[p, s] - trial)
                total = 0.0
                for g in range(groups):
                    scale = np.float32(2.0 ** worth[p, g, s] / unit)
                    for k in range(count):
                        share = code_share[p, g, s, k]
                        if share == 0:
                            continue
                        for a in range(vectors.shape[0]):
                            dot = np.float32(0)
                            for j in range(v):
                                dot += vectors[a, p, j] * integers[p, g, s, k, j]
                            exact = dot * scale
                            entry = np.floor(abs(exact) + np.float32(0.5))
                            entry = entry if exact > 0 else -entry
                            entry = min(limit, max(-limit - np.float32(1), entry))
                            gap = entry - exact
                            total += frequency[a, p] * share * gap * gap
                out[p, s, trial] = total * unit * unit


def choose_levels(
    use: TableUse,
    integers: np.ndarray,
    code_share: np.ndarray,
    worth: np.ndarray,
    config: LutConfig,
) -> np.ndarray:
    """Exponent of a table entry for each block of one activation stage: i64[Sw, NB].

    The level at which every entry fits is lowered where saturating rare entries loses less than
    the finer grid gains. integers: i8[P, B, Sw, Kw, v]; code_share: f32[P, B, Sw, Kw]; worth:
    i64[P, B, Sw].
    """
    positions, _, stages = worth.shape
    size = config.block_positions
    blocks = -(-positions // size)
    limits = np.array([(1 << (config.entry_bits(s) - 1)) - 1 for s in range(stages)])
    vectors = np.ascontiguousarray(use.vectors, np.float32)
    top = np.empty(worth.shape, np.float32)
    _largest_dot(vectors, integers, top)
    fits = np.maximum(np.ceil(np.log2(np.maximum(top, 1) / (limits + 0.49))), 1).astype(np.int64)
    # A position that is zero in every vector seen may still be met: its shift must be valid.
    used = (integers != 0).any(axis=(3, 4))
    lowest = np.where(used, worth + 1, _NO_LEVEL)
    needed = np.where(used, worth + fits, _NO_LEVEL)
    floor = per_block(lowest.max(axis=1), size, blocks)
    level = per_block(needed.max(axis=1), size, blocks)
    if level.max() == _NO_LEVEL:
        return np.zeros((stages, blocks), np.int64)
    level = np.maximum(level, level.max() - 2 * MAX_BLOCK_SHIFT)
    per_position = np.repeat(level, size, axis=1)[:, :positions].T.copy()
    loss = np.empty((positions, stages, _CLIP_TRIALS))
    _clip_loss(
        vectors,
        np.ascontiguousarray(use.frequency, np.float32),
        integers,
        code_share,
        np.ascontiguousarray(np.maximum(worth, _NO_LEVEL)),
        per_position,
        limits,
        loss,
    )
    padded = np.zeros((blocks * size, stages, _CLIP_TRIALS))
    padded[:positions] = loss
    trial = padded.reshape(blocks, size, stages, -1).sum(axis=1).argmin(axis=-1).T
    return np.maximum(level - trial, floor)


def per_block(values: np.ndarray, size: int, blocks: int) -> np.ndarray:
    """Maximum over each block of positions, at least `_NO_LEVEL`. i64[P, Sw] -> i64[Sw, NB]."""
    padded = np.full((blocks * size, values.shape[1]), _NO_LEVEL, np.int64)
    padded[: len(values)] = values
    return padded.reshape(blocks, size, -1).max(axis=1).T


def choose_shifts(
    uses: list[TableUse],
    integers: np.ndarray,
    code_share: np.ndarray,
    exponents: np.ndarray,
    config: LutConfig,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The shifts of a layer's tables.

    uses: one per activation stage; exponents: i32[P, B, Sw], a dot product of activation stage t
    is worth 2^(exponent - 3 t). Returns table_shift u8[Sa, Sw, P, B], block_shift u8[Sa, Sw, NB]
    and the exponent of an accumulator unit.
    """
    positions = len(integers)
    worth = np.stack([exponents.astype(np.int64) - STAGE_BITS * t for t in range(len(uses))])
    level = np.stack(
        [
            choose_levels(u, integers, code_share, w, config)
            for u, w in zip(uses, worth, strict=True)
        ]
    )
    unit = lowest_unit(level, config, positions)
    level = np.maximum(level, unit)
    per_position = np.repeat(level, config.block_positions, axis=2)[:, :, :positions]
    shift = per_position[..., None] - worth.transpose(0, 3, 1, 2)
    table_shift = np.clip(shift, 1, MAX_TABLE_SHIFT).astype(np.uint8)
    return table_shift, (level - unit).astype(np.uint8), unit


def lowest_unit(level: np.ndarray, config: LutConfig, positions: int) -> int:
    """The finest accumulator unit with which the sum of all blocks stays inside 32 bits.

    level: i64[Sa, Sw, NB], exponents of entries; those below the unit have to be raised to it.
    """
    unit = int(max(level.min(), level.max() - MAX_BLOCK_SHIFT))
    while True:
        shifts = np.maximum(level - unit, 0)
        if accumulator_bound(config, positions, shifts) < 1 << 31:
            return unit
        unit += 1


def exact_shifts(
    exponents: np.ndarray, groups: int, config: LutConfig
) -> tuple[np.ndarray, np.ndarray, int]:
    """As `choose_shifts` for entries that are dot products: of one activation stage.

    exponents: i32[P, Sw], the same within a block of positions (`quant.exact`).
    """
    level = exponents[:: config.block_positions].T[None].astype(np.int64)
    unit = lowest_unit(level, config, len(exponents))
    table_shift = np.zeros((1, exponents.shape[1], len(exponents), groups), np.uint8)
    return table_shift, (level - unit).astype(np.uint8), unit


def clear_vanished(integers: np.ndarray, table_shift: np.ndarray) -> None:
    """Zero the codebooks whose every entry rounds to zero, so that the shift may be capped.

    A shift beyond 15 leaves nothing of a dot product of two pairs of 8-bit integers. integers:
    i8[P, B, Sw, Kw, v], changed in place; table_shift: u8[Sa, Sw, P, B], capped to 15 in place.
    """
    gone = np.all(table_shift > 15, axis=0)
    integers[np.moveaxis(gone, 0, 2)] = 0
    table_shift[:, gone] = 15
