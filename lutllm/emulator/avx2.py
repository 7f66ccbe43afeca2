"""The kernels of a LUT linear with AVX2: 16-entry rows are byte shuffles.

One `pshufb` looks up 32 outputs of one slot, so the cost lies in adding bytes into wider sums.
Entries are kept as unsigned bytes (entry + 128), and a block of 16 slots needs only two byte
operations a lookup:

    low    the sum of the bytes modulo 256                  16 x vpaddb
    mean   a tree of rounding averages (a + b + 1) >> 1     15 x vpavgb

A level of the tree rounds up by at most 1/2, so 16 mean - sum lies in 0 .. 32. Over up to seven
blocks 16 sum(mean) - sum lies in 0 .. 224, and its value modulo 256 is known: the sum is exact.
Against widening every lookup (shift, two additions) this saves a quarter of the instructions.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from lutllm.config import ACT_LIMIT, STAGE_BITS
from lutllm.emulator import plain
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import SEGMENT, TILE, UNIT
from lutllm.emulator.plain import (
    largest_input,
    segment_shift,
    segment_slots,
    segment_start,
    stream_index,
)
from lutllm.emulator.simd import (
    Vector,
    add,
    band,
    bitcast,
    bxor,
    f32x8,
    float_to_int,
    half,
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
    mul,
    mulhrs,
    packsswb,
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
    vmax,
    vmin,
)

__all__ = ["code_block", "largest_input", "lookup", "make_rows", "quantize_block"]

#: Bits below the score that hold the centroid's number while searching.
INDEX_BITS = 8
assert SEGMENT // UNIT <= 7  # the error bound of the module docstring


@intrinsic
def _pair_mask(typingctx: Any) -> Any:
    """Shuffle that spreads the first 16-bit element over one half, the second over the other."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(i8x32.llvm, [0, 1] * 8 + [2, 3] * 8)

    return i8x32(), codegen


# ---------------------------------------------------------------- activations


@inline
def _gather(lin: Any, x: int, first: int, count: int, scratch: int) -> None:
    """f32[count] at scratch: channels of the slots' elements first, first + 1, ..."""
    for i in range(count):
        channel = load_i32(lin.perm + 4 * (first + i))
        value = load_f32(x + 4 * channel) if channel >= 0 else 0.0
        store_f32(scratch + 4 * i, value)


@inline
def _rounded(values: Vector, limit: int) -> Vector:
    """clamp(rint(values)) as i32x8."""
    top = splat(f32x8, float(limit))
    low = splat(f32x8, float(-limit))
    return float_to_int(i32x8, vmax(vmin(rint(values), top), low))


@inline
def quantize_block(lin: Any, x: int, inverse: float, block: int, act: int) -> None:
    """As `plain.quantize_block`."""
    plain.quantize_block(lin, x, inverse, block, act)


@inline
def code_block(lin: Any, x: int, block: int, act: int, codes: int, scratch: int) -> None:
    """As `plain.code_block`; scratch: 192 bytes."""
    if not lin.fast_search:
        plain.code_block(lin, x, block, act, codes, scratch)
        return
    first = block * UNIT * 2
    _gather(lin, x, first, 2 * UNIT, scratch)
    limit = ACT_LIMIT << (STAGE_BITS * (lin.act_stages - 1))
    for i in range(0, 2 * UNIT, 8):
        scale = load(f32x8, lin.scale + 4 * (first + i))
        value = _rounded(mul(load(f32x8, scratch + 4 * i), scale), limit)
        store(scratch + 128 + 2 * i, trunc(i16x8, value))
    rest = scratch + 128
    for stage in range(lin.act_stages):
        shift = STAGE_BITS * (lin.act_stages - 1 - stage)
        blocks = stage * lin.slots // UNIT + block
        book = lin.act_codebook + blocks * lin.act_centroids * 2 * UNIT
        chosen = act + 2 * (stage * lin.slots + block * UNIT)
        _nearest(book, lin.act_centroids, shift, rest, scratch)
        for slot in range(UNIT):
            code = load_i32(scratch + 4 * slot)
            store_i16(chosen + 2 * slot, load_i16(book + 2 * (code * UNIT + slot)))
            if codes:
                store_i8(codes + stage * lin.slots + block * UNIT + slot, code)
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
        c0 = sext(i16x16, load(i8x16, book + k * 2 * UNIT))
        c1 = sext(i16x16, load(i8x16, book + k * 2 * UNIT + 16))
        score0 = maddwd(c0, sub(shl(c0, shift), x0))
        score1 = maddwd(c1, sub(shl(c1, shift), x1))
        best0 = vmin(best0, add(shl(score0, INDEX_BITS), number))
        best1 = vmin(best1, add(shl(score1, INDEX_BITS), number))
    mask = splat(i32x8, (1 << INDEX_BITS) - 1)
    store(out, band(best0, mask))
    store(out + 32, band(best1, mask))


