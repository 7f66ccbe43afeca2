"""The float steps of a decoder on vectors of eight float32, in one fixed order.

The order of additions depends on sizes alone: not on threads, nor on how many tokens are processed
together. All functions work on byte addresses of float32 data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.emulator.jit import inline
from lutllm.emulator.outer import (
    outer_fma,
    outer_fma_half,
    outer_load,
    outer_store,
    outer_zero,
)
from lutllm.emulator.simd import (
    add,
    band,
    bitcast,
    div,
    f32x8,
    float_bits,
    float_to_int,
    fma,
    half_to_float,
    i8x8,
    i16x8,
    i32x8,
    int_to_float,
    load,
    load_f32,
    max_lanes,
    mul,
    prefetch,
    rint,
    sext,
    shl,
    splat,
    store,
    store_f32,
    store_i16,
    sub,
    sum_lanes,
    unzip,
    vmax,
    vmin,
    zext,
)

LANES = 8
#: Keys of one block of the key cache, laid out [block][head_dim][KEYS].
KEYS = 16
#: How a stored float tensor is read.
F32, F16, BF16, I8 = 0, 1, 2, 3
KINDS = {"F32": F32, "F16": F16, "BF16": BF16, "I8": I8}
#: Bytes of a stored value by kind.
WIDTHS = {F32: 4, F16: 2, BF16: 2, I8: 1}


# ---------------------------------------------------------------- elementwise


@inline
def exp8(x: Any) -> Any:
    """e^x of eight lanes, within 2 units of the last place; x is clamped to +-87.

    x = n ln 2 + r, ln 2 in two parts; a polynomial of degree 6 on |r| < 0.35.
    """
    x = vmax(vmin(x, splat(f32x8, 87.0)), splat(f32x8, -87.0))
    n = rint(mul(x, splat(f32x8, 1.4426950408889634)))
    r = fma(n, splat(f32x8, -0.693359375), x)
    r = fma(n, splat(f32x8, 2.12194440e-4), r)
    p = splat(f32x8, 1.9875691500e-4)
    p = fma(p, r, splat(f32x8, 1.3981999507e-3))
    p = fma(p, r, splat(f32x8, 8.3334519073e-3))
    p = fma(p, r, splat(f32x8, 4.1665795894e-2))
    p = fma(p, r, splat(f32x8, 1.6666665459e-1))
    p = fma(p, r, splat(f32x8, 5.0000001201e-1))
    p = add(fma(mul(p, r), r, r), splat(f32x8, 1.0))
    power = shl(add(float_to_int(i32x8, n), splat(i32x8, 127)), 23)
    return mul(p, bitcast(f32x8, power))


@inline
def silu8(gate: Any, up: Any) -> Any:
    """gate / (1 + e^-gate) * up."""
    one = splat(f32x8, 1.0)
    return mul(div(gate, add(one, exp8(sub(splat(f32x8, 0.0), gate)))), up)


@inline
def silu_product(gate: int, up: int, out: int, first: int, end: int, scratch: int) -> None:
    """out[i] = silu(gate[i]) * up[i] for first <= i < end. scratch: 96 bytes."""
    i = first
    while i + LANES <= end:
        store(out + 4 * i, silu8(load(f32x8, gate + 4 * i), load(f32x8, up + 4 * i)))
        i += LANES
    if i < end:
        for n in range(end - i):
            store_f32(scratch + 4 * n, load_f32(gate + 4 * (i + n)))
            store_f32(scratch + 32 + 4 * n, load_f32(up + 4 * (i + n)))
        store(scratch + 64, silu8(load(f32x8, scratch), load(f32x8, scratch + 32)))
        for n in range(end - i):
            store_f32(out + 4 * (i + n), load_f32(scratch + 64 + 4 * n))


@inline
def rms_norm(x: int, weight: int, out: int, size: int, eps: Any) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight; out may be x."""
    total = splat(f32x8, 0.0)
    whole = size // LANES * LANES
    for i in range(0, whole, LANES):
        value = load(f32x8, x + 4 * i)
        total = fma(value, value, total)
    squares = sum_lanes(total)
    for i in range(whole, size):
        squares += load_f32(x + 4 * i) * load_f32(x + 4 * i)
    factor = np.float32(1) / np.sqrt(squares / np.float32(size) + eps)
    scale = splat(f32x8, factor)
    for i in range(0, whole, LANES):
        normed = mul(load(f32x8, x + 4 * i), scale)
        store(out + 4 * i, mul(normed, load(f32x8, weight + 4 * i)))
    for i in range(whole, size):
        store_f32(out + 4 * i, load_f32(x + 4 * i) * factor * load_f32(weight + 4 * i))


