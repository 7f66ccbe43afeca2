"""Linears whose table entries are all dot products (`LutLinear.exact`): lookups as products.

They need no rows. With the centroids' first channels in the place of low bytes and their second
ones in the place of high bytes, the two instructions of a lookup look up and multiply: `vpdpbusd`
takes the activation of each slot where it took ones. Of many tokens, centroids are looked up once
and only multiplied for each: one instruction for 32 entries of two bytes, where rows take two. With
AMX one instruction multiplies the activations of 16 tokens with the centroids of 16 outputs in 32
slots.

Products need an unsigned factor, so centroids are packed with 128 added, and the sums of a token
start with what that adds, negated.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from lutllm.emulator.cpu import ISA
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import (
    AHEAD,
    CENTROID_BYTES,
    LINE_SLOTS,
    PART_BYTES,
    PARTS,
    QUAD,
    SEGMENT_COLUMNS,
    TILE,
)
from lutllm.emulator.plain import (
    segment_field,
    segment_place,
    segment_slots,
    segment_vector,
)
from lutllm.emulator.quads import (
    PLANE_BYTES,
    SPLIT_VECTORS,
    byte_constant,
    finish,
    indices_of,
    look_up,
    zeros,
)
from lutllm.emulator.simd import (
    Vector,
    broadcast,
    call_llvm,
    i8x8,
    i8x64,
    i32x16,
    intrinsic,
    load,
    load_at,
    load_i64,
    load_scalar_at,
    prefetch_at,
    splat,
    store,
    store_at,
    store_i64,
)

if ISA == "amx":
    from lutllm.emulator.amx import begin_tiles, end_tiles, multiply_tokens

_TILES = ISA == "amx"


def _split(kind: Vector) -> Any:
    """split(vector, out, sums) -> sums: activations i8[4 slots, 2] of quads as factors i8[2, 4].

    sums: i32x16, to which the activations are added.
    """

    @intrinsic
    def split(typingctx: Any, vector: Any, out: Any, sums: Any) -> Any:
        quad = [0, 2, 4, 6, 1, 3, 5, 7]
        lanes = [8 * n + i for n in range(kind.lanes // 8) for i in quad]

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            values = load_at(builder, kind, args[0], 0)
            mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), lanes)
            store_at(builder, args[1], 0, builder.shuffle_vector(values, values, mask))
            wide = ir.Constant(ir.VectorType(ir.IntType(32), 64), list(range(64)))
            if kind.lanes < 64:
                some = [*range(8), *[8] * 56]
                wide = ir.Constant(ir.VectorType(ir.IntType(32), 64), some)
            zero = ir.Constant(kind.llvm, [0] * kind.lanes)
            all_values = builder.shuffle_vector(values, zero, wide)
            return _multiply(
                builder, args[2], byte_constant([1] * 64), builder.bitcast(all_values, i32x16.llvm)
            )

        return i32x16(types.intp, types.intp, i32x16), codegen

    return split


_split_quad, _split_quads = _split(i8x8), _split(i8x64)


@intrinsic
def _total(typingctx: Any, sums: Any) -> Any:
    """The sum of all lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        name = "llvm.vector.reduce.add.v16i32"
        return builder.sext(call_llvm(builder, name, ir.IntType(32), [args[0]]), ir.IntType(64))

    return types.intp(i32x16), codegen


