"""Products of float32 activations with matrices that may be held in bfloat16."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit


def fast_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies it natively, else float32.

    Sums are float32 in either. With AMX a product takes a fifth of the time, with AVX-512's own
    instructions half of it.
    """
    found = torch.cpu.get_capabilities()
    native = any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [n, k] times b [k, m] in the type of b -> f32[n, m]."""
    return (a.to(b.dtype) @ b).float()


def words(x: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor as an array: u16 of bfloat16, u32 of float32.

    numpy knows no bfloat16; `widened` and `narrowed` make a float32 of a word and a word of it.
    """
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(np.uint16)
    return x.numpy().view(np.uint32)


@njit(inline="always")
def widened(words: np.ndarray, bits: np.ndarray) -> None:
    """bits u32[n] of the float32 values that u16[n] or u32[n] words hold."""
    shift = np.uint32(32 - 8 * words.itemsize)
    for i in range(len(words)):
        bits[i] = np.uint32(words[i]) << shift


@njit(inline="always")
def narrowed(bits: np.ndarray, words: np.ndarray) -> None:
    """The inverse of `widened`: bfloat16 rounds to even."""
    if words.itemsize == 4:
        for i in range(len(bits)):
            words[i] = bits[i]
    else:
        for i in range(len(bits)):
            odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
            words[i] = (bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16)
