"""The kernels of a LUT linear with AVX2 or NEON: 16-entry rows are byte shuffles.

One `pshufb` (two `tbl` on ARM) looks up 32 outputs of one slot, so the cost lies in adding bytes
into wider sums.
Entries are kept as unsigned bytes (entry + 128), and a block of 16 slots needs only two byte
operations a lookup:

    low    the sum of the bytes modulo 256                  16 x vpaddb, add
    mean   a tree of rounding averages (a + b + 1) >> 1     15 x vpavgb, urhadd

A level of the tree rounds up by at most 1/2, so 16 mean - sum lies in 0 .. 32. Over up to seven
blocks 16 sum(mean) - sum lies in 0 .. 224, and its value modulo 256 is known: the sum is exact.
A segment ends in up to three quads of slots; each is a block whose other entries are 0, with an
error of at most 16, so six blocks and three quads stay below 256 as well.
Against widening every lookup (shift, two additions) this saves a quarter of the instructions.
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
from lutllm.emulator.cpu import ISA
from lutllm.emulator.distances import INDEX_BITS, Distance, make_chebyshev, make_squared
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import AHEAD, QUAD, SEGMENT, SEGMENT_COLUMNS, TILE, UNIT
from lutllm.emulator.plain import (
    segment_field,
    segment_slots,
    segment_wide,
)
from lutllm.emulator.rows import make_make_rows, outward
from lutllm.emulator.simd import (
    Vector,
    add,
    band,
    bitcast,
    bxor,
    i8x16,
    i8x32,
    i16x16,
    i32x8,
    intrinsic,
    load,
    load_at,
    load_i32,
    lshr,
    prefetch,
    prefetch_at,
    sext,
    shl,
    splat,
    store,
    sub,
    vmin,
)

if ISA == "neon":
    from lutllm.emulator.simd_arm import (
        look_up,
        maddubs,
        maddwd,
        magnitude,
        mulhrs,
        packsswb,
        pshufb,
        signed,
    )
else:
    from lutllm.emulator.simd_x86 import (
        look_up,
        maddubs,
        maddwd,
        magnitude,
        mulhrs,
        packsswb,
        pshufb,
        signed,
    )

__all__ = ["code_slots", "largest_input", "lookup", "make_rows", "quantize_slots"]

#: Activation vectors from which taking codes apart pays.
SPLIT_VECTORS = 3
assert SEGMENT // UNIT <= 7  # the error bound of the module docstring


@intrinsic
def _pair_mask(typingctx: Any) -> Any:
    """Shuffle that spreads the first 16-bit element over one half, the second over the other.

    On x86 empty assembly hides the constant: LLVM would turn broadcast and shuffle into a shuffle
    and a slower permutation.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mask = ir.Constant(i8x32.llvm, [0, 1] * 8 + [2, 3] * 8)
        if ISA == "neon":
            return mask
        return builder.asm(ir.FunctionType(i8x32.llvm, [i8x32.llvm]), "", "=x,0", [mask], False)

    return i8x32(), codegen


# ---------------------------------------------------------------- search


@inline
def _dot(total: Vector, a: Vector, b: Vector) -> Vector:
    return add(maddwd(a, b), total)


