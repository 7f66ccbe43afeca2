"""The kernels of a LUT linear with AVX2: 16-entry rows are byte shuffles.

One `pshufb` looks up 32 outputs of one slot, so the cost lies in adding bytes into wider sums.
Entries are kept as unsigned bytes (entry + 128), and a block of 16 slots needs only two byte
operations a lookup:

    low    the sum of the bytes modulo 256                  16 x vpaddb
    mean   a tree of rounding averages (a + b + 1) >> 1     15 x vpavgb

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

from lutllm.config import ACT_LIMIT, STAGE_BITS
from lutllm.emulator import plain
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import QUAD, SEGMENT, SEGMENT_COLUMNS, TILE, UNIT
from lutllm.emulator.plain import (
    segment_field,
    segment_place,
    segment_slots,
    segment_vector,
    segment_wide,
)
from lutllm.emulator.simd import (
    Vector,
    add,
    ashr,
    band,
    bitcast,
    bxor,
    f32x8,
    float_to_int,
    i8x8,
    i8x16,
    i8x32,
    i16x8,
    i16x16,
    i32x8,
    intrinsic,
    load,
    load_f32,
    load_i16,
    load_i32,
    lshr,
    maddubs,
    maddwd,
    max_lanes,
    mul,
    mulhrs,
    packsswb,
    prefetch,
    pshufb,
    psignb,
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

__all__ = ["code_slots", "largest_input", "lookup", "make_rows", "quantize_slots"]

#: Bits below the score that hold the centroid's number while searching.
INDEX_BITS = 8
#: Tokens from which taking the activation codebook apart pays.
EXPAND_TOKENS = 4
#: Activation vectors from which taking codes apart pays.
SPLIT_VECTORS = 3
#: Bytes between the codes in use and those asked for: codes are read once, front to back.
AHEAD = 4096
assert SEGMENT // UNIT <= 7  # the error bound of the module docstring


@intrinsic
def _pair_mask(typingctx: Any) -> Any:
    """Shuffle that spreads the first 16-bit element over one half, the second over the other.

    The empty assembly hides the constant: LLVM would turn broadcast and shuffle into a shuffle and
    a slower permutation.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mask = ir.Constant(i8x32.llvm, [0, 1] * 8 + [2, 3] * 8)
        return builder.asm(ir.FunctionType(i8x32.llvm, [i8x32.llvm]), "", "=x,0", [mask], False)

    return i8x32(), codegen


# ---------------------------------------------------------------- activations


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
def _rounded(values: Vector, limit: int) -> Vector:
    """clamp(rint(values)) as i32x8."""
    top = splat(f32x8, float(limit))
    low = splat(f32x8, float(-limit))
    return float_to_int(i32x8, vmax(vmin(rint(values), top), low))


@inline
def largest_input(lin: Any, x: int, scratch: int) -> float:
    """As `plain.largest_input`; scratch: 128 bytes."""
    if lin.vec_len != 2:
        return plain.largest_input(lin, x, scratch)
    top = splat(f32x8, 0.0)
    for slot in range(0, lin.slots, UNIT):
        _gather(lin, x, 2 * slot, scratch)
        for i in range(0, 8 * UNIT, 32):
            top = vmax(top, vabs(load(f32x8, scratch + i)))
    return max_lanes(top)


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
    scratch: int,
) -> None:
    """As `plain.code_slots`.

    scratch: 128 bytes, 128 for each centroid, 4 for each slot of each token.
    """
    if not lin.fast_search:
        plain.code_slots(lin, tokens, x, x_bytes, first, end, act, act_bytes, codes, scratch)
        return
    expanded = scratch + 8 * UNIT
    rests = expanded + 128 * lin.act_centroids
    rest_bytes = 4 * (end - first)
    for t in range(tokens):
        _quantize_pairs(lin, x + t * x_bytes, first, end, rests + t * rest_bytes, scratch)
    for slot in range(first, end, UNIT):
        for stage in range(lin.act_stages):
            book = lin.act_codebook + (stage * lin.slots + slot) * lin.act_centroids * 2
            shift = STAGE_BITS * (lin.act_stages - 1 - stage)
            if tokens >= EXPAND_TOKENS:
                _expand(book, lin.act_centroids, shift, expanded)
            for t in range(tokens):
                rest = rests + t * rest_bytes + 4 * (slot - first)
                numbers = scratch + t % 2 * 64
                if tokens < EXPAND_TOKENS:
                    if shift == 0:  # constants, for a loop without shifts
                        _nearest(book, lin.act_centroids, 0, rest, numbers)
                    else:
                        _nearest(book, lin.act_centroids, shift, rest, numbers)
                elif t % 2 == 0:
                    other = rest + rest_bytes if t + 1 < tokens else rest
                    _nearest_two(expanded, lin.act_centroids, rest, other, numbers)
                vector = act + t * act_bytes + 2 * stage * lin.orders * lin.slots
                _take(book, shift, numbers, vector + 2 * slot, rest)
                _spread(lin, slot, vector)
                if codes:
                    row = codes + (t * lin.act_stages + stage) * lin.slots + slot
                    for i in range(UNIT):
                        store_i8(row + i, load_i32(numbers + 4 * i))


