"""The output head on int8 rows: integer dot products, as `lutllm.int8_rows` defines them.

A hidden vector becomes 16-bit integers once; a row then costs one widening, one multiply-add and
one addition for 16 values, which keeps up with memory. Sums are exact, so neither the order nor the
number of tokens matters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.emulator.jit import inline
from lutllm.emulator.kernels import dot_step
from lutllm.emulator.simd import (
    add,
    f32x8,
    float_to_int,
    fma,
    i8x16,
    i16x8,
    i32x8,
    load,
    load_f32,
    load_i8,
    load_i32,
    max_lanes,
    mul,
    prefetch,
    rint,
    splat,
    store,
    store_f32,
    store_i8,
    sum_lanes,
    trunc,
    unzip,
    vabs,
    vmax,
    vmin,
)
from lutllm.int8_rows import SMALLEST

#: Values of a row that are multiplied at a time; rows of other sizes are padded with zeros.
BLOCK = 16
#: Rows that share the loads of a hidden vector.
ROWS = 4


@inline
def quantize_hidden(x: int, padded: int, limit: int) -> Any:
    """f32[padded] to i16[padded] in place, zero beyond the vector; returns its scale.

    A value that is not finite makes the scale, and with it every logit, not finite.
    """
    top = poison = splat(f32x8, 0.0)
    for i in range(0, 4 * padded, 32):
        value = load(f32x8, x + i)
        top = vmax(vabs(value), top)
        poison = fma(value, splat(f32x8, 0.0), poison)
    most = max_lanes(top)
    bound = np.float32(limit)
    factor = bound / most if most >= SMALLEST else np.float32(0)
    for i in range(0, padded, 8):
        value = rint(mul(load(f32x8, x + 4 * i), splat(f32x8, factor)))
        value = vmax(vmin(value, splat(f32x8, bound)), splat(f32x8, -bound))
        store(x + 2 * i, trunc(i16x8, float_to_int(i32x8, value)))
    return most / bound + sum_lanes(poison)


@inline
def _dot4(weights: int, stride: int, x: int, padded: int, ahead: int, sums: int) -> None:
    """sums: i32[8] of four rows i8[padded] `stride` bytes apart times i16[padded], and again.

    ahead: address of the rows that come after; a quarter of a block is asked for with each block.
    """
    a = b = c = d = splat(i32x8, 0)
    for i in range(0, padded, BLOCK):
        prefetch(ahead + ROWS * i)
        a = dot_step(a, weights + i, x + 2 * i)
        b = dot_step(b, weights + stride + i, x + 2 * i)
        c = dot_step(c, weights + 2 * stride + i, x + 2 * i)
        d = dot_step(d, weights + 3 * stride + i, x + 2 * i)
    low, high = unzip(a, b)
    ab = add(low, high)
    low, high = unzip(c, d)
    cd = add(low, high)
    low, high = unzip(ab, cd)
    pairs = add(low, high)
    low, high = unzip(pairs, pairs)
    store(sums, add(low, high))


@inline
def _dot(weights: int, x: int, padded: int, sums: int) -> None:
    """sums: i32[8], all the product of one row i8[padded] with i16[padded]."""
    a = splat(i32x8, 0)
    for i in range(0, padded, BLOCK):
        a = dot_step(a, weights + i, x + 2 * i)
    for _ in range(3):
        low, high = unzip(a, a)
        a = add(low, high)
    store(sums, a)


@inline
def _copy_rows(row: int, count: int, size: int, padded: int, out: int) -> None:
    """`count` rows i8[size] as i8[ROWS, padded], zero elsewhere."""
    for i in range(0, ROWS * padded, BLOCK):
        store(out + i, splat(i8x16, 0))
    for r in range(count):
        for i in range(size):
            store_i8(out + r * padded + i, load_i8(row + r * size + i))


@inline
def _logits_of(
    sums: int, row_scales: int, row: int, count: int, token_scale: Any, out: int
) -> None:
    """out[row + r] from the sums of `count` rows, as `int8_rows.logits` defines them."""
    for r in range(count):
        value = np.float32(load_i32(sums + 4 * r)) * load_f32(row_scales + 4 * (row + r))
        store_f32(out + 4 * (row + r), value * token_scale)


@inline
def int8_head_rows(
    weights: int,
    row_scales: int,
    size: int,
    first: int,
    end: int,
    tokens: int,
    x: int,
    x_bytes: int,
    token_scales: int,
    out: int,
    out_bytes: int,
    scratch: int,
) -> None:
    """out[t][r] = logit of row r for rows first <= r < end.

    weights: i8[rows, size]; row_scales: f32[rows]; x: i16, zero from size to the next multiple of
    BLOCK, with token_scales f32[tokens]; scratch: ROWS padded rows and eight 32-bit integers.
    """
    padded = (size + BLOCK - 1) // BLOCK * BLOCK
    sums = scratch + ROWS * padded
    for row in range(first, end, ROWS):
        count = min(ROWS, end - row)
        at, stride = weights + row * size, size
        ahead = at + 2 * ROWS * size
        if count < ROWS or padded != size:
            _copy_rows(at, count, size, padded, scratch)
            at, stride = scratch, padded
        for t in range(tokens):
            _dot4(at, stride, x + t * x_bytes, padded, ahead, sums)
            scale = load_f32(token_scales + 4 * t)
            _logits_of(sums, row_scales, row, count, scale, out + t * out_bytes)


@inline
def largest_logit(logits: int, count: int) -> Any:
    """Of f32[count]."""
    top = splat(f32x8, -np.inf)
    whole = count // 8 * 8
    for i in range(0, whole, 8):
        top = vmax(load(f32x8, logits + 4 * i), top)
    most = max_lanes(top)
    for i in range(whole, count):
        most = max(most, load_f32(logits + 4 * i))
    return most


@inline
def screened_rows(
    weights: int,
    row_scales: int,
    size: int,
    first: int,
    end: int,
    least: Any,
    x: int,
    token_scale: Any,
    logits: int,
    scratch: int,
) -> None:
    """Exact logits of the rows first <= r < end whose coarse ones are at least `least`.

    logits: f32[rows], coarse ones, changed in place; x: i16 and token_scale of one token; the rest
    as in `int8_head_rows`.
    """
    padded = (size + BLOCK - 1) // BLOCK * BLOCK
    sums = scratch + ROWS * padded
    for group in range(first, end, 8):
        if group + 8 <= end and max_lanes(load(f32x8, logits + 4 * group)) < least:
            continue
        for row in range(group, min(group + 8, end)):
            if load_f32(logits + 4 * row) >= least:
                at = weights + row * size
                if padded != size:
                    _copy_rows(at, 1, size, padded, scratch)
                    at = scratch
                _dot(at, x, padded, sums)
                _logits_of(sums, row_scales, row, 1, token_scale, logits)
