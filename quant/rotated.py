"""Rotation of many vectors at once, with its gradient; the arithmetic is `lutllm.rotation`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange

from lutllm.rotation import lengths


@njit(cache=True, parallel=True)
def _rotate(x: np.ndarray, rotation: int) -> None:
    """In place, rows of x f32[T, D]."""
    size = x.shape[1]
    for t in prange(len(x)):
        row = x[t]
        h = 1
        while h < rotation:
            for first in range(0, size // (2 * h) * 2 * h, 2 * h):
                left, right = row[first : first + h], row[first + h : first + 2 * h]
                for i in range(h):
                    a, b = left[i], right[i]
                    left[i] = a + b
                    right[i] = a - b
            h *= 2


class _Rotation(torch.autograd.Function):
    """The transform is symmetric: the gradient takes the same steps."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rotation: int) -> torch.Tensor:
        ctx.rotation = rotation
        out = x.detach().clone(memory_format=torch.contiguous_format)
        _rotate(out.numpy(), rotation)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        out = gradients[0].clone(memory_format=torch.contiguous_format)
        _rotate(out.numpy(), ctx.rotation)
        return out, None


def rotated(x: torch.Tensor, rotation: int) -> torch.Tensor:
    """As `lutllm.rotation.rotate`: f32[T, D] -> f32[T, D]; x itself where there is none."""
    return _Rotation.apply(x, rotation) if rotation else x


def orthogonal(x: torch.Tensor, rotation: int) -> torch.Tensor:
    """The same divided by `lengths`, so that products of two such vectors are those of before."""
    if not rotation:
        return x
    return rotated(x, rotation).div_(torch.from_numpy(lengths(x.shape[1], rotation)))
