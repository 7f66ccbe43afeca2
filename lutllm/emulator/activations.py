"""Coding of activations for the vector kernel sets: pairs of channels, UNIT slots at a time.

Only the search itself is a set's own, see `Search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutllm.config import STAGE_BITS
from lutllm.emulator import plain
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import UNIT
from lutllm.emulator.simd import (
    Vector,
    f32x8,
    float_to_int,
    i8x8,
    i8x16,
    i16x8,
    i16x16,
    i32x8,
    load,
    load_f32,
    load_i16,
    load_i32,
    max_lanes,
    mul,
    rint,
    sext,
    shl,
    splat,
    store,
    store_f32,
    store_i8,
    store_i16,
    sub,
    trunc,
    vabs,
    vmax,
    vmin,
)

#: Tokens from which taking the activation codebook apart pays.
EXPAND_TOKENS = 4
#: Tokens whose nearest centroids are searched together, at most.
SEARCH_TOKENS = 4
#: Bytes of scratch before the codebook taken apart: numbers of that many tokens.
NUMBERS_BYTES = 4 * UNIT * SEARCH_TOKENS


@inline
def _gather(lin: Any, x: int, first: int, scratch: int) -> None:
    """f32[2 UNIT] at scratch: channels of elements first, first + 1, ... times their scales."""
    for i in range(first, first + 2 * UNIT):
        channel = load_i32(lin.perm + 4 * i)
        store_f32(scratch + 4 * (i - first), load_f32(x + 4 * channel))
    for i in range(0, 8 * UNIT, 32):
        scale = load(f32x8, lin.scale + 4 * first + i)
        store(scratch + i, mul(load(f32x8, scratch + i), scale))


@inline
def _rounded(values: Vector, limit: Any) -> Vector:
    """clamp(rint(values)) as i32x8."""
    top = splat(f32x8, float(limit))
    low = splat(f32x8, float(-limit))
    return float_to_int(i32x8, vmax(vmin(rint(values), top), low))


@inline
def _magnitudes(lin: Any, x: int, offset: int) -> Vector:
    scale = load(f32x8, lin.channel_scale + offset)
    return vabs(mul(load(f32x8, x + offset), scale))


@inline
def largest_input(lin: Any, x: int) -> float:
    """As `plain.largest_input`, channels as they lie: nothing to gather."""
    top = splat(f32x8, 0.0)
    whole = lin.in_features // 32 * 32
    for i in range(0, 4 * whole, 128):
        first = vmax(_magnitudes(lin, x, i), _magnitudes(lin, x, i + 32))
        second = vmax(_magnitudes(lin, x, i + 64), _magnitudes(lin, x, i + 96))
        top = vmax(top, vmax(first, second))
    return max(max_lanes(top), plain.largest_of(lin, x, whole))


@inline
def quantize_slots(
    lin: Any, x: int, inverse: float, first: int, end: int, act: int, scratch: int
) -> None:
    """As `plain.quantize_slots`; scratch: 128 bytes."""
    if lin.vec_len != 2:
        plain.quantize_slots(lin, x, inverse, first, end, act, scratch)
        return
    factor = splat(f32x8, inverse)
    for slot in range(first, end, UNIT):
        _gather(lin, x, 2 * slot, scratch)
        for i in range(0, 2 * UNIT, 8):
            value = mul(load(f32x8, scratch + 4 * i), factor)
            store(act + 2 * slot + i, trunc(i8x8, _rounded(value, 127)))
        _spread(lin, slot, act)


@inline
def _spread(lin: Any, first: int, vector: int) -> None:
    """`plain.spread` for UNIT slots of two elements."""
    for order in range(1, lin.orders):
        copies = lin.copies + 4 * (order - 1) * lin.slots
        target = vector + 2 * order * lin.slots
        for slot in range(first, first + UNIT):
            other = load_i32(copies + 4 * slot)
            if other >= 0:
                store_i16(target + 2 * other, load_i16(vector + 2 * slot))


@inline
def _quantize_pairs(
    lin: Any, x: int, inverse: float, first: int, end: int, out: int, scratch: int
) -> None:
    """The integers i16[end - first, 2] of slots first .. end."""
    factor = splat(f32x8, inverse)
    for slot in range(first, end, UNIT):
        _gather(lin, x, 2 * slot, scratch)
        for i in range(0, 2 * UNIT, 8):
            value = _rounded(mul(load(f32x8, scratch + 4 * i), factor), lin.act_limit)
            store(out + 4 * (slot - first) + 2 * i, trunc(i16x8, value))


@inline
def _take(book: int, shift: int, numbers: int, chosen: int, rest: int) -> None:
    """Write the chosen centroids of UNIT slots, and leave the rest for the next stage."""
    for slot in range(UNIT):
        code = load_i32(numbers + 4 * slot)
        store_i16(chosen + 2 * slot, load_i16(book + 2 * (code * UNIT + slot)))
    if shift:
        for i in range(0, 2 * UNIT, 16):
            taken = shl(sext(i16x16, load(i8x16, chosen + i)), shift)
            store(rest + 2 * i, sub(load(i16x16, rest + 2 * i), taken))


@dataclass(frozen=True)
class Search:
    """The searches of a kernel set for one block of UNIT slots, by one distance.

    x: i16[UNIT, 2] at `rest`, numbers of centroids i32[UNIT] at `out`.

    nearest(book, count, shift, rest, out): for one token, from the codebook as it is
    expand(book, count, shift, out): 128 bytes for each centroid, what does not depend on x
    nearest_some(expanded, count, rest, rest_bytes, tokens, out): for 1 to `at_once` tokens;
        numbers of token t at out + 4 UNIT t
    """

    nearest: Any
    expand: Any
    nearest_some: Any
    at_once: int


def make_code_slots(squared: Search, chebyshev: Search) -> Any:
    """The function `code_slots` of a kernel set."""
    by_squares, by_largest = _make_coding(squared), _make_coding(chebyshev)

    @inline
    def code_slots(
        lin: Any,
        tokens: int,
        x: int,
        x_bytes: int,
        first: int,
        end: int,
        act: int,
        act_bytes: int,
        codes: int,
        inverses: int,
        scratch: int,
    ) -> None:
        """As `plain.code_slots`.

        scratch: NUMBERS_BYTES, 128 for each centroid, 4 for each slot of each token.
        """
        if not lin.fast_search:
            plain.code_slots(
                lin, tokens, x, x_bytes, first, end, act, act_bytes, codes, inverses, scratch
            )
        elif lin.chebyshev:
            by_largest(
                lin, tokens, x, x_bytes, first, end, act, act_bytes, codes, inverses, scratch
            )
        else:
            by_squares(
                lin, tokens, x, x_bytes, first, end, act, act_bytes, codes, inverses, scratch
            )

    return code_slots


def _make_coding(search: Search) -> Any:
    """`code_slots` where the layout is that of vector searches."""
    nearest, expand, nearest_some = search.nearest, search.expand, search.nearest_some
    at_once = search.at_once
    assert at_once <= SEARCH_TOKENS

    @inline
    def code_block(
        lin: Any,
        stage: int,
        slot: int,
        numbers: int,
        rest: int,
        vectors: int,
        codes: int,
    ) -> None:
        """Write what was found for UNIT slots of one token."""
        book = lin.act_codebook + (stage * lin.slots + slot) * lin.act_centroids * 2
        shift = STAGE_BITS * (lin.act_stages - 1 - stage)
        vector = vectors + 2 * stage * lin.orders * lin.slots
        _take(book, shift, numbers, vector + 2 * slot, rest)
        _spread(lin, slot, vector)
        if codes:
            for i in range(UNIT):
                store_i8(codes + stage * lin.slots + slot + i, load_i32(numbers + 4 * i))

    @inline
    def code_slots(
        lin: Any,
        tokens: int,
        x: int,
        x_bytes: int,
        first: int,
        end: int,
        act: int,
        act_bytes: int,
        codes: int,
        inverses: int,
        scratch: int,
    ) -> None:
        expanded = scratch + NUMBERS_BYTES
        rests = expanded + 128 * lin.act_centroids
        rest_bytes = 4 * (end - first)
        code_bytes = lin.act_stages * lin.slots if codes else 0
        together = at_once if tokens >= EXPAND_TOKENS else 1
        for t in range(tokens):
            inverse = load_f32(inverses + 4 * t)
            rest = rests + t * rest_bytes
            _quantize_pairs(lin, x + t * x_bytes, inverse, first, end, rest, scratch)
        for slot in range(first, end, UNIT):
            for stage in range(lin.act_stages):
                book = lin.act_codebook + (stage * lin.slots + slot) * lin.act_centroids * 2
                shift = STAGE_BITS * (lin.act_stages - 1 - stage)
                if together > 1:
                    expand(book, lin.act_centroids, shift, expanded)
                for t in range(0, tokens, together):
                    rest = rests + t * rest_bytes + 4 * (slot - first)
                    count = min(together, tokens - t)
                    if together > 1:
                        nearest_some(expanded, lin.act_centroids, rest, rest_bytes, count, scratch)
                    elif shift == 0:  # constants, for a loop without shifts
                        nearest(book, lin.act_centroids, 0, rest, scratch)
                    else:
                        nearest(book, lin.act_centroids, shift, rest, scratch)
                    for n in range(count):
                        code_block(
                            lin,
                            stage,
                            slot,
                            scratch + 4 * UNIT * n,
                            rest + n * rest_bytes,
                            act + (t + n) * act_bytes,
                            codes + (t + n) * code_bytes,
                        )

    return code_slots
