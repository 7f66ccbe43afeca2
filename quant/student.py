"""A LUT linear as differentiable float arithmetic: codes fixed, codebooks and scales trained.

The float equivalent of a LUT linear is y = z W^T with z the coded activation in integer units and
W[m] = output_scale[m] * sum over stages of integer centroid * 2^(block_shift - table_shift).
Rounding of codebooks and activations is passed straight through in the backward pass; rounding of
table entries is left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numba import njit, prange

from lutllm.config import ACT_LIMIT, STAGE_BITS
from lutllm.lut_linear import LutLinear
from quant.activation import assign, take_centroids


@njit(cache=True, parallel=True)
def _decode_weight(books: np.ndarray, codes: np.ndarray, group_size: int, out: np.ndarray) -> None:
    """out f32[P, v, M] = sum over stages of books f32[Sw, P, B, Kw, v] at codes u8[Sw, P, M]."""
    stages, positions, rows = codes.shape
    for p in prange(positions):
        out[p] = 0
        for s in range(stages):
            for j in range(out.shape[1]):
                for m in range(rows):
                    out[p, j, m] += books[s, p, m // group_size, codes[s, p, m], j]


@njit(cache=True, parallel=True)
def _collect_gradient(
    gradient: np.ndarray, codes: np.ndarray, group_size: int, out: np.ndarray
) -> None:
    """The adjoint of `_decode_weight`: out f32[Sw, P, B, Kw, v] from gradient f32[P, v, M]."""
    stages, positions, rows = codes.shape
    for p in prange(positions):
        out[:, p] = 0
        for s in range(stages):
            for j in range(gradient.shape[1]):
                for m in range(rows):
                    out[s, p, m // group_size, codes[s, p, m], j] += gradient[p, j, m]


class _CodedProduct(torch.autograd.Function):
    """z [T, C] times the weight decoded from codebooks; the weight is rebuilt in the backward."""

    @staticmethod
    def forward(
        ctx: Any, z: torch.Tensor, books: torch.Tensor, codes: np.ndarray, group_size: int
    ) -> torch.Tensor:
        ctx.save_for_backward(z, books)
        ctx.codes, ctx.group_size = codes, group_size
        return z @ _decoded(books, codes, group_size)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_y,) = gradients
        z, books = ctx.saved_tensors
        grad_z = None
        if ctx.needs_input_grad[0]:
            grad_z = grad_y @ _decoded(books, ctx.codes, ctx.group_size).t()
        grad_weight = (z.t() @ grad_y).view(books.shape[1], books.shape[4], -1)
        grad_books = torch.empty_like(books)
        _collect_gradient(grad_weight.numpy(), ctx.codes, ctx.group_size, grad_books.numpy())
        return grad_z, grad_books, None, None


@njit(cache=True, parallel=True)
def _collect_centroids(gradient: np.ndarray, codes: np.ndarray, out: np.ndarray) -> None:
    """out f32[P, Ka, v] = sum over tokens of gradient f32[P, v, T] at their codes u8[P, T]."""
    for p in prange(len(codes)):
        out[p] = 0
        for j in range(gradient.shape[1]):
            for t in range(codes.shape[1]):
                out[p, codes[p, t], j] += gradient[p, j, t]


class _CodedActivation(torch.autograd.Function):
    """Activations replaced by the centroids that code them, stage by stage.

    The gradient goes straight through to the activations, and to every centroid from the tokens
    that it stands for.
    """

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, centroids: torch.Tensor, fine: float) -> torch.Tensor:
        limit = np.float32(ACT_LIMIT)
        rest = np.clip(np.rint(z.numpy() * fine) / np.float32(fine), -limit, limit)
        rest = np.ascontiguousarray(rest.T).reshape(centroids.shape[1], -1, len(z))
        total = np.zeros_like(rest)
        ctx.codes = []
        for stage in centroids.numpy():
            codes = assign(rest, stage)
            chosen = take_centroids(stage, codes)
            rest = rest - chosen
            total += chosen
            ctx.codes.append(codes)
        ctx.save_for_backward(centroids)
        return torch.from_numpy(np.ascontiguousarray(total.reshape(-1, len(z)).T))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = gradients
        (centroids,) = ctx.saved_tensors
        out = torch.empty_like(centroids)
        by_slot = np.ascontiguousarray(grad.numpy().T).reshape(centroids.shape[1], -1, len(grad))
        for stage, codes in zip(out.numpy(), ctx.codes, strict=True):
            _collect_centroids(by_slot, codes, stage)
        return grad, out, None


def _decoded(books: torch.Tensor, codes: np.ndarray, group_size: int) -> torch.Tensor:
    """f32[C, M]."""
    _, positions, rows = codes.shape
    out = torch.empty(positions, books.shape[4], rows)
    _decode_weight(books.detach().numpy(), codes, group_size, out.numpy())
    return out.view(-1, rows)


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


class StudentLinear:
    """A LUT linear with trainable codebooks and output scale.

    parameters: `books` f32[Sw, P, B, Kw, v] in units of `rms` integers, `gain` f32[M] around 1, and
    in scheme "co" `act_books` f32[Sa, P, Ka, v] in units of theirs.
    """

    def __init__(self, linear: LutLinear):
        self.linear = linear
        config = linear.config
        self._codes = np.ascontiguousarray(linear.unpack_weight_codes())
        perm = linear.input_perm
        self._index = torch.from_numpy(np.maximum(perm, 0).astype(np.int64))
        self._scale = torch.from_numpy(np.where(perm < 0, 0, linear.input_scale).astype(np.float32))
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
        z, token_scale = self._code(x[:, self._index] * self._scale)
        books = self.integers() * self._unit
        y = _CodedProduct.apply(z, books, self._codes, self.linear.config.group_size)
        y = y * (self._output_scale * self.gain)
        if token_scale is not None:
            y = y * token_scale
        return y if self._bias is None else y + self._bias

    @torch.no_grad()
    def weight(self) -> torch.Tensor:
        """f32[M, D], what the linear multiplies by where its input is not rounded."""
        books = self.integers() * self._unit
        slots = _decoded(books, self._codes, self.linear.config.group_size)
        slots = slots * (self._scale / self._fine)[:, None] * (self._output_scale * self.gain)
        used = torch.from_numpy(self.linear.input_perm >= 0)
        out = torch.zeros(self.linear.out_features, self.linear.in_features)
        out[:, self._index[used]] = slots[used].t()
        return out

    def _code(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Integer activations with straight-through gradients. z: f32[T, C]."""
        config = self.linear.config
        if config.scheme == "weight":
            top = z.detach().abs().amax(1, keepdim=True).clamp(min=1e-30)
            return round_through(z * (127 / top)), top / 127
        centroids = self.act_integers() * self._act_unit
        return _CodedActivation.apply(z / self._fine, centroids, self._fine), None

    def trained(self) -> LutLinear:
        """The layer with its trained codebooks and scales."""
        with torch.no_grad():
            integers = self.integers().numpy().astype(np.int8)
            scale = (self._output_scale * self.gain).numpy()
            act = None
            if self.act_books is not None:
                act = self.act_integers().numpy().astype(np.int8)
        linear = dataclasses.replace(
            self.linear, act_codebook=act, weight_codebook=integers, output_scale=scale
        )
        linear.validate()
        return linear
