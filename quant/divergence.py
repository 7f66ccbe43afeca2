"""Kullback-Leibler divergence between the predictions of two models, and its gradient.

A vocabulary is large, so logits exist for few positions at a time, and what is done to them is one
pass over each row.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from calib.matmul import product

#: Positions whose logits exist at once.
_HEAD_CHUNK = 128
_LOG2_E = np.float32(1.44269504)
#: Coefficients of 2^f in -0.5 .. 0.5, interpolated at Chebyshev points; relative error 3e-9.
_POWER = tuple(
    np.float32(c)
    for c in (1, 0.6931472067, 0.2402265092, 0.0555032723, 0.0096180567, 0.0013400428, 0.0001546145)
)


@njit(inline="always", fastmath=True)
def _exponentials(x: np.ndarray, top: np.float32, bits: np.ndarray, out: np.ndarray) -> np.float32:
    """out = exp(x - top), f32[n], top the maximum of x; returns the sum. bits: i32[n], scratch."""
    power = bits.view(np.float32)
    for i in range(len(x)):
        t = max((x[i] - top) * _LOG2_E, np.float32(-126))
        whole = np.floor(t + np.float32(0.5))
        f = t - whole
        p = _POWER[6]
        p = p * f + _POWER[5]
        p = p * f + _POWER[4]
        p = p * f + _POWER[3]
        p = p * f + _POWER[2]
        p = p * f + _POWER[1]
        out[i] = p * f + _POWER[0]
        bits[i] = (np.int32(whole) + 127) << 23
    total = np.float32(0)
    for i in range(len(x)):
        out[i] *= power[i]
        total += out[i]
    return total


@njit(inline="always", fastmath=True)
def _maximum(x: np.ndarray) -> np.float32:
    top = x[0]
    for i in range(1, len(x)):
        top = max(top, x[i])
    return top


@njit(cache=True, parallel=True, fastmath=True)
def _compare(student: np.ndarray, teacher: np.ndarray, factor: np.float32) -> np.ndarray:
    """KL(teacher || student) of each row of logits, f64[n]. student, teacher: f32[n, vocab].

    student becomes the gradient of the divergence, times `factor`.
    """
    rows, vocab = student.shape
    loss = np.empty(rows, np.float64)
    for r in prange(rows):
        bits = np.empty(vocab, np.int32)
        ours, theirs = np.empty(vocab, np.float32), np.empty(vocab, np.float32)
        s, t = student[r], teacher[r]
        top_s, top_t = _maximum(s), _maximum(t)
        sum_s = _exponentials(s, top_s, bits, ours)
        sum_t = _exponentials(t, top_t, bits, theirs)
        # log p_t - log p_s = (t - s) + (log-sum-exp of s - that of t)
        apart = np.float32(0)
        for i in range(vocab):
            apart += theirs[i] * ((t[i] - top_t) - (s[i] - top_s))
        loss[r] = apart / sum_t + np.log(sum_s) - np.log(sum_t)
        for i in range(vocab):
            s[i] = factor * (ours[i] / sum_s - theirs[i] / sum_t)
    return loss


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    heads: tuple[torch.Tensor, torch.Tensor],
    gradient: bool,
) -> tuple[float, torch.Tensor | None]:
    """Mean KL(teacher || student) per position, and its gradient with respect to `student`.

    student, teacher: f32[n, hidden], normalised; heads: [vocab, hidden] of each, in the type that
    they are multiplied in. Memory does not grow with n.
    """
    own, other = heads
    total, parts = 0.0, []
    with torch.no_grad():
        for first in range(0, len(student), _HEAD_CHUNK):
            rows = slice(first, first + _HEAD_CHUNK)
            found = product(student[rows], own.t())
            target = product(teacher[rows], other.t())
            loss = _compare(found.numpy(), target.numpy(), np.float32(1 / len(student)))
            total += float(loss.sum())
            if gradient:
                parts.append(product(found, own))
    return total / len(student), torch.cat(parts) if gradient else None
