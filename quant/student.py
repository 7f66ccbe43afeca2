"""A LUT linear as differentiable float arithmetic: codes fixed, codebooks and scales trained.

The float equivalent of a LUT linear is y = z W^T with z the coded activation in integer units and
W[m] = output_scale[m] * sum over stages of integer centroid * 2^(block_shift - table_shift).
The forward pass goes through the integer tables where an engine is given (`quant.engine`); rounding
of codebooks, activations and table entries is passed straight through in the backward pass.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numba import njit, prange

from calib.matmul import product
from lutllm.config import ACT_LIMIT, STAGE_BITS
from lutllm.lut_linear import LutLinear
from quant.engine import TableEngine
from quant.kmeans import assign_one

#: Stretches of tokens that sums over tokens are made of; fixed, so that threads do not matter.
_PARTS = 16


@njit(inline="always")
def _decode_row(
    books: np.ndarray, codes: np.ndarray, p: int, j: int, group_size: int, row: np.ndarray
) -> None:
    row[:] = 0
    for s in range(codes.shape[0]):
        for first in range(0, codes.shape[2], group_size):
            book = books[s, p, first // group_size]
            for m in range(first, min(first + group_size, codes.shape[2])):
                row[m] += book[codes[s, p, m], j]


@njit(cache=True, parallel=True)
def _decode_weight(books: np.ndarray, codes: np.ndarray, group_size: int, out: np.ndarray) -> None:
    """out f32[P, v, M] = sum over stages of books f32[Sw, P, B, Kw, v] at codes u8[Sw, P, M]."""
    for p in prange(codes.shape[1]):
        for j in range(out.shape[1]):
            _decode_row(books, codes, p, j, group_size, out[p, j])


@njit(cache=True, parallel=True)
def _decode_weight_bfloat16(
    books: np.ndarray, codes: np.ndarray, group_size: int, out: np.ndarray
) -> None:
    """The same rounded to even as bfloat16, the upper half of a float32. out: u16[P, v, M]."""
    for p in prange(codes.shape[1]):
        row = np.empty(codes.shape[2], np.float32)
        bits = row.view(np.uint32)
        for j in range(out.shape[1]):
            _decode_row(books, codes, p, j, group_size, row)
            for m in range(len(row)):
                half = np.uint32(0x7FFF) + ((bits[m] >> np.uint32(16)) & np.uint32(1))
                out[p, j, m] = (bits[m] + half) >> np.uint32(16)


@njit(cache=True, parallel=True)
def _collect_gradient(
    gradient: np.ndarray, codes: np.ndarray, group_size: int, out: np.ndarray
) -> None:
    """The adjoint of `_decode_weight`: out f32[Sw, P, B, Kw, v] from gradient f32[P, v, M]."""
    stages, positions, rows = codes.shape
    for p in prange(positions):
        out[:, p] = 0
        for s in range(stages):
            for first in range(0, rows, group_size):
                book = out[s, p, first // group_size]
                for m in range(first, min(first + group_size, rows)):
                    for j in range(gradient.shape[1]):
                        book[codes[s, p, m], j] += gradient[p, j, m]


@njit(cache=True, parallel=True)
def _scale_gradient(
    gradient: np.ndarray, y: np.ndarray, scale: np.ndarray, token_scale: np.ndarray
) -> np.ndarray:
    """What y = product * scale * token_scale hands back. gradient, y: f32[T, M].

    gradient becomes that of the product, in place; returns that of log(scale), f32[M].
    """
    tokens, rows = y.shape
    part = np.empty((_PARTS, rows), np.float32)
    for i in prange(_PARTS):
        total = part[i]
        total[:] = 0
        for t in range(i * tokens // _PARTS, (i + 1) * tokens // _PARTS):
            for m in range(rows):
                total[m] += gradient[t, m] * y[t, m]
                gradient[t, m] *= scale[m] * token_scale[t]
    return part.sum(0)


class _CodedProduct(torch.autograd.Function):
    """z [T, C] times the weight decoded from codebooks, times a scale of each row and token.

    z: in the type that matrices are multiplied in; books: f32[Sw, P, B, Kw, v]; scale: f32[M];
    token_scale: f32[T], no gradient. The weight is decoded again in the backward pass. rounded:
    f32[T, M], the same with table entries rounded, to be the result in its place, or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        books: torch.Tensor,
        scale: torch.Tensor,
        token_scale: torch.Tensor,
        codes: np.ndarray,
        group_size: int,
        rounded: torch.Tensor | None,
    ) -> torch.Tensor:
        y = rounded
        if y is None:
            y = product(z, _decoded(books, codes, group_size, z.dtype))
            y.mul_(scale).mul_(token_scale[:, None])
        ctx.save_for_backward(z, books, scale, token_scale, y)
        ctx.codes, ctx.group_size = codes, group_size
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        z, books, scale, token_scale, y = ctx.saved_tensors
        grad = gradients[0].clone(memory_format=torch.contiguous_format)  # ours to change
        grad_scale = torch.from_numpy(
            _scale_gradient(grad.numpy(), y.numpy(), scale.numpy(), token_scale.numpy())
        ).div_(scale)
        grad = grad.to(z.dtype)
        grad_z = None
        if ctx.needs_input_grad[0]:
            grad_z = grad @ _decoded(books, ctx.codes, ctx.group_size, z.dtype).t()
        grad_weight = product(z.t(), grad).view(books.shape[1], books.shape[4], -1)
        grad_books = torch.empty_like(books)
        _collect_gradient(grad_weight.numpy(), ctx.codes, ctx.group_size, grad_books.numpy())
        return grad_z, grad_books, grad_scale, None, None, None, None


