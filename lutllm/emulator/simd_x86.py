"""Single instructions of x86 processors as functions of vectors.

A kernel that uses one may only be compiled where `cpu.SETS` has checked that it exists.
"""

from __future__ import annotations

from typing import Any

from lutllm.emulator.simd import (
    Vector,
    absolute,
    call_llvm,
    i8x32,
    i8x64,
    i16x16,
    i16x32,
    i32x8,
    i32x16,
    intrinsic,
)


def look_up(builder: Any, table: Any, index: Any) -> Any:
    """Inside an intrinsic: `pshufb`."""
    return call_llvm(builder, "llvm.x86.avx2.pshuf.b", i8x32.llvm, [table, index])


def _x86(name: str, result: Vector, *operands: Vector) -> Any:
    """One instruction as a function of vectors."""

    def build(typingctx: Any, given: tuple[Any, ...]) -> Any:
        if tuple(given) != operands:
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return call_llvm(builder, f"llvm.x86.{name}", result.llvm, list(args))

        return result(*operands), codegen

    if len(operands) == 3:
        return intrinsic(lambda typingctx, a, b, c: build(typingctx, (a, b, c)))
    return intrinsic(lambda typingctx, a, b: build(typingctx, (a, b)))


#: Bytes of the first operand picked by the low 4 bits of the second, in each 16-byte half.
pshufb = _x86("avx2.pshuf.b", i8x32, i8x32, i8x32)
#: The first operand with the sign of the second (0 where that is 0).
signed = _x86("avx2.psign.b", i8x32, i8x32, i8x32)
magnitude = absolute
#: Unsigned times signed bytes, neighbours added to 16 bits with saturation.
maddubs = _x86("avx2.pmadd.ub.sw", i16x16, i8x32, i8x32)
#: Signed 16-bit products, neighbours added to 32 bits.
maddwd = _x86("avx2.pmadd.wd", i32x8, i16x16, i16x16)
#: (a * b + 2^14) >> 15 on signed 16 bits.
mulhrs = _x86("avx2.pmul.hr.sw", i16x16, i16x16, i16x16)
#: Saturate 16 bits to signed 8, the halves of both operands interleaved.
packsswb = _x86("avx2.packsswb", i8x32, i16x16, i16x16)

# ---------------------------------------------------------------- AVX-512

pshufb512 = _x86("avx512.pshuf.b.512", i8x64, i8x64, i8x64)
maddubs512 = _x86("avx512.pmaddubs.w.512", i16x32, i8x64, i8x64)
mulhrs512 = _x86("avx512.pmul.hr.sw.512", i16x32, i16x32, i16x32)
packsswb512 = _x86("avx512.packsswb.512", i8x64, i16x32, i16x32)
#: As packsswb, saturating to unsigned bytes.
packuswb512 = _x86("avx512.packuswb.512", i8x64, i16x32, i16x32)


@intrinsic
def dpwssd512(typingctx: Any, total: Any, a: Any, b: Any) -> Any:
    """total i32x16 plus signed 16-bit products of i16x32, neighbours added."""
    if (total, a, b) != (i32x16, i16x32, i16x32):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        words = [builder.bitcast(value, i32x16.llvm) for value in args[1:]]
        return call_llvm(builder, "llvm.x86.avx512.vpdpwssd.512", i32x16.llvm, [args[0], *words])

    return i32x16(total, a, b), codegen
