"""The distances of a centroid search in vectors: a distance and a centroid's number in one lane.

Lanes hold pairs of channels as 16 bits each. The INDEX_BITS at the bottom of a 32-bit key are the
centroid's number, so the least key is the nearest centroid, and the lowest number of equals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutllm.emulator.jit import inline
from lutllm.emulator.simd import Vector, absolute, add, band, bitcast, bor, shl, splat, sub, vmax

INDEX_BITS = 8


@dataclass(frozen=True)
class Distance:
    """A distance between pairs of channels. c: centroids as stored, k: their number; all have
    `shift` further bits than x.

    prepared(x)        what the searches take of x
    fixed(c, shift, k) (words, own) of a centroid, which do not depend on x
    key(words, own, x) the key of a centroid; x as prepared
    whole(c, shift, k, x)  the same at once
    """

    prepared: Any
    fixed: Any
    key: Any
    whole: Any


def make_squared(words: Vector, pairs: Vector, dot: Any) -> Distance:
    """Squared distance less |x|^2: with c' = c << shift, c . (c' - 2 x) is least where |x - c'|^2
    is.

    words: the vector of 16 bits, pairs: that of as many bits in 32; dot(total, a, b): total pairs
    plus products of words, neighbours added.
    """

    @inline
    def prepared(x: Vector) -> Vector:
        return sub(splat(words, 0), shl(x, 1))

    @inline
    def fixed(c: Vector, shift: int, k: int) -> tuple[Vector, Vector]:
        own = shl(dot(splat(pairs, 0), c, shl(c, shift)), INDEX_BITS)
        return shl(c, INDEX_BITS), add(own, splat(pairs, k))

    @inline
    def key(c: Vector, own: Vector, x: Vector) -> Vector:
        return dot(own, c, x)

    @inline
    def whole(c: Vector, shift: int, k: int, x: Vector) -> Vector:
        score = dot(splat(pairs, 0), c, add(shl(c, shift), x))
        return add(shl(score, INDEX_BITS), splat(pairs, k))

    return Distance(prepared, fixed, key, whole)


def make_chebyshev(pairs: Vector) -> Distance:
    """The larger difference of two channels, below 2^15, in the upper half of a lane."""

    @inline
    def prepared(x: Vector) -> Vector:
        return x

    @inline
    def fixed(c: Vector, shift: int, k: int) -> tuple[Vector, Vector]:
        return shl(c, shift), splat(pairs, k)

    @inline
    def key(c: Vector, own: Vector, x: Vector) -> Vector:
        both = bitcast(pairs, absolute(sub(x, c)))
        larger = vmax(both, shl(both, 16))
        return bor(band(larger, splat(pairs, -65536)), own)

    @inline
    def whole(c: Vector, shift: int, k: int, x: Vector) -> Vector:
        return key(shl(c, shift), splat(pairs, k), x)

    return Distance(prepared, fixed, key, whole)
