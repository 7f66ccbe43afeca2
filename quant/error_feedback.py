"""Sequential coding of a weight matrix with error feedback, and coordinate descent after it.

The objective is tr((Q - W) H (Q - W)^T) with H the second moment of the (quantized) inputs. Pairs
of columns, one position each, are coded in order; the error of a position is passed on to the
positions after it, as GPTQ (arXiv 2210.17323) does for single columns and GPTVQ (arXiv 2402.15319)
for vectors. Coordinate descent then revisits every position with the rest held fixed.

Columns here are slots: C = P * v of them, in coding order. Row groups are independent, so they run
in parallel and the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

from lutllm.config import LutConfig
from lutllm.errors import LutLLMError
from quant.codebook import FREE, code_group, decode_group, normal_template, weighted_error

_BLOCK_POSITIONS = 32
#: Iterations of a codebook that is revisited.
SWEEP_ITERATIONS = 3


@dataclass
class CodedWeight:
    """Integer codebooks and codes of a weight matrix in slot order.

    integers:  i8[P, B, Sw, Kw, v]
    exponents: i32[P, B, Sw]   centroid = integer * step[slot] * 2^exponent
    codes:     u8[Sw, P, M]
    step:      f32[P, v]       unit of an integer in each slot
    values:    f32[M, C]       the coded weights
    shared     whether the exponents of all groups and of the positions of a block are the same
    """

    integers: np.ndarray
    exponents: np.ndarray
    codes: np.ndarray
    step: np.ndarray
    values: np.ndarray
    shared: bool = False

    @classmethod
    def empty(cls, config: LutConfig, rows: int, step: np.ndarray) -> CodedWeight:
        positions, v = step.shape
        shape = (positions, config.num_groups(rows), config.weight_stages)
        return cls(
            np.zeros((*shape, config.weight_centroids, v), np.int8),
            np.zeros(shape, np.int32),
            np.zeros((config.weight_stages, positions, rows), np.uint8),
            np.ascontiguousarray(step, np.float32),
            np.zeros((rows, positions * v), np.float32),
        )

    @classmethod
    def join(cls, parts: Sequence[CodedWeight]) -> CodedWeight:
        """Row groups one after another: the parts but the last are whole groups.

        Parts whose groups share exponents do not share them with each other.
        """
        return cls(
            np.concatenate([p.integers for p in parts], axis=1),
            np.concatenate([p.exponents for p in parts], axis=1),
            np.concatenate([p.codes for p in parts], axis=2),
            parts[0].step,
            np.concatenate([p.values for p in parts]),
            all(p.shared for p in parts),
        )


def upper_inverse_factor(moment: torch.Tensor) -> torch.Tensor:
    """Upper triangular U with H^-1 = U^T U, from one Cholesky factorisation of H reversed."""
    flipped = torch.linalg.cholesky(moment.flip(0, 1))
    upper = flipped.flip(0, 1)
    eye = torch.eye(len(moment), dtype=moment.dtype)
    return torch.linalg.solve_triangular(upper, eye, upper=True)


def with_damping(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """H + damping * mean(diag H) * I."""
    out = moment.clone()
    out.diagonal().add_(damping * float(moment.diagonal().mean()) + 1e-12)
    return out


def robust(factor: Callable[[float], torch.Tensor], damping: float) -> torch.Tensor:
    """factor(damping), with ten times more damping whenever the matrix is not positive definite."""
    for _ in range(6):
        try:
            return factor(damping)
        except torch.linalg.LinAlgError:
            damping *= 10
    raise LutLLMError(
        f"the second moment of the activations stays singular with damping {damping:g}; "
        "give more calibration text"
    )


def position_blocks(matrix: torch.Tensor, vec_len: int) -> torch.Tensor:
    """The v x v diagonal blocks of a square matrix: f32[P, v, v]."""
    positions = len(matrix) // vec_len
    index = torch.arange(positions)
    return matrix.view(positions, vec_len, positions, vec_len)[index, :, index, :].contiguous()


def error_feedback(
    weight: torch.Tensor,
    moment: torch.Tensor,
    row_weights: np.ndarray,
    step: np.ndarray,
    config: LutConfig,
    *,
    damping: float = 0.01,
    iterations: int = 10,
    given: CodedWeight | None = None,
) -> CodedWeight:
    """Code W position by position. weight: f32[M, C]; moment: f32[C, C]; row_weights: f32[M].

    row_weights multiply the squared error of a row when codebooks are fitted. given: codebooks that
    are kept, its codes and values are replaced; None fits them `iterations` times.
    """
    vec_len = config.vec_len
    upper = robust(lambda d: upper_inverse_factor(with_damping(moment, d)), damping)
    diagonal = position_blocks(upper, vec_len)
    matrix = torch.linalg.inv(diagonal).contiguous().numpy()
    inverse = diagonal.numpy()
    rest = weight.clone()
    coded = given or CodedWeight.empty(config, len(weight), step)
    template = normal_template(config.weight_stages, config.weight_centroids, vec_len)
    positions = len(step)
    for first in range(0, positions, _BLOCK_POSITIONS):
        last = min(positions, first + _BLOCK_POSITIONS)
        a, b = first * vec_len, last * vec_len
        target = rest[:, a:b].contiguous()
        errors = torch.zeros_like(target)
        _feedback_block(
            target.numpy(),
            upper[a:b, a:b].contiguous().numpy(),
            matrix,
            inverse,
            first,
            coded.step,
            row_weights,
            template,
            config.group_size,
            0 if given else iterations,
            coded.integers,
            coded.exponents,
            coded.codes,
            coded.values,
            errors.numpy(),
        )
        rest[:, b:] -= errors @ upper[a:b, b:]
    return coded


@njit(cache=True, parallel=True)
def _feedback_block(
    target: np.ndarray,
    upper: np.ndarray,
    matrix: np.ndarray,
    inverse: np.ndarray,
    first: int,
    step: np.ndarray,
    row_weights: np.ndarray,
    template: np.ndarray,
    group_size: int,
    iterations: int,
    integers: np.ndarray,
    exponents: np.ndarray,
    codes: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Code a block of positions; target f32[M, n*v] is consumed, errors f32[M, n*v] written.

    iterations: 0 for the codebooks that integers and exponents hold.

    errors holds (w - q) U_dd^-1 of each position, what the later blocks have to absorb.
    """
    rows = target.shape[0]
    v = step.shape[1]
    count = target.shape[1] // v
    for g in prange((rows + group_size - 1) // group_size):
        start = g * group_size
        stop = min(rows, start + group_size)
        n = stop - start
        stages = integers.shape[2]
        fixed = np.full(stages, FREE, np.int32)
        w = np.empty((v, n), np.float32)
        coded = np.empty((v, n), np.float32)
        group_codes = np.empty((stages, n), np.int32)
        for d in range(count):
            base, p = d * v, first + d
            for j in range(v):
                for i in range(n):
                    w[j, i] = target[start + i, base + j]
            code_group(
                w,
                row_weights[start:stop],
                matrix[p],
                inverse[p],
                step[p],
                fixed,
                template,
                iterations,
                False,
                integers[p, g],
                exponents[p, g],
                group_codes,
                coded,
            )
            for s in range(stages):
                for i in range(n):
                    codes[s, p, start + i] = group_codes[s, i]
            for i in range(n):
                row = target[start + i]
                for j in range(v):
                    values[start + i, p * v + j] = coded[j, i]
                    e = np.float32(0)
                    for m in range(v):
                        e += (w[m, i] - coded[m, i]) * matrix[p, m, j]
                    errors[start + i, base + j] = e
                for j in range(v):
                    e = errors[start + i, base + j]
                    for c in range(base + v, count * v):
                        row[c] -= e * upper[base + j, c]


def coordinate_descent(
    coded: CodedWeight,
    weight: torch.Tensor,
    moment: torch.Tensor,
    row_weights: np.ndarray,
    config: LutConfig,
    *,
    damping: float = 0.01,
    iterations: int = SWEEP_ITERATIONS,
    exponents: np.ndarray | None = None,
) -> None:
    """One sweep over all positions, each recoded with the others fixed; improves `coded` in place.

    iterations: 0 keeps the codebooks. exponents: i32[P, Sw] that all groups of `coded` have and
    keep; None to choose the best.
    A row group keeps its old codebook and codes where the new ones are not better, so the
    objective tr((Q - W) H (Q - W)^T), rows weighted, never grows.
    """
    vec_len = config.vec_len
    moment = with_damping(moment, damping)
    diagonal = position_blocks(moment, vec_len)
    matrix = robust(lambda d: torch.linalg.cholesky(_damp_blocks(diagonal, d)), 1e-9)
    inverse = torch.linalg.inv(matrix).contiguous().numpy()
    solve = torch.linalg.inv(_damp_blocks(diagonal, 1e-9)).contiguous().numpy()
    values = torch.from_numpy(coded.values)
    gradient = (values - weight) @ moment
    template = normal_template(config.weight_stages, config.weight_centroids, vec_len)
    positions = len(coded.step)
    if exponents is None:
        exponents = np.full((positions, config.weight_stages), FREE, np.int32)
    for first in range(0, positions, _BLOCK_POSITIONS):
        last = min(positions, first + _BLOCK_POSITIONS)
        a, b = first * vec_len, last * vec_len
        change = torch.zeros(len(weight), b - a)
        _descent_block(
            gradient[:, a:b].contiguous().numpy(),
            moment[a:b, a:b].contiguous().numpy(),
            matrix.contiguous().numpy(),
            inverse,
            solve,
            first,
            coded.step,
            exponents,
            row_weights,
            template,
            config.group_size,
            iterations,
            coded.integers,
            coded.exponents,
            coded.codes,
            coded.values,
            change.numpy(),
        )
        gradient += change @ moment[a:b]


def _damp_blocks(blocks: torch.Tensor, damping: float) -> torch.Tensor:
    """Add damping * mean diagonal to each v x v block. blocks: f32[P, v, v]."""
    mean = blocks.diagonal(dim1=1, dim2=2).mean(1)
    return blocks + damping * mean[:, None, None] * torch.eye(blocks.shape[1])


@njit(cache=True, parallel=True)
def _descent_block(
    gradient: np.ndarray,
    moment: np.ndarray,
    matrix: np.ndarray,
    inverse: np.ndarray,
    solve: np.ndarray,
    first: int,
    step: np.ndarray,
    fixed: np.ndarray,
    row_weights: np.ndarray,
    template: np.ndarray,
    group_size: int,
    iterations: int,
    integers: np.ndarray,
    exponents: np.ndarray,
    codes: np.ndarray,
    values: np.ndarray,
    change: np.ndarray,
) -> None:
    """Recode a block of positions; gradient f32[M, n*v] is kept current, change f32[M, n*v] out."""
    rows = gradient.shape[0]
    v = step.shape[1]
    count = gradient.shape[1] // v
    stages = integers.shape[2]
    for g in prange((rows + group_size - 1) // group_size):
        start = g * group_size
        stop = min(rows, start + group_size)
        n = stop - start
        old = np.empty((v, n), np.float32)
        w = np.empty((v, n), np.float32)
        coded = np.empty((v, n), np.float32)
        group_codes = np.empty((stages, n), np.int32)
        for d in range(count):
            base, p = d * v, first + d
            for j in range(v):
                for i in range(n):
                    old[j, i] = values[start + i, p * v + j]
                    delta = np.float32(0)
                    for m in range(v):
                        delta += gradient[start + i, base + m] * solve[p, m, j]
                    w[j, i] = old[j, i] - delta
            for s in range(stages):
                for i in range(n):
                    group_codes[s, i] = codes[s, p, start + i]
            new_integers = integers[p, g].copy()
            new_exponents = exponents[p, g].copy()
            error = code_group(
                w,
                row_weights[start:stop],
                matrix[p],
                inverse[p],
                step[p],
                fixed[p],
                template,
                iterations,
                True,
                new_integers,
                new_exponents,
                group_codes,
                coded,
            )
            if error >= weighted_error(w, old, row_weights[start:stop], matrix[p]):
                continue
            integers[p, g] = new_integers
            exponents[p, g] = new_exponents
            for s in range(stages):
                for i in range(n):
                    codes[s, p, start + i] = group_codes[s, i]
            for i in range(n):
                for j in range(v):
                    delta = coded[j, i] - old[j, i]
                    values[start + i, p * v + j] = coded[j, i]
                    change[start + i, base + j] = delta
                    for c in range(count * v):
                        gradient[start + i, c] += delta * moment[base + j, c]


def reconstruct(coded: CodedWeight, group_size: int) -> np.ndarray:
    """The coded weights f32[M, C] from integers and codes alone."""
    _, positions, rows = coded.codes.shape
    vec_len = coded.step.shape[1]
    out = np.empty((rows, positions * vec_len), np.float32)
    for p in range(positions):
        for g in range(coded.integers.shape[1]):
            part = slice(g * group_size, min(rows, (g + 1) * group_size))
            piece = np.empty((vec_len, part.stop - part.start), np.float32)
            codes = coded.codes[:, p, part].astype(np.int32)
            decode_group(coded.integers[p, g], coded.exponents[p, g], coded.step[p], codes, piece)
            out[part, p * vec_len : (p + 1) * vec_len] = piece.T
    return out
