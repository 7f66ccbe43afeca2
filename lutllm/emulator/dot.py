"""One step of an integer dot product, for each kernel set; the sums are equal."""

from __future__ import annotations

from typing import Any

from lutllm.emulator.cpu import ISA
from lutllm.emulator.jit import inline
from lutllm.emulator.simd import (
    add,
    i8x8,
    i8x16,
    i16x8,
    i16x16,
    i32x8,
    load,
    mul,
    sext,
)

if ISA == "neon":
    from lutllm.emulator.simd_arm import maddwd
else:
    from lutllm.emulator.simd_x86 import maddwd


@inline
def dot_step_plain(total: Any, weights: int, x: int) -> Any:
    """total i32x8 plus the products of i8[16] at `weights` and i16[16] at `x`, spread over it."""
    low = mul(sext(i32x8, load(i8x8, weights)), sext(i32x8, load(i16x8, x)))
    high = mul(sext(i32x8, load(i8x8, weights + 8)), sext(i32x8, load(i16x8, x + 16)))
    return add(total, add(low, high))


@inline
def dot_step_wide(total: Any, weights: int, x: int) -> Any:
    """As `dot_step_plain`, in other lanes: products of neighbours are added by the multiplier."""
    return add(total, maddwd(sext(i16x16, load(i8x16, weights)), load(i16x16, x)))
