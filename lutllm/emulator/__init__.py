"""The emulator: runs an artifact on a CPU, bit-exact with `lutllm.intmath`.

    reference   the whole decoder in plain numpy, what the rest is tested against
    cpu, jit    what the processor offers; compiled kernels and their cache
    simd        vector values inside Numba functions; simd_x86, simd_arm: single instructions
    layout      a LUT linear in the order the kernels read it
    plain, shuffle, avx512   kernel sets: the same functions; `kernels` is the set in use, and
                `activations` and `rows` what the last two share
    linear      a LUT linear over a block of tokens, from those functions
    floats      norms, rotary embedding, scores, activation function, float head
    int8_head   the head on int8 rows, from `dot`, whose step is that of the kernel set
    forward     the whole decoder as one kernel that a `team` of threads runs together; its phases
                are in attention, head, and linear, what they know of a model in records
    model       an artifact that runs, over cache, float_tensors, sampling and generation
    runner      single linears whose codebooks change, for the quantizer
    bench       speeds beside what memory and processor would allow

Imports are lazy so that reading an artifact does not load the compiler.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Generation", "LutModel"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lutllm.emulator import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
