"""Rotated inputs of a linear: `lutllm.rotation` on addresses."""

from __future__ import annotations

from typing import Any

from lutllm.emulator.jit import inline
from lutllm.emulator.simd import add, butterflies, f32x8, load, load_f32, store, store_f32, sub


@inline
def rotate(lin: Any, x: int, out: int) -> None:
    """out f32[D] = rotation of x f32[D], another place."""
    size = lin.in_features
    whole = size // 8 * 8 if lin.rotation >= 8 else 0
    for first in range(0, whole, 8):
        store(out + 4 * first, butterflies(load(f32x8, x + 4 * first)))
    for i in range(whole, size):
        store_f32(out + 4 * i, load_f32(x + 4 * i))
    h = 1
    while h < 8 and h < lin.rotation:
        _steps(out, h, whole, size)
        h *= 2
    while 2 * h < lin.rotation:
        done = size // (4 * h) * 4 * h
        for first in range(0, done, 4 * h):
            _two_steps(out + 4 * first, h)
        _steps(out, h, done, size)
        h *= 4
    if h < lin.rotation:
        _steps(out, h, 0, size)


@inline
def _steps(x: int, h: int, start: int, size: int) -> None:
    """The step h of x f32[size] behind the channels before `start`, which have it."""
    for first in range(start, size // (2 * h) * 2 * h, 2 * h):
        _butterfly(x + 4 * first, h)


@inline
def _two_steps(x: int, h: int) -> None:
    """The steps h and 2 h of x f32[4 h], h a multiple of 8: half the loads and stores of each."""
    quarter = 4 * h
    for i in range(0, quarter, 32):
        at = x + i
        a, b = load(f32x8, at), load(f32x8, at + quarter)
        c, d = load(f32x8, at + 2 * quarter), load(f32x8, at + 3 * quarter)
        a, b, c, d = add(a, b), sub(a, b), add(c, d), sub(c, d)
        store(at, add(a, c))
        store(at + quarter, add(b, d))
        store(at + 2 * quarter, sub(a, c))
        store(at + 3 * quarter, sub(b, d))


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
