"""The kernel set of this process, chosen once by `cpu.ISA`."""

from __future__ import annotations

from lutllm.emulator.cpu import ISA

if ISA == "avx2":
    from lutllm.emulator.avx2 import (
        code_block,
        largest_input,
        lookup,
        make_rows,
        quantize_block,
    )
else:
    from lutllm.emulator.plain import (
        code_block,
        largest_input,
        lookup,
        make_rows,
        quantize_block,
    )

__all__ = ["code_block", "largest_input", "lookup", "make_rows", "quantize_block"]
