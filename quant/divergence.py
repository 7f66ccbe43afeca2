"""Kullback-Leibler divergence between the predictions of two models, and its gradient.

A vocabulary is large, so logits exist for few positions at a time, and what is done to them is one
pass over each row.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from calib.matmul import product
from calib.operators import exponentials, maximum

#: Positions whose logits exist at once.
_HEAD_CHUNK = 128


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
        top_s, top_t = maximum(s), maximum(t)
        sum_s = exponentials(s, top_s, bits, ours)
        sum_t = exponentials(t, top_t, bits, theirs)
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
