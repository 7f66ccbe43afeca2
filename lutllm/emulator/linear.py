"""A LUT linear over a block of tokens: coding of the activations, lookup, dequantization.

`code_inputs` and `apply_tables` are the two phases, each run by all threads of a team with a
barrier between them. `run_linear` does both from Python, for tests and analysis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.config import CENTROID_LIMIT, TINY_INPUT
from lutllm.emulator.activations import NUMBERS_BYTES
from lutllm.emulator.jit import inline, kernel
from lutllm.emulator.kernels import (
    code_slots,
    largest_input,
    lookup,
    make_rows,
    multiply_panel,
    quantize_slots,
)
from lutllm.emulator.layout import (
    PANEL_COLUMNS,
    PANEL_TILES,
    SEGMENT,
    TILE,
    UNIT,
    PackedLinear,
    aligned,
    product_bytes,
)
from lutllm.emulator.plain import segment_place, segment_slots
from lutllm.emulator.rotation import rotate
from lutllm.emulator.simd import (
    add,
    atomic_add,
    f32x8,
    i32x8,
    int_to_float,
    load,
    load_f32,
    load_i32,
    load_i64,
    mul,
    splat,
    store,
    store_f32,
    store_i32,
)
from lutllm.emulator.team import Team, barrier, share

#: Tokens whose rows are generated together.
TOKEN_BLOCK = 64
#: Tokens coded together.
CODE_TOKENS = 16
_TINY = np.float32(TINY_INPUT)
_LARGEST = np.float32(CENTROID_LIMIT)
_INVERSES_BYTES = 4 * CODE_TOKENS
_ACC_BYTES = 4 * TILE * PANEL_TILES
_SUMS_BYTES = TOKEN_BLOCK * _ACC_BYTES
_ROWS_AT = _SUMS_BYTES + 2 * SEGMENT * TILE


def scratch_bytes(record: np.ndarray) -> int:
    """Scratch one thread needs for linears like `record` (LINEAR[n])."""
    rows = (
        (record["row_stride"] * record["row_planes"] * record["act_stages"]).max()
        * SEGMENT
        * TOKEN_BLOCK
    )
    search = (
        NUMBERS_BYTES
        + 128 * record["act_centroids"].max()
        + 4 * CODE_TOKENS * record["slots"].max()
        + _inputs_bytes(record)
    )
    products = _SUMS_BYTES + product_bytes(record, TOKEN_BLOCK).max()
    return int(max(_ROWS_AT + rows, products, search))


def _inputs_bytes(record: np.ndarray) -> int:
    """Room for the scales of CODE_TOKENS tokens, and for rotated inputs where there are any."""
    rotated = np.where(record["rotation"] > 0, record["in_features"], 0).max()
    return _INVERSES_BYTES + 4 * CODE_TOKENS * int(rotated)


def act_bytes(record: np.ndarray) -> int:
    """Bytes of the coded activations of one token: i8[Sa, orders, slots * v]."""
    vectors = record["act_stages"] * record["orders"] * record["slots"]
    return int((vectors * record["vec_len"]).max())


# ---------------------------------------------------------------- phase 1


@inline
def code_inputs(
    lin: Any,
    tokens: int,
    x: int,
    x_bytes: int,
    act: int,
    act_bytes: int,
    scales: int,
    codes: int,
    scratch: int,
    turns: int,
    member: int,
    members: int,
) -> None:
    """Code the inputs of `tokens` tokens.

    x: f32[D] of token t at x + t * x_bytes. act receives i8[Sa, orders, slots * v] per token, every
    act_bytes; scales f32[tokens] where tokens have them; codes u8[tokens, Sa, slots] unless 0. Few
    tokens are split by slots (by token where each needs all of its inputs); many are taken in
    turn, see `turns` in `apply_tables`.
    """
    first_slot, end_slot = 0, lin.slots
    t, end = 0, tokens
    in_turn = tokens >= CODE_TOKENS * members
    if in_turn:
        t = atomic_add(turns, CODE_TOKENS)
    elif (lin.by_token or lin.rotation) and tokens > 1:
        t, end = share(tokens, member, members)
    else:
        low, high = share(lin.slots // UNIT, member, members)
        first_slot, end_slot = low * UNIT, high * UNIT
    while t < end:
        _code_some(
            lin,
            min(CODE_TOKENS, end - t),
            x + t * x_bytes,
            x_bytes,
            first_slot,
            end_slot,
            act + t * act_bytes,
            act_bytes,
            scales + 4 * t,
            codes + t * lin.act_stages * lin.slots if codes else 0,
            scratch,
        )
        t = atomic_add(turns, CODE_TOKENS) if in_turn else t + CODE_TOKENS


@inline
def _code_some(
    lin: Any,
    tokens: int,
    x: int,
    x_bytes: int,
    first: int,
    end: int,
    act: int,
    act_bytes: int,
    scales: int,
    codes: int,
    scratch: int,
) -> None:
    """Slots first .. end of at most CODE_TOKENS tokens.

    One token is rotated, and its largest input sought, by every member that has a part of it.
    """
    inverses = scratch
    free = scratch + _INVERSES_BYTES
    source, source_bytes = x, x_bytes
    if lin.rotation:
        source, source_bytes = free, 4 * lin.in_features
        for t in range(tokens):
            rotate(lin, x + t * x_bytes, source + t * source_bytes)
        free += tokens * source_bytes
    for t in range(tokens):
        inverse = np.float32(1)
        if lin.by_token:
            top = largest_input(lin, source + t * source_bytes)
            inverse = np.float32(lin.act_limit) / top if top > _TINY else np.float32(0)
            if first == 0:
                store_f32(scales + 4 * t, top / _LARGEST)
        store_f32(inverses + 4 * t, inverse)
    if not lin.by_weight:
        code_slots(
            lin,
            tokens,
            source,
            source_bytes,
            first,
            end,
            act,
            act_bytes,
            codes,
            inverses,
            free,
        )
        return
    for t in range(tokens):
        quantize_slots(
            lin,
            source + t * source_bytes,
            load_f32(inverses + 4 * t),
            first,
            end,
            act + t * act_bytes,
            free,
        )


# ---------------------------------------------------------------- phase 2


@inline
def apply_tables(
    lin: Any,
    tokens: int,
    act: int,
    act_bytes: int,
    scales: int,
    y: int,
    y_bytes: int,
    accumulators: int,
    residual: bool,
    scratch: int,
    turns: int,
    member: int,
    members: int,
) -> None:
    """y = tables applied to coded inputs, or y += with `residual`.

    y: f32[M] of token t at y + t * y_bytes. accumulators: i32[tokens, M] receives the integer
    sums, unless 0. Tiles of few tokens are split evenly. Of many tokens, members take a panel of
    TOKEN_BLOCK tokens in turn, so that a slow processor gets less; turns: address of an int64 that
    counts them, 0 before.
    """
    if tokens < TOKEN_BLOCK * members:
        first, end = share(lin.tiles, member, members)
        for panel in range(lin.panels):
            _apply_panel(
                lin,
                panel,
                first,
                end,
                tokens,
                act,
                act_bytes,
                scales,
                y,
                y_bytes,
                accumulators,
                residual,
                scratch,
            )
        return
    blocks = (tokens + TOKEN_BLOCK - 1) // TOKEN_BLOCK
    item = atomic_add(turns, 1)
    while item < blocks * lin.panels:
        t = item % blocks * TOKEN_BLOCK
        _apply_panel(
            lin,
            item // blocks,
            0,
            lin.tiles,
            min(TOKEN_BLOCK, tokens - t),
            act + t * act_bytes,
            act_bytes,
            scales + 4 * t,
            y + t * y_bytes,
            y_bytes,
            accumulators + 4 * t * lin.out_features if accumulators else 0,
            residual,
            scratch,
        )
        item = atomic_add(turns, 1)


@inline
def _apply_panel(
    lin: Any,
    panel: int,
    tile0: int,
    tile1: int,
    tokens: int,
    act: int,
    act_bytes: int,
    scales: int,
    y: int,
    y_bytes: int,
    accumulators: int,
    residual: bool,
    scratch: int,
) -> None:
    """The tiles of one panel that lie within tile0 .. tile1."""
    table = lin.panel_table + 8 * PANEL_COLUMNS * panel
    outputs, first = load_i64(table + 16), load_i64(table + 24)
    tiles = (outputs + TILE - 1) // TILE
    low, high = max(tile0 - first, 0), min(tile1 - first, tiles)
    if low >= high:
        return
    for t in range(0, tokens, TOKEN_BLOCK):
        count = min(TOKEN_BLOCK, tokens - t)
        own = act + t * act_bytes
        if lin.multiplied:
            multiply_panel(
                lin,
                table,
                tiles,
                low,
                high,
                count,
                own,
                act_bytes,
                scratch,
                _ACC_BYTES,
                scratch + _SUMS_BYTES,
            )
        else:
            _clear(lin, scratch, count, low, high)
            _sum_panel(lin, table, tiles, low, high, count, own, act_bytes, scratch)
        for n in range(t, t + count):
            _dequantize(
                lin,
                table,
                low,
                high,
                scratch + (n - t) * _ACC_BYTES,
                load_f32(scales + 4 * n),
                y + n * y_bytes,
                accumulators + 4 * n * lin.out_features if accumulators else 0,
                residual,
            )


@inline
def _clear(lin: Any, acc: int, tokens: int, low: int, high: int) -> None:
    start = splat(i32x8, -lin.sum_bias)
    for t in range(tokens):
        for i in range(low * TILE, high * TILE, 8):
            store(acc + t * _ACC_BYTES + 4 * i, start)


@inline
def _sum_panel(
    lin: Any,
    table: int,
    tiles: int,
    low: int,
    high: int,
    tokens: int,
    act: int,
    act_bytes: int,
    scratch: int,
) -> None:
    """Integer sums of tiles low..high of one panel, for up to TOKEN_BLOCK tokens."""
    group, offset = load_i64(table), load_i64(table + 32)
    split = scratch + _SUMS_BYTES
    rows = scratch + _ROWS_AT
    rows_bytes = SEGMENT * lin.row_stride * lin.row_planes
    vectors = tokens * lin.act_stages
    for segment in range(lin.segments):
        slots = segment_slots(lin, segment)
        make_rows(lin, group, segment, act, act_bytes, tokens, rows, rows_bytes)
        place = segment_place(lin, segment) * tiles + low * slots
        lookup(
            lin,
            segment,
            lin.codes + offset + place * lin.code_bytes,
            high - low,
            rows,
            rows_bytes,
            vectors,
            scratch + 4 * TILE * low,
            _ACC_BYTES,
            split,
        )


@inline
def _dequantize(
    lin: Any,
    table: int,
    low: int,
    high: int,
    acc: int,
    token_scale: Any,
    y: int,
    sums: int,
    residual: bool,
) -> None:
    """The float steps of `intmath.dequantize`, each rounded by itself, then the residual."""
    first, outputs = load_i64(table + 8), load_i64(table + 16)
    end = min(high * TILE, outputs)
    whole = low * TILE + (end - low * TILE) // 8 * 8
    factor = splat(f32x8, token_scale)
    for i in range(low * TILE, whole, 8):
        m = 4 * (first + i)
        value = mul(
            int_to_float(f32x8, load(i32x8, acc + 4 * i)), load(f32x8, lin.output_scale + m)
        )
        if lin.by_token:
            value = mul(value, factor)
        if lin.bias:
            value = add(value, load(f32x8, lin.bias + m))
        if residual:
            value = add(load(f32x8, y + m), value)
        store(y + m, value)
    for i in range(whole, end):
        m = 4 * (first + i)
        single = np.float32(load_i32(acc + 4 * i)) * load_f32(lin.output_scale + m)
        if lin.by_token:
            single = single * token_scale
        if lin.bias:
            single = single + load_f32(lin.bias + m)
        if residual:
            single = load_f32(y + m) + single
        store_f32(y + m, single)
    if sums:
        for i in range(low * TILE, end):
            store_i32(sums + 4 * (first + i), load_i32(acc + 4 * i))


# ---------------------------------------------------------------- from Python


@kernel
def _run(
    lins: np.ndarray,
    tokens: int,
    x: int,
    act: int,
    act_bytes: int,
    scales: int,
    codes: int,
    y: int,
    accumulators: int,
    scratch: int,
    scratch_stride: int,
    turns: int,
    arrivals: int,
    member: int,
    members: int,
) -> None:
    lin = lins[0]
    own = scratch + member * scratch_stride
    code_inputs(
        lin,
        tokens,
        x,
        4 * lin.in_features,
        act,
        act_bytes,
        scales,
        codes,
        own,
        turns,
        member,
        members,
    )
    barrier(arrivals, 1, members)
    apply_tables(
        lin,
        tokens,
        act,
        act_bytes,
        scales,
        y,
        4 * lin.out_features,
        accumulators,
        False,
        own,
        turns + 8,
        member,
        members,
    )


def run_linear(packed: PackedLinear, x: np.ndarray, team: Team) -> dict[str, np.ndarray]:
    """One linear on x: f32[T, D].

    Returns y f32[T, M], accumulators i32[T, M], codes u8[T, Sa, P] (scheme "co"), token_scale
    f32[T] where tokens have them.
    """
    lin = packed.record[0]
    tokens = len(x)
    x = np.ascontiguousarray(x, np.float32)
    stages, slots = int(lin["act_stages"]), int(lin["slots"])
    act = np.zeros((tokens, act_bytes(packed.record)), np.int8)
    turns = np.zeros(2, np.int64)
    scales = np.zeros(tokens, np.float32)
    codes = np.zeros((tokens, stages, slots), np.uint8)
    y = np.zeros((tokens, int(lin["out_features"])), np.float32)
    sums = np.zeros(y.shape, np.int32)
    stride = -(-scratch_bytes(packed.record) // 64) * 64
    scratch = aligned(stride * team.size, np.uint8)
    scratch[:] = 0
    addresses = [a.ctypes.data for a in (x, act, scales, codes, y, sums, scratch)]
    x_at, act_at, scales_at, codes_at, y_at, sums_at, scratch_at = addresses
    team.run(
        _run,
        packed.record,
        tokens,
        x_at,
        act_at,
        act.strides[0],
        scales_at,
        codes_at,
        y_at,
        sums_at,
        scratch_at,
        stride,
        turns.ctypes.data,
    )
    out: dict[str, np.ndarray] = {"y": y, "accumulators": sums}
    if lin["by_token"]:
        out["token_scale"] = scales
    if not lin["by_weight"]:
        position = packed.slot_position[0]
        out["codes"] = codes[..., np.argsort(position, kind="stable")[(position < 0).sum() :]]
    return out
