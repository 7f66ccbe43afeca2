"""Rotated inputs of a linear: `lutllm.rotation` on addresses."""

from __future__ import annotations

from typing import Any

from lutllm.emulator.jit import inline
from lutllm.emulator.simd import add, f32x8, load, load_f32, store, store_f32, sub


@inline
def rotate(lin: Any, x: int, out: int) -> None:
    """out f32[D] = rotation of x f32[D], another place."""
    size = lin.in_features
    whole = size // 8 * 8 if lin.rotation >= 8 else 0
    for first in range(0, whole, 8):
        _first_steps(x + 4 * first, out + 4 * first)
    for i in range(whole, size):
        store_f32(out + 4 * i, load_f32(x + 4 * i))
    h = 1
    while h < lin.rotation:
        done = whole if h < 8 else 0
        for first in range(done, size // (2 * h) * 2 * h, 2 * h):
            _butterfly(out + 4 * first, h)
        h *= 2


@inline
def _first_steps(x: int, out: int) -> None:
    """The steps h = 1, 2, 4 of eight channels."""
    a, b, c, d = load_f32(x), load_f32(x + 4), load_f32(x + 8), load_f32(x + 12)
    e, f, g, h = load_f32(x + 16), load_f32(x + 20), load_f32(x + 24), load_f32(x + 28)
    a, b, c, d, e, f, g, h = a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h
    a, b, c, d, e, f, g, h = a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h
    store_f32(out, a + e)
    store_f32(out + 4, b + f)
    store_f32(out + 8, c + g)
    store_f32(out + 12, d + h)
    store_f32(out + 16, a - e)
    store_f32(out + 20, b - f)
    store_f32(out + 24, c - g)
    store_f32(out + 28, d - h)


@inline
def _butterfly(x: int, h: int) -> None:
    """Halves a, b of x f32[2 h] to a + b, a - b."""
    whole = h // 8 * 8
    for i in range(0, 4 * whole, 32):
        left, right = load(f32x8, x + i), load(f32x8, x + 4 * h + i)
        store(x + i, add(left, right))
        store(x + 4 * h + i, sub(left, right))
    for i in range(4 * whole, 4 * h, 4):
        a, b = load_f32(x + i), load_f32(x + 4 * h + i)
        store_f32(x + i, a + b)
        store_f32(x + 4 * h + i, a - b)
