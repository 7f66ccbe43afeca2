"""The kernels of a LUT linear in plain scalar code: any configuration, any processor.

Each function works on one record `lin` of `layout.LINEAR` and on byte addresses. The other kernel
sets define the same functions and call these where a layout is not theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.config import STAGE_BITS
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import SEGMENT, SEGMENT_COLUMNS, TILE
from lutllm.emulator.simd import (
    load_f32,
    load_i8,
    load_i32,
    load_i64,
    load_u8,
    store_i8,
    store_i32,
)

_FAR = np.int64(1) << 62


@inline
def _round(value: Any, limit: int) -> Any:
    """clamp(rint(value)) to +-limit."""
    rounded = np.rint(value)
    if rounded > np.float32(limit):
        return limit
    if rounded < np.float32(-limit):
        return -limit
    return np.int64(rounded)


@inline
def _scaled(lin: Any, x: int, index: int) -> Any:
    """x[perm[index]] * scale[index]; the scale of a padding element is 0."""
    return load_f32(x + 4 * load_i32(lin.perm + 4 * index)) * load_f32(lin.scale + 4 * index)


@inline
def largest_input(lin: Any, x: int) -> Any:
    """The largest |x * input scale| of one token. x: address of f32[D]."""
    return largest_of(lin, x, 0)


@inline
def largest_of(lin: Any, x: int, first: int) -> Any:
    """The same of the channels from `first` on."""
    top = np.float32(0)
    for i in range(first, lin.in_features):
        top = max(top, abs(load_f32(x + 4 * i) * load_f32(lin.channel_scale + 4 * i)))
    return top


@inline
def spread(lin: Any, slot: int, vector: int) -> None:
    """Copy the activation vector of a slot to the other slot orders.

    vector: address of i8[slots * v] of the first order; the others follow it.
    """
    v = lin.vec_len
    for order in range(1, lin.orders):
        other = load_i32(lin.copies + 4 * ((order - 1) * lin.slots + slot))
        if other >= 0:
            for i in range(v):
                value = load_i8(vector + slot * v + i)
                store_i8(vector + (order * lin.slots + other) * v + i, value)


@inline
def quantize_slots(
    lin: Any, x: int, inverse: Any, first: int, end: int, act: int, scratch: int
) -> None:
    """Scheme "weight": slots first .. end (whole UNITs) of one token.

    act: i8[orders, slots * v]; scratch is not used here.
    """
    v = lin.vec_len
    for slot in range(first, end):
        for i in range(slot * v, (slot + 1) * v):
            store_i8(act + i, _round(_scaled(lin, x, i) * inverse, 127))
        spread(lin, slot, act)


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
    """Scheme "co": code slots first .. end (whole UNITs) of some tokens.

    x: f32[D] of token t at x + t * x_bytes; inverses: f32[tokens], what scaled activations are
    multiplied with, 1 where tokens have no scale; act: i8[Sa, orders, slots * v] receives the
    chosen centroids, every act_bytes; codes: u8[tokens, Sa, slots] their numbers, unless 0;
    scratch: 64 bytes.
    """
    for t in range(tokens):
        numbers = codes + t * lin.act_stages * lin.slots if codes else 0
        for slot in range(first, end):
            _code_slot(
                lin,
                x + t * x_bytes,
                load_f32(inverses + 4 * t),
                slot,
                act + t * act_bytes,
                numbers,
                scratch,
            )


@inline
def _code_slot(
    lin: Any, x: int, inverse: Any, slot: int, act: int, codes: int, scratch: int
) -> None:
    v = lin.vec_len
    for i in range(v):
        value = _scaled(lin, x, slot * v + i) * inverse
        store_i32(scratch + 4 * i, _round(value, lin.act_limit))
    for stage in range(lin.act_stages):
        shift = STAGE_BITS * (lin.act_stages - 1 - stage)
        code = _nearest(lin, stage, slot, shift, scratch)
        book = lin.act_codebook + ((stage * lin.slots + slot) * lin.act_centroids + code) * v
        vector = act + stage * lin.orders * lin.slots * v
        for i in range(v):
            chosen = load_i8(book + i)
            store_i8(vector + slot * v + i, chosen)
            rest = load_i32(scratch + 4 * i) - (chosen << shift)
            store_i32(scratch + 4 * i, rest)
        spread(lin, slot, vector)
        if codes:
            store_i8(codes + stage * lin.slots + slot, code)


@inline
def _nearest(lin: Any, stage: int, slot: int, shift: int, vector: int) -> int:
    """Number of the centroid with the least distance; the lowest of equals."""
    v = lin.vec_len
    book = lin.act_codebook + (stage * lin.slots + slot) * lin.act_centroids * v
    best, code = _FAR, 0
    for k in range(lin.act_centroids):
        distance = np.int64(0)
        for i in range(v):
            rest = load_i32(vector + 4 * i) - (load_i8(book + k * v + i) << shift)
            distance = max(distance, abs(rest)) if lin.chebyshev else distance + rest * rest
        if distance < best:
            best, code = distance, k
    return code


@inline
def segment_field(lin: Any, segment: int, field: int) -> int:
    """A column of the segment table; the shift of act stage n is SEGMENT_COLUMNS + n."""
    columns = SEGMENT_COLUMNS + lin.act_stages
    return load_i64(lin.segment_table + 8 * (segment * columns + field))


@inline
def segment_slots(lin: Any, segment: int) -> int:
    return segment_field(lin, segment, 2)


@inline
def segment_place(lin: Any, segment: int) -> int:
    return segment_field(lin, segment, 3)


@inline
def segment_wide(lin: Any, segment: int) -> bool:
    """Whether the entries of a segment have two bytes."""
    return lin.row_planes == 2 and segment_field(lin, segment, 4) < lin.wide_stages


@inline
def segment_exact(lin: Any, segment: int) -> bool:
    """Whether the entries of a segment are the dot products themselves."""
    return (lin.exact >> segment_field(lin, segment, 4)) & 1 == 1


@inline
def segment_vector(lin: Any, segment: int, act_stage: int) -> int:
    """Offset of the segment's first activation element in i8[Sa, orders, slots * v]."""
    order, first = segment_field(lin, segment, 0), segment_field(lin, segment, 1)
    return ((act_stage * lin.orders + order) * lin.slots + first) * lin.vec_len