@inline
def rotate(x: int, cos: int, sin: int, size: int) -> None:
    """Rotary embedding in place: element i pairs with i + size / 2."""
    middle = size // 2
    upper = x + 4 * middle
    whole = middle // LANES * LANES
    for i in range(0, 4 * whole, 32):
        a, b = load(f32x8, x + i), load(f32x8, upper + i)
        c, s = load(f32x8, cos + i), load(f32x8, sin + i)
        store(x + i, sub(mul(a, c), mul(b, s)))
        store(upper + i, add(mul(b, c), mul(a, s)))
    for i in range(whole, middle):
        u, v = load_f32(x + 4 * i), load_f32(upper + 4 * i)
        p, q = load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store_f32(x + 4 * i, u * p - v * q)
        store_f32(upper + 4 * i, v * p + u * q)


# ---------------------------------------------------------------- stored tensors


@inline
def load8(kind: int, address: int) -> Any:
    """Eight stored values of a tensor of `kind` as f32x8."""
    if kind == BF16:
        return bitcast(f32x8, shl(zext(i32x8, load(i16x8, address)), 16))
    if kind == F16:
        return half_to_float(load(i16x8, address))
    if kind == I8:
        return int_to_float(f32x8, sext(i32x8, load(i8x8, address)))
    return load(f32x8, address)


@inline
def stored_bytes(kind: int) -> int:
    if kind == I8:
        return 1
    return 4 if kind == F32 else 2


@inline
def read_row(kind: int, row: int, size: int, out: int) -> None:
    """out: f32[size] from a stored row of 8 values or more."""
    width = stored_bytes(kind)
    for i in range(0, size - LANES + 1, LANES):
        store(out + 4 * i, load8(kind, row + width * i))
    if size % LANES:  # the last eight values, some of them again
        last = size - LANES
        store(out + 4 * last, load8(kind, row + width * last))


@inline
def scale_row(x: int, size: int, factor: Any) -> None:
    """x *= factor, f32[size] in place."""
    whole = size // LANES * LANES
    for i in range(0, 4 * whole, 4 * LANES):
        store(x + i, mul(load(f32x8, x + i), splat(f32x8, factor)))
    for i in range(whole, size):
        store_f32(x + 4 * i, load_f32(x + 4 * i) * factor)


# ---------------------------------------------------------------- output head


@inline
def split_words(x: int, padded: int) -> None:
    """Order each 16 float32 as 8 even and 8 odd ones, in place: the order of `_words`.

    A 32-bit word of bfloat16 data is an odd value with an even one below it.
    """
    for i in range(0, 4 * padded, 64):
        even, odd = unzip(load(f32x8, x + i), load(f32x8, x + i + 32))
        store(x + i, even)
        store(x + i + 32, odd)


@inline
def _words(kind: int, address: int) -> tuple[Any, Any]:
    """Sixteen stored values as two f32x8: even and odd ones for BF16, else the first and last 8."""
    if kind == BF16:
        both = load(i32x8, address)
        return bitcast(f32x8, shl(both, 16)), bitcast(f32x8, band(both, splat(i32x8, -65536)))
    half = LANES * stored_bytes(kind)
    return load8(kind, address), load8(kind, address + half)


@inline
def _dot4(weights: int, stride: int, x: int, padded: int, out: int) -> None:
    """Four rows of float32 times one vector."""
    a = b = c = d = splat(f32x8, 0.0)
    for i in range(0, 4 * padded, 32):
        value = load(f32x8, x + i)
        a = fma(load(f32x8, weights + i), value, a)
        b = fma(load(f32x8, weights + stride + i), value, b)
        c = fma(load(f32x8, weights + 2 * stride + i), value, c)
        d = fma(load(f32x8, weights + 3 * stride + i), value, d)
    _store_sums(a, b, c, d, out)


@inline
def _store_sums(a: Any, b: Any, c: Any, d: Any, out: int) -> None:
    store_f32(out, sum_lanes(a))
    store_f32(out + 4, sum_lanes(b))
    store_f32(out + 8, sum_lanes(c))
    store_f32(out + 12, sum_lanes(d))