@njit(cache=True, parallel=True)
def _gather_slots(x: np.ndarray, perm: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    """out f32[T, C] = x f32[T, D] in the order of slots, scaled; -1 in perm is padding."""
    for t in prange(len(x)):
        for c in range(len(perm)):
            out[t, c] = x[t, perm[c]] * scale[c] if perm[c] >= 0 else 0


@njit(cache=True, parallel=True)
def _scatter_slots(
    gradient: np.ndarray, perm: np.ndarray, scale: np.ndarray, out: np.ndarray
) -> None:
    """The adjoint of `_gather_slots`: every channel has one slot."""
    for t in prange(len(gradient)):
        for c in range(len(perm)):
            if perm[c] >= 0:
                out[t, perm[c]] = gradient[t, c] * scale[c]


class _Slots(torch.autograd.Function):
    """Activations f32[T, D] in the order of slots, times the scale of each: f32[T, C]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, perm: np.ndarray, scale: np.ndarray) -> torch.Tensor:
        ctx.perm, ctx.scale, ctx.shape = perm, scale, x.shape
        out = torch.empty(len(x), len(perm))
        _gather_slots(x.contiguous().numpy(), perm, scale, out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        out = torch.empty(ctx.shape)
        _scatter_slots(gradients[0].contiguous().numpy(), ctx.perm, ctx.scale, out.numpy())
        return out, None, None


class _RoundedActivation(torch.autograd.Function):
    """Slots f32[T, C] times `factor` f32[T, 1], rounded, in `dtype`; gradient straight through."""

    @staticmethod
    def forward(
        ctx: Any, z: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.save_for_backward(factor)
        return torch.mul(z, factor).round_().to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None, None


@njit(cache=True, parallel=True)
def _code_tokens(
    z: np.ndarray,
    centroids: np.ndarray,
    fine: np.float32,
    chebyshev: bool,
    codes: np.ndarray,
    out: np.ndarray,
) -> None:
    """Slots rounded to the finest grid and coded stage by stage, as `quant.activation.input_codes`.

    z: f32[T, C]; centroids: f32[Sa, P, Ka, v], exact in float32; codes: u8[Sa, P, T] and
    out: f32[T, C], the sum of the chosen centroids, are written.
    """
    stages, positions, _, vec_len = centroids.shape
    tokens = len(z)
    limit = np.float32(ACT_LIMIT)
    for p in prange(positions):
        first = p * vec_len
        rest = np.empty((vec_len, tokens), np.float32)
        for t in range(tokens):
            for j in range(vec_len):
                value = np.rint(z[t, first + j] * fine) / fine
                rest[j, t] = min(max(value, -limit), limit)
                out[t, first + j] = 0
        found, best = np.empty(tokens, np.int32), np.empty(tokens, np.float32)
        for s in range(stages):
            book = centroids[s, p]
            assign_one(rest, book, found, best, chebyshev)
            for t in range(tokens):
                codes[s, p, t] = found[t]
                for j in range(vec_len):
                    rest[j, t] -= book[found[t], j]
                    out[t, first + j] += book[found[t], j]


@njit(cache=True, parallel=True)
def _sum_centroids(centroids: np.ndarray, codes: np.ndarray, out: np.ndarray) -> None:
    """out f32[T, C] = sum over stages of centroids f32[Sa, P, Ka, v] at codes u8[Sa, P, T]."""
    stages, positions, tokens = codes.shape
    vec_len = centroids.shape[3]
    for t in prange(tokens):
        for p in range(positions):
            for j in range(vec_len):
                total = np.float32(0)
                for s in range(stages):
                    total += centroids[s, p, codes[s, p, t], j]
                out[t, p * vec_len + j] = total


@njit(cache=True, parallel=True)
def _collect_centroids(gradient: np.ndarray, codes: np.ndarray, out: np.ndarray) -> None:
    """out f32[Sa, P, Ka, v] = sum over tokens of gradient f32[T, C] at codes u8[Sa, P, T]."""
    stages, positions, tokens = codes.shape
    vec_len = out.shape[3]
    for p in prange(positions):
        out[:, p] = 0
        for t in range(tokens):
            for s in range(stages):
                for j in range(vec_len):
                    out[s, p, codes[s, p, t], j] += gradient[t, p * vec_len + j]


class _CodedActivation(torch.autograd.Function):
    """Activations replaced by the centroids that code them, stage by stage.

    found: u8[T, Sa, P], the codes where they are known, None to search. The gradient goes straight
    through to the activations, and to every centroid from the tokens that it stands for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        centroids: torch.Tensor,
        fine: float,
        chebyshev: bool,
        found: np.ndarray | None,
    ) -> torch.Tensor:
        out = torch.empty_like(z)
        books = centroids.numpy()
        if found is None:
            ctx.codes = np.empty((*centroids.shape[:2], len(z)), np.uint8)
            _code_tokens(z.numpy(), books, np.float32(fine), chebyshev, ctx.codes, out.numpy())
        else:
            ctx.codes = np.ascontiguousarray(found.transpose(1, 2, 0))
            _sum_centroids(books, ctx.codes, out.numpy())
        ctx.save_for_backward(centroids)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = gradients
        (centroids,) = ctx.saved_tensors
        out = torch.empty_like(centroids)
        _collect_centroids(grad.contiguous().numpy(), ctx.codes, out.numpy())
        return grad, out, None, None, None


