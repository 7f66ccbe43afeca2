"""The kernels of a LUT linear with AVX-512 VBMI and VNNI: four rows of 16 entries in a register.

`vpermb` takes any of the 64 bytes for each of 64 outputs: with the slot of a quad in the upper bits
of an index it looks up 16 outputs of four slots. The four bytes of an output are neighbours, and
`vpdpbusd` with ones adds them to its 32-bit sum: two instructions for 64 entries, and no carries to
keep track of. Of wide entries the low bytes are the unsigned operand, the high bytes the signed.
A row of up to 64 entries is a register of its own; `vpermi2b` looks up in two of them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from lutllm.emulator import plain
from lutllm.emulator.activations import (
    Search,
    largest_input,
    make_code_slots,
    quantize_slots,
)
from lutllm.emulator.distances import INDEX_BITS, Distance, make_chebyshev, make_squared
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import AHEAD, LARGE, PARTS, QUAD, SEGMENT, SEGMENT_COLUMNS, TILE, UNIT
from lutllm.emulator.plain import (
    segment_field,
    segment_slots,
    segment_wide,
)
from lutllm.emulator.products import multiply_panel
from lutllm.emulator.quads import (
    SPLIT_VECTORS,
    byte_constant,
    finish,
    indices_of,
    look_up,
    zeros,
)
from lutllm.emulator.rows import make_make_rows, outward
from lutllm.emulator.simd import (
    Vector,
    absolute,
    band,
    bitcast,
    call_llvm,
    i8x32,
    i8x64,
    i16x32,
    i32x16,
    i64x8,
    intrinsic,
    load,
    load_at,
    load_i16,
    load_i64,
    prefetch,
    prefetch_at,
    sext,
    signed_as,
    splat,
    store,
    store_at,
    vmin,
)
from lutllm.emulator.simd_x86 import (
    dpwssd512,
    maddubs512,
    mulhrs512,
    packsswb512,
    packuswb512,
    pshufb512,
)

__all__ = [
    "code_slots",
    "largest_input",
    "lookup",
    "make_rows",
    "multiply_panel",
    "quantize_slots",
]


# ---------------------------------------------------------------- search


def _make_search(distance: Distance) -> Search:
    prepared, fixed, key, whole = distance.prepared, distance.fixed, distance.key, distance.whole

    @inline
    def nearest(book: int, count: int, shift: int, rest: int, out: int) -> None:
        x = prepared(load(i16x32, rest))
        best = splat(i32x16, 0x7FFFFFFF)
        for k in range(count):
            at = book + k * 2 * UNIT
            prefetch(at + AHEAD // 2)
            best = vmin(best, whole(sext(i16x32, load(i8x32, at)), shift, k, x))
        store(out, band(best, splat(i32x16, (1 << INDEX_BITS) - 1)))

    @inline
    def expand(book: int, count: int, shift: int, out: int) -> None:
        """For every centroid of a block the words i16[16, 2] and own i32[16] of its distance."""
        for k in range(count):
            words, own = fixed(sext(i16x32, load(i8x32, book + k * 2 * UNIT)), shift, k)
            store(out + 128 * k, words)
            store(out + 128 * k + 64, own)

    @inline
    def nearest_some(
        expanded: int, count: int, rest: int, rest_bytes: int, tokens: int, out: int
    ) -> None:
        """Of fewer than 4 tokens the last is searched again."""
        last = tokens - 1
        x0 = prepared(load(i16x32, rest))
        x1 = prepared(load(i16x32, rest + min(1, last) * rest_bytes))
        x2 = prepared(load(i16x32, rest + min(2, last) * rest_bytes))
        x3 = prepared(load(i16x32, rest + min(3, last) * rest_bytes))
        best0 = best1 = best2 = best3 = splat(i32x16, 0x7FFFFFFF)
        for k in range(count):
            c, own = load(i16x32, expanded + 128 * k), load(i32x16, expanded + 128 * k + 64)
            best0 = vmin(best0, key(c, own, x0))
            best1 = vmin(best1, key(c, own, x1))
            best2 = vmin(best2, key(c, own, x2))
            best3 = vmin(best3, key(c, own, x3))
        mask = splat(i32x16, (1 << INDEX_BITS) - 1)
        store(out, band(best0, mask))
        store(out + 64, band(best1, mask))
        store(out + 128, band(best2, mask))
        store(out + 192, band(best3, mask))

    return Search(nearest, expand, nearest_some, 4)


code_slots = make_code_slots(
    _make_search(make_squared(i16x32, i32x16, dpwssd512)), _make_search(make_chebyshev(i32x16))
)


# ---------------------------------------------------------------- rows


@intrinsic
def _spread_mask(typingctx: Any) -> Any:
    """Shuffle that fills quarter n with the n-th 16-bit element."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(i8x64.llvm, [2 * n + i for n in range(QUAD) for i in [0, 1] * 8])

    return i8x64(), codegen


