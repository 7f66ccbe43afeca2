"""What lookups and products with AVX-512 share: quads of codes, and where sums go.

An index vector holds the codes of 16 outputs in four slots, with the slot in the upper bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from lutllm.emulator.layout import PARTS, QUAD
from lutllm.emulator.simd import (
    broadcast,
    call_llvm,
    i8x64,
    i32x16,
    intrinsic,
    load_at,
    store_at,
)

#: Activation vectors from which taking codes apart pays.
SPLIT_VECTORS = 3
#: Bytes of the centroids of one channel of a quad, packed for products.
PLANE_BYTES = 64


def byte_constant(values: list[int]) -> Any:
    return ir.Constant(i8x64.llvm, values)


def indices_of(builder: Any, both: Any) -> list[Any]:
    """The low and the high nibbles of i8x64 with the slot of a quad above them."""
    words = ir.VectorType(ir.IntType(16), 32)
    four = ir.Constant(words, [4] * 32)
    nibble = byte_constant([15] * 64)
    slot = byte_constant([16 * n for n in range(QUAD)] * 16)
    upper = builder.bitcast(builder.lshr(builder.bitcast(both, words), four), i8x64.llvm)
    return [builder.or_(builder.and_(part, nibble), slot) for part in (both, upper)]


@intrinsic
def zeros(typingctx: Any, vectors: Any, tiles: Any, planes: Any) -> Any:
    """Sums [vectors][planes][tiles][PARTS], all 0. Tuples, of which the lengths matter."""
    count = PARTS * len(vectors) * len(tiles) * len(planes)
    result = types.UniTuple(i32x16, count)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_tuple(builder, result, [ir.Constant(i32x16.llvm, [0] * 16)] * count)

    return result(vectors, tiles, planes), codegen


def look_up(builder: Any, tables: list[Any], index: Any) -> Any:
    """Entries from one register with the rows of a quad, or from one for each of its slots."""
    if len(tables) == 1:
        name = "llvm.x86.avx512.permvar.qi.512"
        return call_llvm(builder, name, i8x64.llvm, [tables[0], index])
    name = "llvm.x86.avx512.vpermi2var.qi.512"  # bit 6 of an index chooses between two rows
    pairs = [
        call_llvm(builder, name, i8x64.llvm, [low, index, high])
        for low, high in (tables[:2], tables[2:])
    ]
    lanes = [i + 64 * (i % 4 >= 2) for i in range(64)]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), 64), lanes)
    return builder.shuffle_vector(*pairs, mask)


@intrinsic
def finish(typingctx: Any, sums: Any, tiles: Any, planes: Any, targets: Any, shifts: Any) -> Any:
    """Add sums << shift to the accumulators of each vector: i32[tiles, TILE] at its target."""
    each = PARTS * len(tiles)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        left = cgutils.unpack_tuple(builder, args[0])
        addresses, powers = (cgutils.unpack_tuple(builder, a) for a in args[3:])
        for address, power in zip(addresses, powers, strict=True):
            parts = [left[n * each : (n + 1) * each] for n in range(len(planes))]
            left = left[each * len(planes) :]
            shift = broadcast(builder, i32x16, builder.trunc(power, ir.IntType(32)))
            for i in range(each):
                total = parts[0][i]
                if len(planes) == 2:
                    eight = ir.Constant(i32x16.llvm, [8] * 16)
                    total = builder.add(builder.shl(total, eight), parts[1][i])
                before = load_at(builder, i32x16, address, 64 * i)
                after = builder.add(before, builder.shl(total, shift))
                store_at(builder, address, 64 * i, after)
        return context.get_dummy_value()

    return types.void(sums, tiles, planes, targets, shifts), codegen