# ---------------------------------------------------------------- rows


@inline
def make_rows(
    lin: Any, group: int, segment: int, stage: int, act_stage: int, act: int, rows: int
) -> None:
    """As `plain.make_rows`. Two slots at a time: each half of a register belongs to one slot."""
    if not lin.fast_rows:
        plain.make_rows(lin, group, segment, stage, act_stage, act, rows)
        return
    place = group * lin.slots * lin.weight_stages + stream_index(lin, segment, stage)
    plane = act_stage * lin.groups * lin.slots * lin.weight_stages
    book = lin.weight_codebook + place * 32
    factors = lin.shift + 2 * (plane + place)
    vectors = act + 2 * segment_start(lin, segment)
    mask = _pair_mask()
    sign = splat(i8x32, 0x80)
    top = splat(i16x16, (1 << (lin.table_bits - 1)) - 1)
    low = splat(i16x16, -(1 << (lin.table_bits - 1)))
    for pair in range(segment_slots(lin, segment) // 2):
        a = pshufb(bitcast(i8x32, splat(i32x8, load_i32(vectors + 4 * pair))), mask)
        scale = pshufb(bitcast(i8x32, splat(i32x8, load_i32(factors + 4 * pair))), mask)
        factor = bitcast(i16x16, scale)
        size = psignb(a, a)
        dot0 = maddubs(size, psignb(load(i8x32, book + 64 * pair), a))
        dot1 = maddubs(size, psignb(load(i8x32, book + 64 * pair + 32), a))
        entry0 = vmax(vmin(mulhrs(dot0, factor), top), low)
        entry1 = vmax(vmin(mulhrs(dot1, factor), top), low)
        store(rows + 32 * pair, bxor(packsswb(entry0, entry1), sign))


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


def _shuffle(builder: Any, table: Any, index: Any) -> Any:
    name = "llvm.x86.avx2.pshuf.b"
    kind = ir.FunctionType(i8x32.llvm, [i8x32.llvm] * 2)
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [table, index])


def _load_at(builder: Any, address: Any, offset: int, lanes: int) -> Any:
    kind = ir.VectorType(ir.IntType(8), lanes)
    place = builder.add(address, ir.Constant(address.type, offset))
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=1)


def _indices(builder: Any, codes: Any, slot: int, packed: bool) -> list[Any]:
    """The two index vectors of a slot: nibbles taken apart, or bytes already taken apart."""
    if not packed:
        return [_load_at(builder, codes, TILE * slot + at, 32) for at in (0, 32)]
    both = _load_at(builder, codes, TILE // 2 * slot, 32)
    words = ir.VectorType(ir.IntType(16), 16)
    four = ir.Constant(words, [4] * 16)
    nibble = ir.Constant(i8x32.llvm, [15] * 32)
    upper = builder.bitcast(builder.lshr(builder.bitcast(both, words), four), i8x32.llvm)
    return [builder.and_(both, nibble), builder.and_(upper, nibble)]


def _block(packed: bool) -> Any:
    """block(rows, codes, low0, low1) -> low0, low1, mean0, mean1 over UNIT slots of one tile."""

    @intrinsic
    def block(typingctx: Any, rows: Any, codes: Any, low0: Any, low1: Any) -> Any:
        result = types.UniTuple(i8x32, 4)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            lows, trees = list(args[2:]), [_Tree(builder), _Tree(builder)]
            spread = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(16)) * 2)
            for slot in range(UNIT):
                row = _load_at(builder, args[0], 16 * slot, 16)
                table = builder.shuffle_vector(row, row, spread)
                for n, index in enumerate(_indices(builder, args[1], slot, packed)):
                    entry = _shuffle(builder, table, index)
                    lows[n] = builder.add(lows[n], entry)
                    trees[n].push(entry)
            means = [tree.waiting[0][1] for tree in trees]
            return context.make_tuple(builder, result, lows + means)

        return result(types.intp, types.intp, i8x32, i8x32), codegen

    return block