@inline
def _quad_spread(words: int, mask: Vector) -> Vector:
    """The 16-bit words of four slots, each in a quarter of the vector."""
    return bitcast(i16x32, pshufb512(bitcast(i8x64, splat(i64x8, load_i64(words))), mask))


@inline
def _quad_entries(
    book0: Vector, book1: Vector, vectors: int, factor: Vector, exact: bool, mask: Vector
) -> tuple[Vector, Vector]:
    """Dot products of four slots, rounded unless exact, before saturation; 8 centroids of each per
    vector.
    """
    return _entries(book0, book1, bitcast(i8x64, _quad_spread(vectors, mask)), factor, exact)


@inline
def _slot_spread(word: int, mask: Vector) -> Vector:
    return splat(i16x32, load_i16(word))


@inline
def _slot_entries(
    book0: Vector, book1: Vector, vector: int, factor: Vector, exact: bool, mask: Vector
) -> tuple[Vector, Vector]:
    """As `_quad_entries` for one slot, 32 centroids per vector."""
    return _entries(book0, book1, bitcast(i8x64, _slot_spread(vector, mask)), factor, exact)


@inline
def _entries(
    book0: Vector, book1: Vector, a: Vector, factor: Vector, exact: bool
) -> tuple[Vector, Vector]:
    """A byte product needs one unsigned factor, so the activation's sign moves to the centroid."""
    size = absolute(a)
    dot0 = maddubs512(size, signed_as(book0, a))
    dot1 = maddubs512(size, signed_as(book1, a))
    if exact:
        return dot0, dot1
    return mulhrs512(outward(dot0), factor), mulhrs512(outward(dot1), factor)


@inline
def _low_bytes(first: Vector, second: Vector) -> Vector:
    byte = splat(i16x32, 255)
    return packuswb512(band(first, byte), band(second, byte))


_make_quads = make_make_rows(
    QUAD,
    16,
    i8x64,
    i16x32,
    _spread_mask,
    _quad_spread,
    _quad_entries,
    packsswb512,
    _low_bytes,
)
_make_large = make_make_rows(
    1,
    LARGE,
    i8x64,
    i16x32,
    _spread_mask,
    _slot_spread,
    _slot_entries,
    packsswb512,
    _low_bytes,
)


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
    """As `plain.make_rows`: rows of four slots at a time, or one of many entries."""
    if lin.row_stride == LARGE:
        _make_large(lin, group, segment, act, act_bytes, tokens, rows, rows_bytes)
    else:
        _make_quads(lin, group, segment, act, act_bytes, tokens, rows, rows_bytes)


# ---------------------------------------------------------------- lookup


def _add_four(builder: Any, total: Any, entries: Any, signed: bool) -> Any:
    """total i32x16 plus four neighbouring bytes of i8x64 each."""
    ones = byte_constant([1] * 64)
    operands = [ones, entries] if signed else [entries, ones]
    words = [builder.bitcast(value, i32x16.llvm) for value in operands]
    return call_llvm(builder, "llvm.x86.avx512.vpdpbusd.512", i32x16.llvm, [total, *words])


