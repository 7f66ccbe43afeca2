"""The kernels of a LUT linear in plain scalar code: any configuration, any processor.

Each function works on one record `lin` of `layout.LINEAR` and on byte addresses. The other kernel
sets define the same functions and call these where a layout is not theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.config import ACT_LIMIT, STAGE_BITS
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import SEGMENT_COLUMNS, TILE, UNIT
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
    """max |x[perm] * scale| of one token. x: address of f32[D]."""
    top = np.float32(0)
    for i in range(lin.slots * lin.vec_len):
        top = max(top, abs(_scaled(lin, x, i)))
    return top


@inline
def quantize_block(lin: Any, x: int, inverse: np.float32, block: int, act: int) -> None:
    """Scheme "weight": UNIT slots of one token as i8[slots * v] at `act`."""
    size = UNIT * lin.vec_len
    for i in range(block * size, (block + 1) * size):
        store_i8(act + i, _round(_scaled(lin, x, i) * inverse, 127))


@inline
def code_block(
    lin: Any,
    tokens: int,
    x: int,
    x_bytes: int,
    block: int,
    act: int,
    act_bytes: int,
    codes: int,
    scratch: int,
) -> None:
    """Scheme "co": code UNIT slots of some tokens.

    x: f32[D] of token t at x + t * x_bytes; act: i8[Sa, slots * v] receives the chosen centroids,
    every act_bytes; codes: u8[tokens, Sa, slots] their numbers, unless 0; scratch: 64 bytes.
    """
    for t in range(tokens):
        for slot in range(block * UNIT, (block + 1) * UNIT):
            numbers = codes + t * lin.act_stages * lin.slots if codes else 0
            _code_slot(lin, x + t * x_bytes, slot, act + t * act_bytes, numbers, scratch)


@inline
def _code_slot(lin: Any, x: int, slot: int, act: int, codes: int, scratch: int) -> None:
    v = lin.vec_len
    limit = ACT_LIMIT << (STAGE_BITS * (lin.act_stages - 1))
    for i in range(v):
        store_i32(scratch + 4 * i, _round(_scaled(lin, x, slot * v + i), limit))
    for stage in range(lin.act_stages):
        shift = STAGE_BITS * (lin.act_stages - 1 - stage)
        code = _nearest(lin, stage, slot, shift, scratch)
        row = stage * lin.slots + slot
        book = lin.act_codebook + (row * lin.act_centroids + code) * v
        for i in range(v):
            chosen = load_i8(book + i)
            store_i8(act + row * v + i, chosen)
            rest = load_i32(scratch + 4 * i) - (chosen << shift)
            store_i32(scratch + 4 * i, rest)
        if codes:
            store_i8(codes + row, code)


@inline
def _nearest(lin: Any, stage: int, slot: int, shift: int, vector: int) -> int:
    """Number of the centroid with the least squared distance; the lowest of equals."""
    v = lin.vec_len
    book = lin.act_codebook + (stage * lin.slots + slot) * lin.act_centroids * v
    best, code = _FAR, 0
    for k in range(lin.act_centroids):
        distance = np.int64(0)
        for i in range(v):
            rest = load_i32(vector + 4 * i) - (load_i8(book + k * v + i) << shift)
            distance += rest * rest
        if distance < best:
            best, code = distance, k
    return code


@inline
def segment_start(lin: Any, segment: int) -> int:
    columns = SEGMENT_COLUMNS + lin.act_stages * lin.weight_stages
    return load_i64(lin.segment_table + 8 * segment * columns)


@inline
def segment_slots(lin: Any, segment: int) -> int:
    columns = SEGMENT_COLUMNS + lin.act_stages * lin.weight_stages
    return load_i64(lin.segment_table + 8 * (segment * columns + 1))


@inline
def segment_shift(lin: Any, segment: int, act_stage: int, stage: int) -> int:
    columns = SEGMENT_COLUMNS + lin.act_stages * lin.weight_stages
    index = segment * columns + SEGMENT_COLUMNS + act_stage * lin.weight_stages + stage
    return load_i64(lin.segment_table + 8 * index)


@inline
def stream_index(lin: Any, segment: int, stage: int) -> int:
    """Place of the first slot of (segment, weight stage) in a stream ordered that way."""
    first = segment_start(lin, segment)
    return first * lin.weight_stages + stage * segment_slots(lin, segment)


@inline
def make_rows(
    lin: Any, group: int, segment: int, stage: int, act_stage: int, act: int, rows: int
) -> None:
    """Table rows of one segment: row_stride bytes per slot at `rows`.

    act: i8[slots * v], the activation vectors of one token and activation stage.
    """
    v = lin.vec_len
    place = group * lin.slots * lin.weight_stages + stream_index(lin, segment, stage)
    plane = act_stage * lin.groups * lin.slots * lin.weight_stages
    book = lin.weight_codebook + place * lin.slot_bytes
    shifts = lin.shift + plane + place
    vector = act + segment_start(lin, segment) * v
    limit = 1 << (lin.table_bits - 1)
    for slot in range(segment_slots(lin, segment)):
        shift = load_u8(shifts + slot)
        for k in range(lin.weight_centroids):
            dot = np.int64(0)
            for i in range(v):
                dot += load_i8(vector + slot * v + i) * load_i8(
                    book + slot * lin.slot_bytes + k * v + i
                )
            entry = (dot - (dot < 0) + (1 << (shift - 1))) >> shift
            entry = max(-limit, min(limit - 1, entry))
            store_i8(rows + slot * lin.row_stride + k, entry + lin.row_bias)


@inline
def lookup(
    lin: Any,
    segment: int,
    stage: int,
    codes: int,
    tiles: int,
    rows: int,
    rows_bytes: int,
    vectors: int,
    acc: int,
    acc_bytes: int,
    scratch: int,
) -> None:
    """Add tiles of one segment and weight stage to the accumulators of several tokens.

    codes: [tiles, slots, code_bytes]. `vectors` activation vectors, token by token and in each
    stage by stage; the rows of vector n are at rows + n * rows_bytes, the accumulators
    i32[tiles, TILE] of token t at acc + t * acc_bytes. scratch is not used here.
    """
    slots = segment_slots(lin, segment)
    for n in range(vectors):
        shift = segment_shift(lin, segment, n % lin.act_stages, stage)
        for tile in range(tiles):
            _lookup_tile(
                lin,
                codes + tile * slots * lin.code_bytes,
                rows + n * rows_bytes,
                slots,
                shift,
                acc + n // lin.act_stages * acc_bytes + 4 * TILE * tile,
            )


@inline
def _lookup_tile(lin: Any, codes: int, rows: int, slots: int, shift: int, acc: int) -> None:
    for slot in range(slots):
        row = rows + slot * lin.row_stride
        tile = codes + slot * lin.code_bytes
        for i in range(TILE):
            if lin.code_bytes == TILE:
                code = load_u8(tile + i)
            else:
                byte = load_u8(tile + 4 * (i % 8) + 2 * (i // 8 % 2) + i // 16 % 2)
                code = byte >> 4 if i >= TILE // 2 else byte & 15
            entry = load_i8(row + code) << shift
            store_i32(acc + 4 * i, load_i32(acc + 4 * i) + entry)