def _decoded(
    books: torch.Tensor,
    codes: np.ndarray,
    group_size: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """[C, M] in dtype."""
    _, positions, rows = codes.shape
    shape = (positions, books.shape[4], rows)
    values = books.detach().numpy()
    if dtype == torch.bfloat16:
        halves = np.empty(shape, np.uint16)
        _decode_weight_bfloat16(values, codes, group_size, halves)
        return torch.from_numpy(halves).view(dtype).view(-1, rows)
    out = torch.empty(shape)
    _decode_weight(values, codes, group_size, out.numpy())
    return out.view(-1, rows)


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


class StudentLinear:
    """A LUT linear with trainable codebooks and output scale.

    parameters: `books` f32[Sw, P, B, Kw, v] in units of `rms` integers, `gain` f32[M] around 1, and
    in scheme "co" `act_books` f32[Sa, P, Ka, v] in units of theirs. Matrices are multiplied in
    `dtype`: bfloat16 holds an integer activation and an integer centroid exactly. Without an engine
    table entries are not rounded.
    """

    def __init__(
        self,
        linear: LutLinear,
        dtype: torch.dtype = torch.float32,
        engine: TableEngine | None = None,
    ):
        self.linear = linear
        self._tables = None if engine is None else engine(dataclasses.replace(linear, bias=None))
        self._dtype = dtype
        config = linear.config
        self._codes = np.ascontiguousarray(linear.unpack_weight_codes())
        self._perm = np.array(linear.input_perm)
        self._scale = np.array(linear.input_scale)
        integers = torch.from_numpy(linear.weight_codebook.astype(np.float32))
        self._rms = integers.pow(2).mean((3, 4), keepdim=True).sqrt().clamp(min=1.0)
        self._unit = torch.from_numpy(self._units())
        self._output_scale = torch.from_numpy(np.array(linear.output_scale))
        self._bias = None if linear.bias is None else torch.from_numpy(np.array(linear.bias))
        self.books = (integers / self._rms).requires_grad_()
        self.gain = torch.ones(linear.out_features).requires_grad_()
        self._fine = float(1 << (STAGE_BITS * (config.act_stages - 1)))
        self.act_books = None
        if linear.act_codebook is not None:
            act = torch.from_numpy(linear.act_codebook.astype(np.float32))
            self._act_rms = act.pow(2).mean((2, 3), keepdim=True).sqrt().clamp(min=1.0)
            self.act_books = (act / self._act_rms).requires_grad_()
            stage = STAGE_BITS * torch.arange(config.act_stages)
            self._act_unit = torch.exp2(-stage.float())[:, None, None, None]

    def _units(self) -> np.ndarray:
        """What an integer of a codebook is worth in accumulator units: f32[Sw, P, B, 1, 1]."""
        linear = self.linear
        block = np.arange(linear.num_positions) // linear.config.block_positions
        left = linear.block_shift[0][:, block].astype(np.float32)
        right = linear.table_shift[0].astype(np.float32)
        return np.exp2(left[:, :, None] - right)[..., None, None].astype(np.float32)

    def parameters(self) -> list[torch.Tensor]:
        act = [] if self.act_books is None else [self.act_books]
        return [self.books, self.gain, *act]

    def integers(self) -> torch.Tensor:
        """Codebooks as the integers that will be stored, gradients passed through."""
        return round_through((self.books * self._rms).clamp(-127, 127))

    def act_integers(self) -> torch.Tensor:
        """Activation codebooks likewise, scheme "co"."""
        assert self.act_books is not None
        return round_through((self.act_books * self._act_rms).clamp(-127, 127))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """x: f32[T, D] -> f32[T, M]."""
        rounded, codes = (None, None) if self._tables is None else self._through_tables(x)
        z, token_scale = self._code(_Slots.apply(x, self._perm, self._scale), codes)
        books = self.integers() * self._unit
        scale = self._output_scale * self.gain
        group_size = self.linear.config.group_size
        y = _CodedProduct.apply(z, books, scale, token_scale, self._codes, group_size, rounded)
        return y if self._bias is None else y + self._bias

    @torch.no_grad()
    def _through_tables(self, x: torch.Tensor) -> tuple[torch.Tensor, np.ndarray | None]:
        """What the stored integers give now, bias left out, and activation codes.

        f32[T, D] -> f32[T, M], u8[T, Sa, P] or None.
        """
        assert self._tables is not None
        self._tables.update(self._current())
        y, codes = self._tables.apply(x.detach().numpy())
        return torch.from_numpy(y), codes

    def _code(self, z: torch.Tensor, codes: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Coded activations with straight-through gradients, and what one of them is worth.

        z: f32[T, C] -> [T, C] in the type that matrices are multiplied in, f32[T]. codes: those of
        scheme "co" where they are known.
        """
        config = self.linear.config
        if config.scheme == "weight":
            top = z.detach().abs().amax(1).clamp(min=1e-30)
            return _RoundedActivation.apply(z, (127 / top)[:, None], self._dtype), top / 127
        centroids = self.act_integers() * self._act_unit
        by_chebyshev = config.metric == "chebyshev"
        coded = _CodedActivation.apply(z / self._fine, centroids, self._fine, by_chebyshev, codes)
        return coded.to(self._dtype), torch.ones(len(z))

    def trained(self) -> LutLinear:
        """The layer with its trained codebooks and scales."""
        linear = self._current()
        linear.validate()
        return linear

    @torch.no_grad()
    def _current(self) -> LutLinear:
        act = None if self.act_books is None else self.act_integers().numpy().astype(np.int8)
        return dataclasses.replace(
            self.linear,
            act_codebook=act,
            weight_codebook=self.integers().numpy().astype(np.int8),
            output_scale=(self._output_scale * self.gain).numpy(),
        )