_packed_block = _block(packed=True)
_split_block = _block(packed=False)


@inline
def _widen_add(values: Vector, shift: int, acc: int) -> None:
    """acc: i32[16] += values (i16x16) << shift."""
    for i in range(2):
        part = half(values, 0) if i == 0 else half(values, 1)
        wide = shl(sext(i32x8, part), shift)
        store(acc + 32 * i, add(load(i32x8, acc + 32 * i), wide))


@inline
def _finish(total: Vector, odd: Vector, low: Vector, slots: int, shift: int, acc: int) -> None:
    """Turn sums of means into exact sums and add them to acc: i32[32].

    total: i16x16, sum of the means as 16-bit words (even byte + 256 odd byte, modulo 2^16);
    odd: the odd bytes alone; low: i8x32, the sums modulo 256.
    """
    byte = splat(i16x16, 255)
    bias = splat(i16x16, 128 * slots)
    words = bitcast(i16x16, low)
    high = shl(odd, 4)
    even = shl(sub(total, shl(odd, 8)), 4)
    even = sub(sub(even, band(sub(even, words), byte)), bias)
    high = sub(sub(high, band(sub(high, lshr(words, 8)), byte)), bias)
    _widen_add(even, shift, acc)
    _widen_add(high, shift, acc + 64)


@inline
def _lookup_packed(codes: int, rows: int, slots: int, shift: int, acc: int) -> None:
    low0 = low1 = splat(i8x32, 0)
    total0 = total1 = odd0 = odd1 = splat(i16x16, 0)
    for block in range(slots // UNIT):
        at = block * UNIT
        low0, low1, mean0, mean1 = _packed_block(rows + 16 * at, codes + 32 * at, low0, low1)
        word0, word1 = bitcast(i16x16, mean0), bitcast(i16x16, mean1)
        total0, odd0 = add(total0, word0), add(odd0, lshr(word0, 8))
        total1, odd1 = add(total1, word1), add(odd1, lshr(word1, 8))
    _finish(total0, odd0, low0, slots, shift, acc)
    _finish(total1, odd1, low1, slots, shift, acc + 128)


@inline
def _lookup_split(codes: int, rows: int, slots: int, shift: int, acc: int) -> None:
    low0 = low1 = splat(i8x32, 0)
    total0 = total1 = odd0 = odd1 = splat(i16x16, 0)
    for block in range(slots // UNIT):
        at = block * UNIT
        low0, low1, mean0, mean1 = _split_block(rows + 16 * at, codes + TILE * at, low0, low1)
        word0, word1 = bitcast(i16x16, mean0), bitcast(i16x16, mean1)
        total0, odd0 = add(total0, word0), add(odd0, lshr(word0, 8))
        total1, odd1 = add(total1, word1), add(odd1, lshr(word1, 8))
    _finish(total0, odd0, low0, slots, shift, acc)
    _finish(total1, odd1, low1, slots, shift, acc + 128)


@inline
def _split(codes: int, slots: int, out: int) -> None:
    """Nibbles [slots, 32] -> bytes [slots, 64]."""
    nibble = splat(i8x32, 15)
    for slot in range(slots):
        both = load(i8x32, codes + 32 * slot)
        upper = bitcast(i8x32, lshr(bitcast(i16x16, both), 4))
        store(out + TILE * slot, band(both, nibble))
        store(out + TILE * slot + 32, band(upper, nibble))


@inline
def lookup(
    lin: Any,
    segment: int,
    stage: int,
    codes: int,
    rows: int,
    rows_bytes: int,
    vectors: int,
    acc: int,
    acc_bytes: int,
    scratch: int,
) -> None:
    """As `plain.lookup`; scratch: SEGMENT * TILE bytes."""
    if not lin.fast_lookup:
        plain.lookup(lin, segment, stage, codes, rows, rows_bytes, vectors, acc, acc_bytes, scratch)
        return
    slots = segment_slots(lin, segment)
    if vectors > 2:
        _split(codes, slots, scratch)
    for n in range(vectors):
        shift = segment_shift(lin, segment, n % lin.act_stages, stage)
        target = acc + n // lin.act_stages * acc_bytes
        if vectors > 2:
            _lookup_split(scratch, rows + n * rows_bytes, slots, shift, target)
        else:
            _lookup_packed(codes, rows + n * rows_bytes, slots, shift, target)
