"""The kernel set of this process, chosen once by `cpu.ISA`."""

from __future__ import annotations

from lutllm.emulator.cpu import ISA

if ISA in ("amx", "avx512"):
    from lutllm.emulator.avx512 import (
        code_slots,
        largest_input,
        lookup,
        make_rows,
        multiply_panel,
        quantize_slots,
    )
    from lutllm.emulator.dot import dot_step_wide as dot_step
elif ISA in ("avx2", "neon"):
    from lutllm.emulator.dot import dot_step_wide as dot_step
    from lutllm.emulator.plain import multiply_panel
    from lutllm.emulator.shuffle import (
        code_slots,
        largest_input,
        lookup,
        make_rows,
        quantize_slots,
    )
else:
    from lutllm.emulator.dot import dot_step_plain as dot_step
    from lutllm.emulator.plain import (
        code_slots,
        largest_input,
        lookup,
        make_rows,
        multiply_panel,
        quantize_slots,
    )

__all__ = [
    "code_slots",
    "dot_step",
    "largest_input",
    "lookup",
    "make_rows",
    "multiply_panel",
    "quantize_slots",
]
