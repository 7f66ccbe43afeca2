"""The instructions that `shuffle` needs, for 64-bit ARM: the names and results of `simd_x86`.

NEON registers have 128 bits, so a vector of 256 is two of them. Two instructions are named; the
rest is plain LLVM IR in which LLVM finds ARM's own (smull, addp, sqxtn, urhadd).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from lutllm.emulator.simd import (
    Vector,
    absolute,
    call_llvm,
    i8x16,
    i8x32,
    i16x8,
    i16x16,
    i32x8,
    intrinsic,
    signed_as,
)

_I32 = ir.IntType(32)


def _lanes(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """Lanes of a followed by b."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _by_halves(builder: Any, name: str, half: Vector, a: Any, b: Any) -> Any:
    """The instruction `name` on both halves of two vectors."""
    count = half.lanes
    parts = []
    for first in (0, count):
        own = [_lanes(builder, x, x, list(range(first, first + count))) for x in (a, b)]
        parts.append(call_llvm(builder, name, half.llvm, own))
    return _lanes(builder, parts[0], parts[1], list(range(2 * count)))


def look_up(builder: Any, table: Any, index: Any) -> Any:
    """Inside an intrinsic: `pshufb`."""
    return _by_halves(builder, "llvm.aarch64.neon.tbl1.v16i8", i8x16, table, index)


def _products(builder: Any, a: Any, b: Any, vector: Vector) -> Any:
    """Signed products in the elements of `vector`, neighbours added."""
    wide = ir.VectorType(vector.llvm.element, a.type.count)
    return _add_neighbours(builder, builder.mul(builder.sext(a, wide), builder.sext(b, wide)))


def _add_neighbours(builder: Any, values: Any) -> Any:
    count = values.type.count
    parts = [_lanes(builder, values, values, list(range(first, count, 2))) for first in (0, 1)]
    return builder.add(*parts)


def _binary(result: Vector, operand: Vector, emit: Any) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        if (a, b) != (operand, operand):
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, *args)

        return result(operand, operand), codegen

    return operation


def _maddubs(builder: Any, a: Any, b: Any) -> Any:
    """Both factors are at most 127: signed does as well, and no sum saturates."""
    return _products(builder, a, b, i16x16)


def _maddwd(builder: Any, a: Any, b: Any) -> Any:
    return _products(builder, a, b, i32x8)


def _mulhrs(builder: Any, a: Any, b: Any) -> Any:
    """(2 a b + 2^15) >> 16 is (a b + 2^14) >> 15; only -2^15 times itself would saturate."""
    return _by_halves(builder, "llvm.aarch64.neon.sqrdmulh.v8i16", i16x8, a, b)


def _packsswb(builder: Any, a: Any, b: Any) -> Any:
    both = _lanes(builder, a, b, [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)])
    for test, bound in (("<", 127), (">", -128)):
        limit = ir.Constant(both.type, [bound] * 32)
        both = builder.select(builder.icmp_signed(test, both, limit), both, limit)
    return builder.trunc(both, i8x32.llvm)


pshufb = _binary(i8x32, i8x32, look_up)
maddubs = _binary(i16x16, i8x32, _maddubs)
maddwd = _binary(i32x8, i16x16, _maddwd)
mulhrs = _binary(i16x16, i16x16, _mulhrs)
packsswb = _binary(i8x32, i16x16, _packsswb)
#: Other than the instruction of x86 not 0 where the second operand is 0; there it is multiplied by
#: 0.
signed = signed_as
magnitude = absolute