@inline
def _quantize_pairs(lin: Any, x: int, first: int, end: int, out: int, scratch: int) -> None:
    """The integers i16[end - first, 2] of slots first .. end."""
    limit = ACT_LIMIT << (STAGE_BITS * (lin.act_stages - 1))
    for slot in range(first, end, UNIT):
        _gather(lin, x, 2 * slot, scratch)
        for i in range(0, 2 * UNIT, 8):
            value = _rounded(load(f32x8, scratch + 4 * i), limit)
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


@inline
def _nearest(book: int, count: int, shift: int, rest: int, out: int) -> None:
    """Numbers i32[UNIT] at `out` of the nearest centroids for i16[UNIT, 2] at `rest`.

    With c' = c << shift, |x - c'|^2 is least where c . (c' - 2 x) is; the centroid's number in the
    low bits makes the lowest of equals win.
    """
    x0 = shl(load(i16x16, rest), 1)
    x1 = shl(load(i16x16, rest + 32), 1)
    best0 = splat(i32x8, 0x7FFFFFFF)
    best1 = best0
    for k in range(count):
        number = splat(i32x8, k)
        at = book + k * 2 * UNIT
        prefetch(at + AHEAD // 2)
        c0 = sext(i16x16, load(i8x16, at))
        c1 = sext(i16x16, load(i8x16, at + 16))
        score0 = maddwd(c0, sub(shl(c0, shift), x0))
        score1 = maddwd(c1, sub(shl(c1, shift), x1))
        best0 = vmin(best0, add(shl(score0, INDEX_BITS), number))
        best1 = vmin(best1, add(shl(score1, INDEX_BITS), number))
    mask = splat(i32x8, (1 << INDEX_BITS) - 1)
    store(out, band(best0, mask))
    store(out + 32, band(best1, mask))


@inline
def _expand(book: int, count: int, shift: int, out: int) -> None:
    """For every centroid and half of a block: 256 c as i16[8, 2], (c . c') 256 + k as i32[8]."""
    for k in range(count):
        for i in range(2):
            c = sext(i16x16, load(i8x16, book + k * 2 * UNIT + 16 * i))
            own = shl(maddwd(c, shl(c, shift)), INDEX_BITS)
            at = out + 128 * k + 64 * i
            store(at, shl(c, INDEX_BITS))
            store(at + 32, add(own, splat(i32x8, k)))


@inline
def _nearest_two(expanded: int, count: int, rest: int, other: int, out: int) -> None:
    """As `_nearest` for two tokens, with what does not depend on x made by `_expand`.

    rest and other: i16[UNIT, 2] each; out: i32[2, UNIT].
    """
    zero = splat(i16x16, 0)
    x0 = sub(zero, shl(load(i16x16, rest), 1))
    x1 = sub(zero, shl(load(i16x16, rest + 32), 1))
    y0 = sub(zero, shl(load(i16x16, other), 1))
    y1 = sub(zero, shl(load(i16x16, other + 32), 1))
    best0 = best1 = best2 = best3 = splat(i32x8, 0x7FFFFFFF)
    for k in range(count):
        at = expanded + 128 * k
        c, own = load(i16x16, at), load(i32x8, at + 32)
        best0 = vmin(best0, add(maddwd(c, x0), own))
        best2 = vmin(best2, add(maddwd(c, y0), own))
        c, own = load(i16x16, at + 64), load(i32x8, at + 96)
        best1 = vmin(best1, add(maddwd(c, x1), own))
        best3 = vmin(best3, add(maddwd(c, y1), own))
    mask = splat(i32x8, (1 << INDEX_BITS) - 1)
    store(out, band(best0, mask))
    store(out + 32, band(best1, mask))
    store(out + 64, band(best2, mask))
    store(out + 96, band(best3, mask))


# ---------------------------------------------------------------- rows


@inline
def make_rows(lin: Any, group: int, segment: int, act_stage: int, act: int, rows: int) -> None:
    """As `plain.make_rows`. Two slots at a time: each half of a register belongs to one slot."""
    if not lin.fast_rows:
        plain.make_rows(lin, group, segment, act_stage, act, rows)
        return
    place = group * lin.stream_slots + segment_place(lin, segment)
    book = lin.weight_codebook + place * 32
    factors = lin.shift + 2 * (act_stage * lin.groups * lin.stream_slots + place)
    vectors = act + segment_vector(lin, segment)
    mask = _pair_mask()
    wide = segment_wide(lin, segment)
    bits = lin.table_bits if wide else min(lin.table_bits, 8)
    for pair in range(segment_slots(lin, segment) // 2):
        at = book + 64 * pair
        prefetch(at + AHEAD // 2)
        entry0, entry1 = _pair_entries(at, vectors + 4 * pair, factors + 4 * pair, mask)
        if bits != 8:  # to 8 bits they are packed with saturation
            top = splat(i16x16, (1 << (bits - 1)) - 1)
            low = splat(i16x16, -(1 << (bits - 1)))
            entry0 = vmax(vmin(entry0, top), low)
            entry1 = vmax(vmin(entry1, top), low)
        if wide:
            store(rows + SEGMENT * 16 + 32 * pair, _low_bytes(entry0, entry1))
            entry0, entry1 = ashr(entry0, 8), ashr(entry1, 8)
        store(rows + 32 * pair, bxor(packsswb(entry0, entry1), splat(i8x32, 0x80)))


@inline
def _low_bytes(first: Vector, second: Vector) -> Vector:
    """The low bytes of two i16x16, in the order of packsswb."""
    byte, middle = splat(i16x16, 255), splat(i16x16, 128)
    first, second = sub(band(first, byte), middle), sub(band(second, byte), middle)
    return bxor(packsswb(first, second), splat(i8x32, 0x80))


@inline
def _outward(dot: Vector) -> Vector:
    """dot - (dot < 0), so that rounding halves up then rounds them away from zero."""
    return add(dot, ashr(dot, 15))


@inline
def _pair_entries(book: int, vectors: int, factors: int, mask: Vector) -> tuple[Vector, Vector]:
    """Rounded dot products of two slots before saturation, 8 centroids of each per vector.

    A byte product needs one unsigned factor, so the activation's sign moves to the centroid.
    """
    a = pshufb(bitcast(i8x32, splat(i32x8, load_i32(vectors))), mask)
    factor = bitcast(i16x16, pshufb(bitcast(i8x32, splat(i32x8, load_i32(factors))), mask))
    size = psignb(a, a)
    dot0 = maddubs(size, psignb(load(i8x32, book), a))
    dot1 = maddubs(size, psignb(load(i8x32, book + 32), a))
    return mulhrs(_outward(dot0), factor), mulhrs(_outward(dot1), factor)


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


def _shuffle(builder: Any, table: Any, index: Any) -> Any:
    name = "llvm.x86.avx2.pshuf.b"
    kind = ir.FunctionType(i8x32.llvm, [i8x32.llvm] * 2)
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [table, index])


def _load_at(builder: Any, address: Any, offset: int, lanes: int) -> Any:
    kind = ir.VectorType(ir.IntType(8), lanes)
    place = builder.add(address, ir.Constant(address.type, offset))
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=1)


def _prefetch_at(builder: Any, address: Any, offset: int) -> None:
    place = builder.add(address, ir.Constant(address.type, offset))
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    hints = [number(0), number(3), number(1)]  # read, keep in all levels, data
    builder.call(function, [builder.inttoptr(place, byte), *hints])


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
                row = _load_at(builder, args[0], 16 * slot, 16)
                table = builder.shuffle_vector(row, row, spread)
                if addresses:
                    indices = _packed_indices(builder, addresses, slot)
                else:
                    at = 32 * count * slot
                    indices = [_load_at(builder, args[2], at + 32 * n, 32) for n in range(count)]
                for n, index in enumerate(indices):
                    entry = _shuffle(builder, table, index)
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
            _prefetch_at(builder, a, TILE // 2 * slot + AHEAD)
    packed = [_load_at(builder, a, TILE // 2 * slot, 32) for a in addresses]
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