@inline
def _dot4x2(weights: int, stride: int, x: int, y: int, padded: int, out: int, out2: int) -> None:
    """`_dot4` for two vectors at once."""
    a = b = c = d = splat(f32x8, 0.0)
    e = f = g = h = splat(f32x8, 0.0)
    for i in range(0, 4 * padded, 32):
        u, v = load(f32x8, x + i), load(f32x8, y + i)
        w = load(f32x8, weights + i)
        a, e = fma(w, u, a), fma(w, v, e)
        w = load(f32x8, weights + stride + i)
        b, f = fma(w, u, b), fma(w, v, f)
        w = load(f32x8, weights + 2 * stride + i)
        c, g = fma(w, u, c), fma(w, v, g)
        w = load(f32x8, weights + 3 * stride + i)
        d, h = fma(w, u, d), fma(w, v, h)
    _store_sums(a, b, c, d, out)
    _store_sums(e, f, g, h, out2)


@inline
def _dot4_stored(kind: int, weights: int, row_bytes: int, x: int, size: int, out: int) -> None:
    """Four stored rows times one vector, without a copy; size is a multiple of 16."""
    step = 16 * stored_bytes(kind)
    a = b = c = d = splat(f32x8, 0.0)
    at = weights
    for i in range(0, 4 * size, 64):
        u, v = load(f32x8, x + i), load(f32x8, x + i + 32)
        prefetch(at + 4 * row_bytes)  # the same place of the next four rows
        low, high = _words(kind, at)
        a = fma(high, v, fma(low, u, a))
        prefetch(at + 5 * row_bytes)
        low, high = _words(kind, at + row_bytes)
        b = fma(high, v, fma(low, u, b))
        prefetch(at + 6 * row_bytes)
        low, high = _words(kind, at + 2 * row_bytes)
        c = fma(high, v, fma(low, u, c))
        prefetch(at + 7 * row_bytes)
        low, high = _words(kind, at + 3 * row_bytes)
        d = fma(high, v, fma(low, u, d))
        at += step
    _store_sums(a, b, c, d, out)


@inline
def head_rows(
    kind: int,
    weights: int,
    size: int,
    first: int,
    end: int,
    tokens: int,
    x: int,
    x_bytes: int,
    out: int,
    out_bytes: int,
    scratch: int,
) -> None:
    """out[t][r] = weights[r] . x[t] for rows first <= r < end.

    weights: stored [rows, size]; x: f32, zero from size to the next multiple of 16, and for BF16 in
    the order of `split_words`; scratch: four float32 rows. Every dot product is eight partial sums,
    in one order for every number of tokens.
    """
    row_bytes = size * stored_bytes(kind)
    padded = (size + 15) // 16 * 16
    row = first
    while row < end:
        at = weights + row * row_bytes
        target = out + 4 * row
        count = min(4, end - row)
        if count < 4 or tokens > 1 or padded != size:
            for r in range(count):
                _head_row(kind, at + r * row_bytes, size, padded, scratch + 4 * r * padded)
            _head_block(scratch, count, padded, tokens, x, x_bytes, target, out_bytes)
        elif kind == BF16:  # a constant in each call, so the inner loop has no test
            _dot4_stored(BF16, at, row_bytes, x, size, target)
        elif kind == F16:
            _dot4_stored(F16, at, row_bytes, x, size, target)
        else:
            _dot4_stored(F32, at, row_bytes, x, size, target)
        row += count


@inline
def _head_row(kind: int, row: int, size: int, padded: int, out: int) -> None:
    """A stored row as f32[padded], zero beyond size, in the order of x."""
    read_row(kind, row, size, out)
    for i in range(size, padded):
        store_f32(out + 4 * i, np.float32(0))
    if kind == BF16:
        split_words(out, padded)


@inline
def _head_block(
    weights: int,
    count: int,
    padded: int,
    tokens: int,
    x: int,
    x_bytes: int,
    out: int,
    out_bytes: int,
) -> None:
    """Up to four float32 rows times all tokens."""
    stride = 4 * padded
    t = 0
    while count == 4 and t + 2 <= tokens:
        at = out + t * out_bytes
        _dot4x2(weights, stride, x + t * x_bytes, x + (t + 1) * x_bytes, padded, at, at + out_bytes)
        t += 2
    for n in range(t, tokens):
        if count == 4:
            _dot4(weights, stride, x + n * x_bytes, padded, out + n * out_bytes)
            continue
        for r in range(count):
            total = splat(f32x8, 0.0)
            for i in range(0, stride, 32):
                w = load(f32x8, weights + r * stride + i)
                total = fma(w, load(f32x8, x + n * x_bytes + i), total)
            store_f32(out + n * out_bytes + 4 * r, sum_lanes(total))