@inline
def make_rows(
    lin: Any,
    group: int,
    segment: int,
    act: int,
    act_bytes: int,
    tokens: int,
    rows: int,
    rows_bytes: int,
) -> None:
    """Table rows of one segment: row_stride bytes per slot, in one plane or two.

    act: i8[Sa, orders, slots * v], the activation vectors of a token, every act_bytes; those of
    activation stage s of token t give the rows at rows + (t * Sa + s) * rows_bytes.
    """
    for n in range(tokens * lin.act_stages):
        t, act_stage = n // lin.act_stages, n % lin.act_stages
        vector = act + t * act_bytes + segment_vector(lin, segment, act_stage)
        _make_rows_of(lin, group, segment, act_stage, vector, rows + n * rows_bytes)


@inline
def _make_rows_of(
    lin: Any, group: int, segment: int, act_stage: int, vector: int, rows: int
) -> None:
    v = lin.vec_len
    place = group * lin.stream_slots + segment_place(lin, segment)
    book = lin.weight_codebook + place * lin.slot_bytes
    shifts = lin.shift + act_stage * lin.groups * lin.stream_slots + place
    wide = segment_wide(lin, segment)
    bits = lin.table_bits if wide else min(lin.table_bits, 8)
    limit = 1 << (bits - 1)
    for slot in range(segment_slots(lin, segment)):
        shift = load_u8(shifts + slot)
        for k in range(lin.weight_centroids):
            dot = np.int64(0)
            for i in range(v):
                dot += load_i8(vector + slot * v + i) * load_i8(
                    book + slot * lin.slot_bytes + k * v + i
                )
            entry = dot
            if shift > 0:
                entry = (dot - (dot < 0) + (1 << (shift - 1))) >> shift
            entry = max(-limit, min(limit - 1, entry))
            at = rows + slot * lin.row_stride + k
            if wide:
                store_i8(at + SEGMENT * lin.row_stride, entry & 255)
                entry = entry >> 8
            store_i8(at, entry + lin.row_bias)


@inline
def lookup(
    lin: Any,
    segment: int,
    codes: int,
    tiles: int,
    rows: int,
    rows_bytes: int,
    vectors: int,
    acc: int,
    acc_bytes: int,
    scratch: int,
) -> None:
    """Add tiles of one segment to the accumulators of several tokens.

    codes: [tiles, slots, code_bytes]. `vectors` activation vectors, token by token and in each
    stage by stage; the rows of vector n are at rows + n * rows_bytes, the accumulators
    i32[tiles, TILE] of token t at acc + t * acc_bytes. scratch is not used here.
    """
    slots = segment_slots(lin, segment)
    wide = segment_wide(lin, segment)
    for n in range(vectors):
        shift = segment_field(lin, segment, SEGMENT_COLUMNS + n % lin.act_stages)
        for tile in range(tiles):
            _lookup_tile(
                lin,
                wide,
                codes + tile * slots * lin.code_bytes,
                rows + n * rows_bytes,
                slots,
                shift,
                acc + n // lin.act_stages * acc_bytes + 4 * TILE * tile,
            )


@inline
def _lookup_tile(
    lin: Any, wide: bool, codes: int, rows: int, slots: int, shift: int, acc: int
) -> None:
    for slot in range(slots):
        row = rows + slot * lin.row_stride
        tile = codes + slot * lin.code_bytes
        for i in range(TILE):
            if lin.code_bytes == TILE:
                code = load_u8(tile + i)
            else:
                byte = load_u8(tile + 4 * (i % 8) + 2 * (i // 8 % 2) + i // 16 % 2)
                code = byte >> 4 if i >= TILE // 2 else byte & 15
            entry = load_i8(row + code)
            if wide:
                entry = (entry << 8) + load_u8(row + SEGMENT * lin.row_stride + code)
            store_i32(acc + 4 * i, load_i32(acc + 4 * i) + (entry << shift))


@inline
def multiply_panel(*_: Any) -> None:
    """No linear is `multiplied` here."""
