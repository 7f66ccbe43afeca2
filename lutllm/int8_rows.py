"""Rows of embedding and output head as int8 with one scale each: the plain numpy definition.

V rows of H values. A word's row is `weight * scale`. The head's product is a sum of integers, so
its order does not matter; the emulator's kernels equal `logits` to the bit.
"""

from __future__ import annotations

import numpy as np

#: Largest magnitude of a stored integer.
ROW_LIMIT = 127
#: A hidden vector whose largest magnitude is below this (2^-100) counts as zero.
SMALLEST = np.float32(2.0**-100)
#: Rows converted at a time, which bounds the float copies.
_CHUNK = 4096


def hidden_limit(size: int) -> int:
    """Largest magnitude of an integer of a hidden vector of `size` values.

    The largest 2^b - 1 that fits 16 bits and keeps every sum of products with an int8 row in 32.
    """
    limit = (1 << 15) - 1
    while limit * 128 * size >= 1 << 31:
        limit >>= 1
    return limit


def quantize_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest int8 rows. rows: f32[V, H], finite -> weight i8[V, H], scale f32[V].

    scale = max |row| / 127; weight = rint(row / scale), 0 in a row whose scale is 0.
    """
    weight = np.empty(rows.shape, np.int8)
    scale = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _CHUNK):
        part = slice(first, first + _CHUNK)
        scale[part] = np.abs(rows[part]).max(axis=1) / np.float32(ROW_LIMIT)
        divisor = np.where(scale[part] > 0, scale[part], np.float32(np.inf))[:, None]
        weight[part] = np.clip(np.rint(rows[part] / divisor), -ROW_LIMIT, ROW_LIMIT)
    return weight, scale


def dequantize_rows(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """i8[V, H], f32[V] -> f32[V, H]."""
    rows = weight.astype(np.float32)
    rows *= scale[:, None]
    return rows


def round_rows(rows: np.ndarray) -> np.ndarray:
    """The values f32[V, H] that rows f32[V, H] have once they are stored."""
    return dequantize_rows(*quantize_rows(rows))


def quantize_hidden(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scale of each token. x: f32[T, H] -> x_int i32[T, H], token_scale f32[T].

    top = max |x|, L = hidden_limit(H); x_int = clamp(rint(x * (L / top)), +-L), 0 where top is
    below SMALLEST; token_scale = top / L.
    """
    limit = np.float32(hidden_limit(x.shape[1]))
    top = np.abs(x).max(axis=1)
    factor = np.divide(limit, top, out=np.zeros_like(top), where=top >= SMALLEST)
    x_int = np.clip(np.rint(x * factor[:, None]), -limit, limit).astype(np.int32)
    return x_int, top / limit


def logits(x: np.ndarray, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The head. x: f32[T, H], weight: i8[V, H], scale: f32[V] -> f32[T, V].

    float(sum of x_int * weight) * scale, then * token_scale; each step rounded to float32.
    """
    x_int, token_scale = quantize_hidden(x)
    out = np.empty((len(x), len(weight)), np.float32)
    for first in range(0, len(weight), _CHUNK):
        part = slice(first, first + _CHUNK)
        # float64 holds every product and sum below 2^53, and has a fast matrix product
        sums = x_int.astype(np.float64) @ weight[part].T.astype(np.float64)
        out[:, part] = sums.astype(np.float32) * scale[part]
    return out * token_scale[:, None]


def screen(coarse: np.ndarray, exact: np.ndarray, margin: float) -> np.ndarray:
    """f32[T, V]: coarse logits, exact ones where a coarse one is near the token's largest.

    Near is `coarse >= largest - margin`, in float32. Only those rows have to be read.
    """
    least = coarse.max(axis=1, keepdims=True) - np.float32(margin)
    return np.where(coarse >= least, exact, coarse)
