"""Weight codebooks that positions share, fitted before any weight is coded.

A codebook of each position follows what its channels are like, and costs half a bit a weight in a
small model. Rotated inputs leave nothing to follow: every position holds about the same normal
distribution, for which one codebook serves all. Its integers are of one unit everywhere, so that
table entries are dot products (`quant.exact`).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from lutllm.config import LutConfig
from quant.codebook import FREE, code_group, normal_template
from quant.error_feedback import CodedWeight
from quant.exact import common_exponents, round_to

#: Vectors that a codebook is fitted to.
_FIT_VECTORS = 16384


def shared_codebooks(
    weight: torch.Tensor,
    row_weights: np.ndarray,
    step: np.ndarray,
    config: LutConfig,
    iterations: int,
) -> CodedWeight:
    """Codebooks of W f32[M, C], which has rows and columns of unit size; codes are yet to be found.

    row_weights: f32[M], what a squared error in a row counts; step: f32[P, v], all alike.
    """
    coded = CodedWeight.empty(config, len(weight), step)
    _fit(
        weight.numpy(),
        row_weights.astype(np.float32),
        config.codebook_positions,
        config.group_size,
        coded.step[0],
        normal_template(config.weight_stages, config.weight_centroids, config.vec_len),
        iterations,
        _FIT_VECTORS,
        coded.integers,
        coded.exponents,
    )
    largest = coded.exponents.max(axis=(0, 1), keepdims=True)[0]
    round_to(coded, np.repeat(largest, len(step), axis=0), config)
    round_to(coded, common_exponents(coded, config), config)
    return coded


@njit(cache=True, parallel=True)
def _fit(
    weight: np.ndarray,
    row_weights: np.ndarray,
    shared: int,
    group_size: int,
    step: np.ndarray,
    template: np.ndarray,
    iterations: int,
    limit: int,
    integers: np.ndarray,
    exponents: np.ndarray,
) -> None:
    """Fill integers i8[P, B, Sw, Kw, v] and exponents i32[P, B, Sw], `shared` positions alike.

    Of the vectors of these positions in a group of rows every n-th is taken, at most `limit`.
    """
    positions, groups, stages, _, v = integers.shape
    rows = weight.shape[0]
    runs = (positions + shared - 1) // shared
    eye = np.eye(v).astype(np.float32)
    for index in prange(runs * groups):
        first, group = index // groups * shared, index % groups
        last = min(positions, first + shared)
        start, stop = group * group_size, min(rows, (group + 1) * group_size)
        count = (last - first) * (stop - start)
        stride = (count + limit - 1) // limit
        taken = (count + stride - 1) // stride
        w, weights = np.empty((v, taken), np.float32), np.empty(taken, np.float32)
        for i in range(taken):
            m = start + i * stride // (last - first)
            p = first + i * stride % (last - first)
            weights[i] = row_weights[m]
            for j in range(v):
                w[j, i] = weight[m, p * v + j]
        book, unit = integers[first, group], exponents[first, group]
        codes, coded = np.empty((stages, taken), np.int32), np.empty_like(w)
        fixed = np.full(stages, FREE, np.int32)
        code_group(
            w, weights, eye, eye, step, fixed, template, iterations, False, book, unit, codes, coded
        )
        for p in range(first + 1, last):
            integers[p, group] = book
            exponents[p, group] = unit