# ---------------------------------------------------------------- attention


@inline
def half_bits(value: Any) -> int:
    """A float32 rounded to half precision, halves to even, as 16 bits."""
    bits = float_bits(value)
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if size > 0x7F800000:
        return sign | 0x7E00  # not a number
    if size >= 0x477FF000:
        return sign | 0x7C00
    if size < 0x38800000:  # half a unit of float32 at 0.5 is half a unit of the smallest halves
        return sign | (float_bits(abs(value) + np.float32(0.5)) - 0x3F000000)
    return sign | ((size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13)


@inline
def store_cached(kind: int, address: int, value: Any) -> None:
    """Write one value of a key or value vector; kind: F32 or F16."""
    if kind == F16:
        store_i16(address, half_bits(value))
    else:
        store_f32(address, value)


@inline
def store_key(kind: int, key: int, size: int, position: int, keys: int) -> None:
    """Write one key vector into the blocked cache of its head."""
    width = stored_bytes(kind)
    at = keys + width * (position // KEYS * size * KEYS + position % KEYS)
    for i in range(size):
        store_cached(kind, at + width * KEYS * i, load_f32(key + 4 * i))


def _make_score_keys(step: Any, width: int) -> Any:
    @inline
    def score_keys(queries: Any, scores: Any, keys: int, size: int, first: int) -> None:
        at = keys + width * size * first
        total = outer_zero(queries)
        for i in range(size):
            prefetch(at + width * KEYS * (i + size))  # the next KEYS keys
            total = step(total, queries, 4 * i, at + width * KEYS * i)
        outer_store(total, scores, 4 * first)

    return score_keys


_score_f32 = _make_score_keys(outer_fma, 4)
_score_f16 = _make_score_keys(outer_fma_half, 2)


@inline
def score_keys(kind: int, queries: Any, scores: Any, keys: int, size: int, first: int) -> None:
    """Scores of a few queries for the KEYS keys from `first` on.

    queries, scores: tuples of addresses; scores[n][key] = queries[n] . key; kind: of the keys.
    """
    if kind == F16:
        _score_f16(queries, scores, keys, size, first)
    else:
        _score_f32(queries, scores, keys, size, first)


def _make_mix_values(step: Any, width: int) -> Any:
    @inline
    def mix_values(weights: Any, outs: Any, values: int, wide: int, first: int, end: int) -> None:
        for i in range(0, wide, KEYS):
            total = outer_load(outs, 4 * i)
            for key in range(first, end):
                prefetch(values + width * ((key + KEYS) * wide + i))
                total = step(total, weights, 4 * key, values + width * (key * wide + i))
            outer_store(total, outs, 4 * i)

    return mix_values


_mix_f32 = _make_mix_values(outer_fma, 4)
_mix_f16 = _make_mix_values(outer_fma_half, 2)


@inline
def mix_values(
    kind: int, weights: Any, outs: Any, values: int, wide: int, first: int, end: int
) -> None:
    """outs[n] += sum over keys first .. end, in order, of weights[n][key] * values[key].

    weights, outs: tuples of addresses; values: [keys, wide] of `kind`, wide a multiple of KEYS.
    """
    if kind == F16:
        _mix_f16(weights, outs, values, wide, first, end)
    else:
        _mix_f32(weights, outs, values, wide, first, end)


@inline
def softmax(scores: int, count: int, padded: int, scale: Any) -> Any:
    """scores[i] = e^(scale (score - max)) for i < count, 0 to `padded`; returns the sum."""
    for i in range(count, padded):
        store_f32(scores + 4 * i, np.float32(-np.inf))
    top = splat(f32x8, -np.inf)
    for i in range(0, padded, LANES):
        top = vmax(load(f32x8, scores + 4 * i), top)
    most = splat(f32x8, max_lanes(top))
    factor = splat(f32x8, scale)
    total = splat(f32x8, 0.0)
    for i in range(0, count, LANES):
        value = exp8(mul(sub(load(f32x8, scores + 4 * i), most), factor))
        if i + LANES > count:
            store(scores + 4 * i, value)
            for n in range(count, i + LANES):
                store_f32(scores + 4 * n, np.float32(0))
            value = load(f32x8, scores + 4 * i)
        total = add(total, value)
        store(scores + 4 * i, value)
    for i in range((count + LANES - 1) // LANES * LANES, padded):
        store_f32(scores + 4 * i, np.float32(0))
    return sum_lanes(total)