def _make_search(distance: Distance) -> Search:
    """A block of UNIT slots is two vectors."""
    prepared, fixed, key, whole = distance.prepared, distance.fixed, distance.key, distance.whole

    @inline
    def nearest(book: int, count: int, shift: int, rest: int, out: int) -> None:
        x0 = prepared(load(i16x16, rest))
        x1 = prepared(load(i16x16, rest + 32))
        best0 = best1 = splat(i32x8, 0x7FFFFFFF)
        for k in range(count):
            at = book + k * 2 * UNIT
            prefetch(at + AHEAD // 2)
            best0 = vmin(best0, whole(sext(i16x16, load(i8x16, at)), shift, k, x0))
            best1 = vmin(best1, whole(sext(i16x16, load(i8x16, at + 16)), shift, k, x1))
        mask = splat(i32x8, (1 << INDEX_BITS) - 1)
        store(out, band(best0, mask))
        store(out + 32, band(best1, mask))

    @inline
    def expand(book: int, count: int, shift: int, out: int) -> None:
        """For every centroid and half of a block the words i16[8, 2] and own i32[8] of its
        distance.
        """
        for k in range(count):
            for i in range(2):
                c = sext(i16x16, load(i8x16, book + k * 2 * UNIT + 16 * i))
                words, own = fixed(c, shift, k)
                at = out + 128 * k + 64 * i
                store(at, words)
                store(at + 32, own)

    @inline
    def nearest_some(
        expanded: int, count: int, rest: int, rest_bytes: int, tokens: int, out: int
    ) -> None:
        """One token is searched twice."""
        other = rest + rest_bytes if tokens > 1 else rest
        x0, x1 = prepared(load(i16x16, rest)), prepared(load(i16x16, rest + 32))
        y0, y1 = prepared(load(i16x16, other)), prepared(load(i16x16, other + 32))
        best0 = best1 = best2 = best3 = splat(i32x8, 0x7FFFFFFF)
        for k in range(count):
            at = expanded + 128 * k
            c, own = load(i16x16, at), load(i32x8, at + 32)
            best0 = vmin(best0, key(c, own, x0))
            best2 = vmin(best2, key(c, own, y0))
            c, own = load(i16x16, at + 64), load(i32x8, at + 96)
            best1 = vmin(best1, key(c, own, x1))
            best3 = vmin(best3, key(c, own, y1))
        mask = splat(i32x8, (1 << INDEX_BITS) - 1)
        store(out, band(best0, mask))
        store(out + 32, band(best1, mask))
        store(out + 64, band(best2, mask))
        store(out + 96, band(best3, mask))

    return Search(nearest, expand, nearest_some, 2)


code_slots = make_code_slots(
    _make_search(make_squared(i16x16, i32x8, _dot)), _make_search(make_chebyshev(i32x8))
)


# ---------------------------------------------------------------- rows


@inline
def _low_bytes(first: Vector, second: Vector) -> Vector:
    """The low bytes of two i16x16, in the order of packsswb."""
    byte, middle = splat(i16x16, 255), splat(i16x16, 128)
    first, second = sub(band(first, byte), middle), sub(band(second, byte), middle)
    return bxor(packsswb(first, second), splat(i8x32, 0x80))


@inline
def _pair_spread(words: int, mask: Vector) -> Vector:
    """The 16-bit words of two slots, each in a half of the vector."""
    return bitcast(i16x16, pshufb(bitcast(i8x32, splat(i32x8, load_i32(words))), mask))


@inline
def _pair_entries(
    book0: Vector, book1: Vector, vectors: int, factor: Vector, exact: bool, mask: Vector
) -> tuple[Vector, Vector]:
    """Dot products of two slots, rounded unless exact, before saturation; 8 centroids of each per
    vector.

    A byte product needs one unsigned factor, so the activation's sign moves to the centroid.
    """
    a = bitcast(i8x32, _pair_spread(vectors, mask))
    size = magnitude(a)
    dot0 = maddubs(size, signed(book0, a))
    dot1 = maddubs(size, signed(book1, a))
    if exact:
        return dot0, dot1
    return mulhrs(outward(dot0), factor), mulhrs(outward(dot1), factor)


@inline
def _biased_bytes(first: Vector, second: Vector) -> Vector:
    """Saturated to bytes, plus 128."""
    return bxor(packsswb(first, second), splat(i8x32, 0x80))


make_rows = make_make_rows(
    2,
    16,
    i8x32,
    i16x16,
    _pair_mask,
    _pair_spread,
    _pair_entries,
    _biased_bytes,
    _low_bytes,
)


# ---------------------------------------------------------------- lookup


def _mean(builder: Any, a: Any, b: Any) -> Any:
    """(a + b + 1) >> 1 on unsigned bytes: LLVM selects vpavgb."""
    wide = ir.VectorType(ir.IntType(16), 32)
    one = ir.Constant(wide, [1] * 32)
    total = builder.add(builder.add(builder.zext(a, wide), builder.zext(b, wide)), one)
    return builder.trunc(builder.lshr(total, one), i8x32.llvm)


class _Tree:
    """Averages of vectors given one by one, combined as soon as two of a level exist."""

    def __init__(self, builder: Any):
        self.builder = builder
        self.waiting: list[tuple[int, Any]] = []

    def push(self, value: Any) -> None:
        level = 0
        while self.waiting and self.waiting[-1][0] == level:
            value = _mean(self.builder, self.waiting.pop()[1], value)
            level += 1
        self.waiting.append((level, value))

    def mean(self, fill: int) -> Any:
        """The mean, as if fill - 1 times as many entries of 128 had followed."""
        value = self.waiting[0][1]
        while fill > 1:
            value = _mean(self.builder, value, ir.Constant(i8x32.llvm, [128] * 32))
            fill //= 2
        return value


def _nibbles(builder: Any, both: Any) -> list[Any]:
    """The low and the high nibbles of i8x32 as two index vectors."""
    words = ir.VectorType(ir.IntType(16), 16)
    four = ir.Constant(words, [4] * 16)
    nibble = ir.Constant(i8x32.llvm, [15] * 32)
    upper = builder.bitcast(builder.lshr(builder.bitcast(both, words), four), i8x32.llvm)
    return [builder.and_(both, nibble), builder.and_(upper, nibble)]


def _block(slots: int) -> Any:
    """block(rows, tiles, split, lows) -> lows, then means over 16 entries, of `slots` slots.

    tiles: a tuple with the address of each tile's packed codes [slots, 32]; or () and split: the
    codes of all tiles taken apart, [slots, len(lows), 32]. lows: a tuple of i8x32, two per tile.
    Of a quad, the other 12 entries count as 128, that is 0: their sum modulo 256 is 0.
    """

    @intrinsic
    def block(typingctx: Any, rows: Any, tiles: Any, split: Any, lows: Any) -> Any:
        count = len(lows)
        result = types.UniTuple(i8x32, 2 * count)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            sums = cgutils.unpack_tuple(builder, args[3])
            addresses = cgutils.unpack_tuple(builder, args[1])
            trees = [_Tree(builder) for _ in sums]
            spread = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(16)) * 2)
            for slot in range(slots):
                row = load_at(builder, i8x16, args[0], 16 * slot)
                table = builder.shuffle_vector(row, row, spread)
                if addresses:
                    indices = _packed_indices(builder, addresses, slot)
                else:
                    at = 32 * count * slot
                    indices = [load_at(builder, i8x32, args[2], at + 32 * n) for n in range(count)]
                for n, index in enumerate(indices):
                    entry = look_up(builder, table, index)
                    sums[n] = builder.add(sums[n], entry)
                    trees[n].push(entry)
            means = [tree.mean(UNIT // slots) for tree in trees]
            return context.make_tuple(builder, result, sums + means)

        return result(rows, tiles, split, lows), codegen

    return block


def _packed_indices(builder: Any, addresses: list[Any], slot: int) -> list[Any]:
    """The index vectors of one slot of some tiles; asks for the codes needed later."""
    if slot % 2 == 0:  # two slots are a cache line
        for a in addresses:
            prefetch_at(builder, a, TILE // 2 * slot + AHEAD)
    packed = [load_at(builder, i8x32, a, TILE // 2 * slot) for a in addresses]
    return [index for both in packed for index in _nibbles(builder, both)]


_unit = _block(UNIT)
_quad = _block(QUAD)


@intrinsic
def _count(typingctx: Any, means: Any, totals: Any, odds: Any) -> Any:
    """Add means (bytes) to totals as 16-bit words, and their odd bytes to odds."""
    result = types.UniTuple(totals, 2)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        eight = ir.Constant(i16x16.llvm, [8] * 16)
        words = [
            builder.bitcast(mean, i16x16.llvm) for mean in cgutils.unpack_tuple(builder, args[0])
        ]
        old, high = (cgutils.unpack_tuple(builder, a) for a in args[1:])
        sums = [builder.add(a, b) for a, b in zip(old, words, strict=True)]
        odd = [builder.add(a, builder.lshr(b, eight)) for a, b in zip(high, words, strict=True)]
        parts = [context.make_tuple(builder, totals, part) for part in (sums, odd)]
        return context.make_tuple(builder, result, parts)

    return result(means, totals, odds), codegen


@inline
def _finish(total: Vector, odd: Vector, low: Vector, shift: int, acc: int) -> None:
    """Turn sums of means into exact sums of unsigned bytes and add them to acc: i32[32].

    total: i16x16, sum of the means as 16-bit words (even byte + 256 odd byte, modulo 2^16);
    odd: the odd bytes alone; low: i8x32, the sums modulo 256.
    """
    byte = splat(i16x16, 255)
    words = bitcast(i16x16, low)
    high = shl(odd, 4)
    even = shl(sub(total, shl(odd, 8)), 4)
    even = sub(even, band(sub(even, words), byte))
    high = sub(high, band(sub(high, lshr(words, 8)), byte))
    _widen_add(even, shift, acc)
    _widen_add(high, shift, acc + 64)


@inline
def _widen_add(values: Vector, shift: int, acc: int) -> None:
    """acc: i32[16] += values (i16x16) << shift; even words to the first half, odd to the second."""
    power = 1 << min(shift, 14)
    first = maddwd(values, bitcast(i16x16, splat(i32x8, power)))
    second = maddwd(values, bitcast(i16x16, splat(i32x8, power << 16)))
    if shift > 14:
        first = shl(first, shift - 14)
        second = shl(second, shift - 14)
    store(acc, add(load(i32x8, acc), first))
    store(acc + 32, add(load(i32x8, acc + 32), second))


@inline
def _lookup_tile(tile: int, rows: int, slots: int, shift: int, acc: int) -> None:
    """One tile of packed codes."""
    lows = (splat(i8x32, 0), splat(i8x32, 0))
    zero = splat(i16x16, 0)
    totals = (zero, zero)
    odds = (zero, zero)
    whole = slots // UNIT * UNIT
    for slot in range(0, whole, UNIT):
        low0, low1, mean0, mean1 = _unit(rows + 16 * slot, (tile + 32 * slot,), 0, lows)
        lows = (low0, low1)
        totals, odds = _count((mean0, mean1), totals, odds)
    for slot in range(whole, slots, QUAD):
        low0, low1, mean0, mean1 = _quad(rows + 16 * slot, (tile + 32 * slot,), 0, lows)
        lows = (low0, low1)
        totals, odds = _count((mean0, mean1), totals, odds)
    _finish(totals[0], odds[0], lows[0], shift, acc)
    _finish(totals[1], odds[1], lows[1], shift, acc + 128)


@inline
def _lookup_two(split: int, rows: int, slots: int, shift: int, acc: int) -> None:
    """Two tiles whose codes are taken apart."""
    none = splat(i8x32, 0)
    zero = splat(i16x16, 0)
    lows = (none, none, none, none)
    totals = (zero, zero, zero, zero)
    odds = (zero, zero, zero, zero)
    whole = slots // UNIT * UNIT
    for slot in range(0, whole, UNIT):
        sums = _unit(rows + 16 * slot, (), split + 2 * TILE * slot, lows)
        lows = (sums[0], sums[1], sums[2], sums[3])
        totals, odds = _count((sums[4], sums[5], sums[6], sums[7]), totals, odds)
    for slot in range(whole, slots, QUAD):
        sums = _quad(rows + 16 * slot, (), split + 2 * TILE * slot, lows)
        lows = (sums[0], sums[1], sums[2], sums[3])
        totals, odds = _count((sums[4], sums[5], sums[6], sums[7]), totals, odds)
    _finish(totals[0], odds[0], lows[0], shift, acc)
    _finish(totals[1], odds[1], lows[1], shift, acc + 128)
    _finish(totals[2], odds[2], lows[2], shift, acc + 256)
    _finish(totals[3], odds[3], lows[3], shift, acc + 384)


@inline
def _split_two(first: int, second: int, slots: int, out: int) -> None:
    """Packed codes [slots, 32] of two tiles -> bytes [slots, 4, 32]."""
    nibble = splat(i8x32, 15)
    for slot in range(slots):
        both = load(i8x32, first + 32 * slot)
        upper = bitcast(i8x32, lshr(bitcast(i16x16, both), 4))
        store(out + 128 * slot, band(both, nibble))
        store(out + 128 * slot + 32, band(upper, nibble))
        both = load(i8x32, second + 32 * slot)
        upper = bitcast(i8x32, lshr(bitcast(i16x16, both), 4))
        store(out + 128 * slot + 64, band(both, nibble))
        store(out + 128 * slot + 96, band(upper, nibble))


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
    """As `plain.lookup`, for many vectors two tiles at a time; scratch: 2 * SEGMENT * TILE bytes"""
    if not lin.fast_lookup:
        plain.lookup(lin, segment, codes, tiles, rows, rows_bytes, vectors, acc, acc_bytes, scratch)
        return
    slots = segment_slots(lin, segment)
    low_plane = SEGMENT * 16 if segment_wide(lin, segment) else 0
    tile_bytes = slots * TILE // 2
    pairs = tiles // 2 * 2 if vectors >= SPLIT_VECTORS else 0
    for tile in range(0, pairs, 2):
        first = codes + tile * tile_bytes
        _split_two(first, first + tile_bytes, slots, scratch)
        for n in range(vectors):
            shift = segment_field(lin, segment, SEGMENT_COLUMNS + n % lin.act_stages)
            target = acc + n // lin.act_stages * acc_bytes + 4 * TILE * tile
            own = rows + n * rows_bytes
            if low_plane:
                _lookup_two(scratch, own + low_plane, slots, shift, target)
                shift += 8
            _lookup_two(scratch, own, slots, shift, target)
    for tile in range(pairs, tiles):
        for n in range(vectors):
            shift = segment_field(lin, segment, SEGMENT_COLUMNS + n % lin.act_stages)
            target = acc + n // lin.act_stages * acc_bytes + 4 * TILE * tile
            own = rows + n * rows_bytes
            if low_plane:
                _lookup_tile(codes + tile * tile_bytes, own + low_plane, slots, shift, target)
                shift += 8
            _lookup_tile(codes + tile * tile_bytes, own, slots, shift, target)
