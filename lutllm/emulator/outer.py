"""Sums of a few rows times 16 columns in registers, a rank-1 step at a time, for attention."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from lutllm.emulator.simd import (
    broadcast,
    f32x8,
    i16x8,
    intrinsic,
    load_at,
    multiply_add,
    store_at,
    widen_half,
)


def _float_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.FloatType().as_pointer())


@intrinsic
def outer_zero(typingctx: Any, rows: Any) -> Any:
    """Accumulators for `outer_fma`: two zero vectors (f32x8) for each address in `rows`."""
    result = types.UniTuple(f32x8, 2 * len(rows))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_tuple(
            builder, result, [ir.Constant(f32x8.llvm, [0.0] * 8)] * len(result)
        )

    return result(rows), codegen


def _outer_fma(half: bool) -> Any:
    @intrinsic
    def step(typingctx: Any, total: Any, rows: Any, offset: Any, column: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            old = cgutils.unpack_tuple(builder, args[0])
            if half:
                parts = [
                    widen_half(builder, load_at(builder, i16x8, args[3], 16 * i)) for i in range(2)
                ]
            else:
                parts = [load_at(builder, f32x8, args[3], 32 * i) for i in range(2)]
            new = []
            for n, address in enumerate(cgutils.unpack_tuple(builder, args[1])):
                place = builder.add(address, args[2])
                value = builder.load(_float_pointer(builder, place), align=1)
                wide = broadcast(builder, f32x8, value)
                for i, part in enumerate(parts):
                    new.append(multiply_add(builder, f32x8, wide, part, old[2 * n + i]))
            return context.make_tuple(builder, total, new)

        return total(total, rows, types.intp, types.intp), codegen

    return step


#: outer_fma(total, rows, offset, column): total[n] += f32 at rows[n] + offset, times the f32[16] at
#: `column`: one rank-1 step. rows: a tuple of addresses; total: as made by `outer_zero`.
outer_fma = _outer_fma(False)
#: The same with half precision at `column`.
outer_fma_half = _outer_fma(True)


@intrinsic
def outer_load(typingctx: Any, rows: Any, offset: Any) -> Any:
    """Accumulators as `outer_store` left them."""
    result = types.UniTuple(f32x8, 2 * len(rows))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = []
        for address in cgutils.unpack_tuple(builder, args[0]):
            for i in range(2):
                place = builder.add(address, args[1])
                values.append(load_at(builder, f32x8, place, 32 * i))
        return context.make_tuple(builder, result, values)

    return result(rows, types.intp), codegen


@intrinsic
def outer_store(typingctx: Any, total: Any, rows: Any, offset: Any) -> Any:
    """Store the two vectors of each row at rows[n] + offset."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[0])
        for n, address in enumerate(cgutils.unpack_tuple(builder, args[1])):
            for i in range(2):
                store_at(builder, builder.add(address, args[2]), 32 * i, values[2 * n + i])
        return context.get_dummy_value()

    return types.void(total, rows, types.intp), codegen