def _quad(packed: bool, row_bytes: int = 16) -> Any:
    """quad(vectors, tiles, planes, slot, sums) -> sums with the entries of four slots added.

    vectors: a tuple of the addresses of rows; tiles: of codes [slots, 32], or if not packed, of
    index vectors [slots / 4, PARTS, 64]. sums: [vectors][planes][tiles][PARTS].
    """
    plane_bytes = SEGMENT * row_bytes

    @intrinsic
    def quad(typingctx: Any, vectors: Any, tiles: Any, planes: Any, slot: Any, sums: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            rows, codes = (cgutils.unpack_tuple(builder, a) for a in args[:2])
            first = args[3]
            row_at = builder.mul(first, first.type(row_bytes))
            code_at = builder.mul(first, first.type(32 if packed else 16 * PARTS))
            indices = []
            for tile in codes:
                at = builder.add(tile, code_at)
                if packed:
                    for i in range(0, 2 * TILE, 64):
                        prefetch_at(builder, at, AHEAD + i)
                        indices += indices_of(builder, load_at(builder, i8x64, at, i))
                    continue
                for i in range(0, 64 * PARTS, 64):
                    if row_bytes == LARGE:  # read from memory, not taken apart
                        prefetch_at(builder, at, AHEAD + i)
                    indices.append(load_at(builder, i8x64, at, i))
            old = iter(cgutils.unpack_tuple(builder, args[4]))
            new = []
            for row in rows:
                for plane in range(len(planes)):
                    at = builder.add(row, row_at)
                    tables = [
                        load_at(builder, i8x64, at, plane_bytes * plane + i)
                        for i in range(0, QUAD * row_bytes, 64)
                    ]
                    for index in indices:
                        entries = look_up(builder, tables, index)
                        new.append(_add_four(builder, next(old), entries, plane == 0))
            return context.make_tuple(builder, sums, new)

        return sums(vectors, tiles, planes, types.intp, sums), codegen

    return quad


def _make_sum(quad: Any) -> Any:
    """A function that adds some tiles to the accumulators of some vectors, by steps of `quad`."""

    @inline
    def sum_some(
        vectors: Any, tiles: Any, planes: Any, slots: int, targets: Any, shifts: Any
    ) -> None:
        """Tuples as in `_quad` and `finish`."""
        sums = zeros(vectors, tiles, planes)
        for slot in range(0, slots, QUAD):
            sums = quad(vectors, tiles, planes, slot, sums)
        finish(sums, tiles, planes, targets, shifts)

    return sum_some


_sum_packed = _make_sum(_quad(True))


@intrinsic
def _index_vectors(typingctx: Any, codes: Any, out: Any) -> Any:
    """The codes [4, 32] of a quad as index vectors [PARTS, 64]."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = [load_at(builder, i8x64, args[0], i) for i in range(0, 2 * TILE, 64)]
        for i, index in enumerate(part for both in halves for part in indices_of(builder, both)):
            store_at(builder, args[1], 64 * i, index)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@inline
def _power(lin: Any, segment: int, n: int) -> int:
    """Exponent of the sums of vector n."""
    return segment_field(lin, segment, SEGMENT_COLUMNS + n % lin.act_stages)


@inline
def _target(lin: Any, acc: int, acc_bytes: int, tile: int, n: int) -> int:
    """Accumulators of vector n from `tile` on."""
    return acc + n // lin.act_stages * acc_bytes + 4 * TILE * tile


@inline
def _stream(
    codes: int, tiles: int, row: int, planes: Any, slots: int, target: int, power: int
) -> None:
    """All tiles for one vector. One after the other: memory gives one stream twice the speed of two
    that alternate."""
    for tile in range(tiles):
        at = codes + tile * slots * TILE // 2
        goal = target + 4 * TILE * tile
        _sum_packed((row,), (at,), planes, slots, (goal,), (power,))


def _make_all_vectors(sum_some: Any) -> Any:
    """A function that adds one tile, in the layout of `sum_some`, for all vectors.

    As many at a time as registers hold sums of. Both are written out: one loop over tuples joined
    from those of single vectors is 7 % slower.
    """

    @inline
    def four_at_a_time(
        lin: Any,
        segment: int,
        tile_at: int,
        tile: int,
        slots: int,
        rows: int,
        rows_bytes: int,
        vectors: int,
        acc: int,
        acc_bytes: int,
    ) -> None:
        """Entries of one byte."""
        fours = vectors // 4 * 4
        for n in range(0, fours, 4):
            first = rows + n * rows_bytes
            some = (first, first + rows_bytes, first + 2 * rows_bytes, first + 3 * rows_bytes)
            targets = (
                _target(lin, acc, acc_bytes, tile, n),
                _target(lin, acc, acc_bytes, tile, n + 1),
                _target(lin, acc, acc_bytes, tile, n + 2),
                _target(lin, acc, acc_bytes, tile, n + 3),
            )
            powers = (
                _power(lin, segment, n),
                _power(lin, segment, n + 1),
                _power(lin, segment, n + 2),
                _power(lin, segment, n + 3),
            )
            sum_some(some, (tile_at,), (0,), slots, targets, powers)
        for n in range(fours, vectors):
            target = _target(lin, acc, acc_bytes, tile, n)
            power = _power(lin, segment, n)
            sum_some((rows + n * rows_bytes,), (tile_at,), (0,), slots, (target,), (power,))

    @inline
    def two_at_a_time(
        lin: Any,
        segment: int,
        tile_at: int,
        tile: int,
        slots: int,
        rows: int,
        rows_bytes: int,
        vectors: int,
        acc: int,
        acc_bytes: int,
    ) -> None:
        """Entries of two bytes."""
        pairs = vectors // 2 * 2
        for n in range(0, pairs, 2):
            first = rows + n * rows_bytes
            targets = (
                _target(lin, acc, acc_bytes, tile, n),
                _target(lin, acc, acc_bytes, tile, n + 1),
            )
            powers = (_power(lin, segment, n), _power(lin, segment, n + 1))
            sum_some((first, first + rows_bytes), (tile_at,), (0, 1), slots, targets, powers)
        if pairs < vectors:
            target = _target(lin, acc, acc_bytes, tile, pairs)
            power = _power(lin, segment, pairs)
            sum_some((rows + pairs * rows_bytes,), (tile_at,), (0, 1), slots, (target,), (power,))

    @inline
    def all_vectors(
        lin: Any,
        segment: int,
        tile_at: int,
        tile: int,
        slots: int,
        rows: int,
        rows_bytes: int,
        vectors: int,
        acc: int,
        acc_bytes: int,
    ) -> None:
        if segment_wide(lin, segment):
            two_at_a_time(
                lin, segment, tile_at, tile, slots, rows, rows_bytes, vectors, acc, acc_bytes
            )
        else:
            four_at_a_time(
                lin, segment, tile_at, tile, slots, rows, rows_bytes, vectors, acc, acc_bytes
            )

    return all_vectors


_all_split = _make_all_vectors(_make_sum(_quad(False)))
_all_large = _make_all_vectors(_make_sum(_quad(False, LARGE)))


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
    """As `plain.lookup`; scratch: SEGMENT * TILE bytes."""
    if not lin.fast_lookup:
        plain.lookup(lin, segment, codes, tiles, rows, rows_bytes, vectors, acc, acc_bytes, scratch)
        return
    slots = segment_slots(lin, segment)
    tile_bytes = slots * lin.code_bytes
    large = lin.row_stride == LARGE
    if vectors < SPLIT_VECTORS and not large:
        for n in range(vectors):
            target = _target(lin, acc, acc_bytes, 0, n)
            power = _power(lin, segment, n)
            own = rows + n * rows_bytes
            if segment_wide(lin, segment):
                _stream(codes, tiles, own, (0, 1), slots, target, power)
            else:
                _stream(codes, tiles, own, (0,), slots, target, power)
        return
    for tile in range(tiles):
        at = codes + tile * tile_bytes
        if large:
            _all_large(lin, segment, at, tile, slots, rows, rows_bytes, vectors, acc, acc_bytes)
            continue
        for slot in range(0, slots, QUAD):
            _index_vectors(at + 32 * slot, scratch + TILE * slot)
        _all_split(lin, segment, scratch, tile, slots, rows, rows_bytes, vectors, acc, acc_bytes)
