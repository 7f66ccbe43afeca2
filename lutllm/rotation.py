"""Rotation of a linear's input: additions that spread what a few channels hold over many.

For h = 1, 2, 4, ... below the block size, channels are cut into runs of 2 h from the first on, and
of every whole run the halves a, b become a + b, a - b: Walsh-Hadamard transforms of blocks of the
given size, of smaller powers of two behind the last whole block, not normalised. A heavy tail in
one channel becomes a small share of all, which centroids of a fixed rate serve better (QuaRot,
arXiv 2404.00456, rotates for the sake of integers). Each output is one float32 addition of two
inputs of its step, so that every implementation gives the same bits.
"""

from __future__ import annotations

import numpy as np


def steps(channels: int, rotation: int) -> list[tuple[int, int]]:
    """(h, channels that take part) of every step."""
    halves = [1 << k for k in range(max(rotation, 1).bit_length() - 1)]
    return [(h, channels // (2 * h) * 2 * h) for h in halves if 2 * h <= channels]


def rotate(x: np.ndarray, rotation: int) -> np.ndarray:
    """x: f32[T, D] -> f32[T, D], not normalised."""
    out = np.array(x, np.float32)
    for h, end in steps(x.shape[1], rotation):
        pairs = out[:, :end].reshape(len(x), -1, 2, h)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        out[:, :end] = np.stack([a + b, a - b], axis=2).reshape(len(x), end)
    return out


def lengths(channels: int, rotation: int) -> np.ndarray:
    """Length of each row of the transform, by which it is divided to be a rotation: f32[D]."""
    doublings = np.zeros(channels, np.int32)
    for _, end in steps(channels, rotation):
        doublings[:end] += 1
    return np.sqrt(np.exp2(doublings)).astype(np.float32)