@inline
def _segment_bytes(slots: int) -> int:
    """Bytes of the factors of a segment: whole lines."""
    return -(-slots // LINE_SLOTS) * 2 * LINE_SLOTS


@inline
def _make_factors(lin: Any, vectors: int, out: int) -> int:
    """The factors of a token, segment by segment, filled up with zeros; returns its start.

    vectors: address of its activations i8[orders, slots * 2].
    """
    start = 0
    for segment in range(lin.segments):
        slots = segment_slots(lin, segment)
        vector = vectors + segment_vector(lin, segment, 0)
        sums = splat(i32x16, 0)
        many = slots // LINE_SLOTS * LINE_SLOTS
        for slot in range(0, many, LINE_SLOTS):
            sums = _split_quads(vector + 2 * slot, out + 2 * slot, sums)
        for slot in range(many, slots, QUAD):
            sums = _split_quad(vector + 2 * slot, out + 2 * slot, sums)
        for at in range(2 * slots, _segment_bytes(slots), 2 * QUAD):
            store_i64(out + at, 0)
        start -= 128 * _total(sums) << segment_field(lin, segment, SEGMENT_COLUMNS)
        out += _segment_bytes(slots)
    return start


def _multiply(builder: Any, total: Any, centroids: Any, factors: Any) -> Any:
    """total i32x16 plus centroids (+ 128) of four slots times i8[4], for 16 outputs."""
    name = "llvm.x86.avx512.vpdpbusd.512"
    return call_llvm(
        builder, name, i32x16.llvm, [total, builder.bitcast(centroids, i32x16.llvm), factors]
    )


def _factor_at(builder: Any, address: Any, offset: int) -> Any:
    """The 32 bits there in every lane."""
    return broadcast(builder, i32x16, load_scalar_at(builder, ir.IntType(32), address, offset))


@intrinsic
def _add_parts(typingctx: Any, first: Any, second: Any) -> Any:
    """Sums of two tuples, one by one."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pairs = zip(*(cgutils.unpack_tuple(builder, a) for a in args), strict=True)
        return context.make_tuple(builder, first, [builder.add(a, b) for a, b in pairs])

    return first(first, second), codegen


@intrinsic
def _quad_of_codes(
    typingctx: Any, centroids: Any, tile: Any, factors: Any, first: Any, second: Any
) -> Any:
    """Sums of either channel with the products of four slots added, for one vector.

    centroids, factors: addresses of those of the quad; tile: of its packed codes.
    """
    result = types.UniTuple(first, 2)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        indices = []
        for i in range(0, 2 * TILE, 64):
            prefetch_at(builder, args[1], AHEAD + i)
            indices += indices_of(builder, load_at(builder, i8x64, args[1], i))
        parts = []
        for channel, sums in enumerate(args[3:]):
            table = load_at(builder, i8x64, args[0], channel * PLANE_BYTES)
            factor = _factor_at(builder, args[2], QUAD * channel)
            new = [
                _multiply(builder, total, look_up(builder, [table], index), factor)
                for total, index in zip(cgutils.unpack_tuple(builder, sums), indices, strict=True)
            ]
            parts.append(context.make_tuple(builder, first, new))
        return context.make_tuple(builder, result, parts)

    return result(types.intp, types.intp, types.intp, first, second), codegen


@intrinsic
def _centroids_of(typingctx: Any, centroids: Any, tile: Any, out: Any) -> Any:
    """Look up the centroids of a quad for its packed codes at tile.

    centroids: address of those there are; out: [2 channels, 64], every PART_BYTES for PARTS parts.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        tables = [load_at(builder, i8x64, args[0], c * PLANE_BYTES) for c in range(2)]
        packed = [load_at(builder, i8x64, args[1], i) for i in range(0, 2 * TILE, 64)]
        each = [index for both in packed for index in indices_of(builder, both)]
        for part, index in enumerate(each):
            for channel, table in enumerate(tables):
                entries = look_up(builder, [table], index)
                store_at(builder, args[2], PART_BYTES * part + 64 * channel, entries)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def _quad_of_centroids(typingctx: Any, centroids: Any, factors: Any, slot: Any, sums: Any) -> Any:
    """sums [vectors][PARTS] with the products of four slots added.

    centroids: of the quad, as `_centroids_of` leaves them; factors: a tuple of addresses of those
    of all quads.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        each = cgutils.unpack_tuple(builder, args[1])
        new = cgutils.unpack_tuple(builder, args[3])
        offset = builder.mul(args[2], args[2].type(2))
        for channel in range(2):
            at = [builder.add(address, offset) for address in each]
            factor = [_factor_at(builder, a, QUAD * channel) for a in at]
            for part in range(PARTS):
                where = PART_BYTES * part + 64 * channel
                looked_up = load_at(builder, i8x64, args[0], where)
                for n, f in enumerate(factor):
                    i = n * PARTS + part
                    new[i] = _multiply(builder, new[i], looked_up, f)
        return context.make_tuple(builder, sums, new)

    return sums(types.intp, factors, types.intp, sums), codegen


@inline
def _multiply_some(centroids: int, factors: Any, slots: int, targets: Any, shifts: Any) -> None:
    """Add a tile, its centroids looked up, to the sums of some tokens. Tuples, all."""
    sums = zeros(factors, (0,), (0,))
    for slot in range(0, slots, QUAD):
        sums = _quad_of_centroids(centroids + 32 * slot, factors, slot, sums)
    finish(sums, (0,), (0,), targets, shifts)


@inline
def _multiply_all(
    centroids: int, factors: int, bytes_each: int, slots: int, tokens: int, shift: int, sums: int
) -> None:
    """Add a tile of a segment, its centroids looked up, to the sums i32[tokens, TILE].

    factors: of the first token in the segment; those of the next are bytes_each further.
    """
    done = 0
    if _TILES:
        done = multiply_tokens(centroids, factors, bytes_each, slots, tokens, shift, sums)
    fours = done + (tokens - done) // 4 * 4
    for n in range(done, fours, 4):
        a = factors + n * bytes_each
        some = (a, a + bytes_each, a + 2 * bytes_each, a + 3 * bytes_each)
        at = sums + 4 * TILE * n
        targets = (at, at + 4 * TILE, at + 8 * TILE, at + 12 * TILE)
        _multiply_some(centroids, some, slots, targets, (shift, shift, shift, shift))
    for n in range(fours, tokens):
        own = (factors + n * bytes_each,)
        _multiply_some(centroids, own, slots, (sums + 4 * TILE * n,), (shift,))


@inline
def _stream(
    lin: Any, table: int, tiles: int, low: int, high: int, factors: int, start: int, acc: int
) -> None:
    """All tiles of a panel for one token: codes are read front to back."""
    group, offset = load_i64(table), load_i64(table + 32)
    first = splat(i32x16, start)
    for i in range(low * TILE, high * TILE, 16):
        store(acc + 4 * i, first)
    for segment in range(lin.segments):
        slots, place = segment_slots(lin, segment), segment_place(lin, segment)
        book = lin.weight_codebook + (group * lin.stream_slots + place) * lin.slot_bytes
        shift = segment_field(lin, segment, SEGMENT_COLUMNS)
        codes = lin.codes + offset + place * tiles * lin.code_bytes
        for tile in range(low, high):
            at = codes + tile * slots * lin.code_bytes
            a, b = zeros((0,), (0,), (0,)), zeros((0,), (0,), (0,))
            for slot in range(0, slots, QUAD):
                a, b = _quad_of_codes(book + 32 * slot, at + 32 * slot, factors + 2 * slot, a, b)
            finish(_add_parts(a, b), (0,), (0,), (acc + 4 * TILE * tile,), (shift,))
        factors += _segment_bytes(slots)


@inline
def _sum_tile(
    lin: Any,
    table: int,
    tiles: int,
    tile: int,
    tokens: int,
    factors: int,
    bytes_each: int,
    sums: int,
    centroids: int,
) -> None:
    """Add one tile of a panel to the sums i32[tokens, TILE]; centroids: room for those of a
    segment.
    """
    group, offset = load_i64(table), load_i64(table + 32)
    for segment in range(lin.segments):
        slots, place = segment_slots(lin, segment), segment_place(lin, segment)
        book = lin.weight_codebook + (group * lin.stream_slots + place) * lin.slot_bytes
        codes = lin.codes + offset + (place * tiles + tile * slots) * lin.code_bytes
        for slot in range(0, slots, QUAD):
            _centroids_of(book + 32 * slot, codes + 32 * slot, centroids + 32 * slot)
        shift = segment_field(lin, segment, SEGMENT_COLUMNS)
        _multiply_all(centroids, factors, bytes_each, slots, tokens, shift, sums)
        factors += _segment_bytes(slots)


@inline
def multiply_panel(
    lin: Any,
    table: int,
    tiles: int,
    low: int,
    high: int,
    tokens: int,
    act: int,
    act_bytes: int,
    acc: int,
    acc_bytes: int,
    work: int,
) -> None:
    """Integer sums of tiles low .. high of one panel, of a linear that is `multiplied`.

    table: the row of the panel in `panel_table`; act: activations i8[orders, slots * 2] of a
    token, every act_bytes; acc: i32[tiles, TILE] of a token, every acc_bytes; work: room of
    `layout.product_bytes`.
    """
    bytes_each = lin.factor_bytes
    centroids = work
    sums = work + CENTROID_BYTES
    factors = sums + 4 * TILE * tokens
    few = tokens < SPLIT_VECTORS
    for t in range(tokens):
        own = factors + t * bytes_each
        start = _make_factors(lin, act + t * act_bytes, own)
        if few:
            _stream(lin, table, tiles, low, high, own, start, acc + t * acc_bytes)
        else:
            store_i64(own + bytes_each - 8, start)
    if few:
        return
    if _TILES:
        begin_tiles()
    for tile in range(low, high):
        for t in range(tokens):
            start = load_i64(factors + (t + 1) * bytes_each - 8)
            for i in range(0, 4 * TILE, 64):
                store(sums + 4 * TILE * t + i, splat(i32x16, start))
        _sum_tile(lin, table, tiles, tile, tokens, factors, bytes_each, sums, centroids)
        for t in range(tokens):
            for i in range(0, 4 * TILE, 64):
                value = load(i32x16, sums + 4 * TILE * t + i)
                store(acc + t * acc_bytes + 4 * TILE * tile + i, value)
    if _TILES:
        end_tiles()
