"""What `shuffle` needs of a processor: the same results from x86 instructions and from ARM's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from lutllm.emulator import simd_arm, simd_x86
from lutllm.emulator.cpu import compiler_target
from lutllm.emulator.jit import kernel
from lutllm.emulator.simd import Vector, i8x32, i16x16, load, store


def apply(operation: Any, operand: Vector, a: np.ndarray, b: np.ndarray) -> bytes:
    out = np.zeros(32, np.uint8)

    @kernel
    def run(a_at: int, b_at: int, out_at: int) -> None:
        store(out_at, operation(load(operand, a_at), load(operand, b_at)))

    run(a.ctypes.data, b.ctypes.data, out.ctypes.data)
    return out.tobytes()


@pytest.mark.parametrize("name", ["maddubs", "maddwd", "packsswb"])
def test_plain_ir_is_the_instruction(name: str) -> None:
    """Those of ARM's functions that every processor can run."""
    if "avx2" not in compiler_target()[2]:
        pytest.skip("needs AVX2 to compare with")
    rng = np.random.default_rng(0)
    operand = i8x32 if name == "maddubs" else i16x16
    for _ in range(50):
        if name == "maddubs":  # sizes and signed values, as the kernels have them
            a = rng.integers(0, 128, 32).astype(np.uint8)
            b = rng.integers(-127, 128, 32).astype(np.int8)
        else:
            a, b = rng.integers(-(1 << 15), 1 << 15, (2, 16)).astype(np.int16)
        ours = apply(getattr(simd_arm, name), operand, a, b)
        assert ours == apply(getattr(simd_x86, name), operand, a, b)


def arm_assembly(emit: Callable[[Any, Any, Any], Any], operand: Vector) -> str:
    """Assembly of 64-bit ARM for emit(builder, a, b) on two vectors behind pointers."""
    module = ir.Module()
    module.triple = "aarch64-unknown-linux-gnu"
    pointer = operand.llvm.as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * 3), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    result = emit(builder, *(builder.load(p, align=1) for p in function.args[:2]))
    out = builder.bitcast(function.args[2], result.type.as_pointer())
    builder.store(result, out, align=1)
    builder.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(opt=3)
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


@pytest.mark.parametrize(
    ("emit", "operand", "instruction"),
    [
        (simd_arm.look_up, i8x32, "\ttbl\t"),
        (simd_arm._mulhrs, i16x16, "sqrdmulh"),
        (simd_arm._maddubs, i8x32, "smull"),
        (simd_arm._maddwd, i16x16, "smull"),
        (simd_arm._packsswb, i16x16, "sqxtn"),
    ],
)
def test_arm_gets_its_own_instructions(emit: Any, operand: Vector, instruction: str) -> None:
    try:
        assembly = arm_assembly(emit, operand)
    except RuntimeError as cause:
        pytest.skip(f"this llvmlite does not compile for ARM: {cause}")
    assert instruction in assembly
    assert "\tbl\t" not in assembly
