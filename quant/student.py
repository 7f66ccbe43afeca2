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

from calib.matmul import narrowed, widened, words
from calib.operators import PARTS
from lutllm.config import ACT_LIMIT, STAGE_BITS
from lutllm.lut_linear import LutLinear
from quant.engine import TableEngine
from quant.kmeans import assign_one
from quant.rotated import rotated


@njit(cache=True, parallel=True)
def _decode_weight(books: np.ndarray, codes: np.ndarray, group_size: int, out: np.ndarray) -> None:
    """out [P, v, M] = sum over stages of books f32[Sw, P, B, Kw, v] at codes u8[Sw, P, M].

    out: words, see `calib.matmul`.
    """
    stages, positions, rows = codes.shape
    for p in prange(positions):
        row = np.empty(rows, np.float32)
        for j in range(out.shape[1]):
            row[:] = 0
            for s in range(stages):
                for first in range(0, rows, group_size):
                    book = books[s, p, first // group_size, :, j].copy()
                    code = codes[s, p, first : first + group_size]
                    part = row[first : first + group_size]
                    for m in range(len(code)):
                        part[m] += book[code[m]]
            narrowed(row.view(np.uint32), out[p, j])


@njit(cache=True, parallel=True)
def _collect_gradient(
    gradient: np.ndarray, codes: np.ndarray, group_size: int, out: np.ndarray
) -> None:
    """The adjoint of `_decode_weight`: out f32[Sw, P, B, Kw, v] from words [P, v, M]."""
    stages, positions, rows = codes.shape
    count = out.shape[3]
    for p in prange(positions):
        row = np.empty(rows, np.float32)
        for j in range(gradient.shape[1]):
            widened(gradient[p, j], row.view(np.uint32))
            for s in range(stages):
                for first in range(0, rows, group_size):
                    code = codes[s, p, first : first + group_size]
                    part = row[first : first + group_size]
                    # an addition waits for the one before it to the same centroid: four sums of it
                    sums = np.zeros((4, count), np.float32)
                    whole = len(code) // 4 * 4
                    for m in range(0, whole, 4):
                        for i in range(4):
                            sums[i, code[m + i]] += part[m + i]
                    for m in range(whole, len(code)):
                        sums[0, code[m]] += part[m]
                    for k in range(count):
                        total = (sums[0, k] + sums[1, k]) + (sums[2, k] + sums[3, k])
                        out[s, p, first // group_size, k, j] = total


@njit(cache=True, parallel=True)
def _scale_product(
    product: np.ndarray, scale: np.ndarray, token_scale: np.ndarray, out: np.ndarray
) -> None:
    """out f32[T, M] = product, words [T, M], times a scale of each row and token."""
    for t in prange(len(out)):
        widened(product[t], out[t].view(np.uint32))
        for m in range(out.shape[1]):
            out[t, m] *= scale[m] * token_scale[t]


@njit(cache=True, parallel=True)
def _scale_gradient(
    gradient: np.ndarray,
    y: np.ndarray,
    scale: np.ndarray,
    token_scale: np.ndarray,
    out: np.ndarray,
) -> np.ndarray:
    """What y = product * scale * token_scale hands back. gradient, y: f32[T, M].

    out, words [T, M], is that of the product; returns that of log(scale), f32[M].
    """
    tokens, rows = y.shape
    part = np.zeros((PARTS, rows), np.float32)
    for i in prange(PARTS):
        scaled = np.empty(rows, np.float32)
        for t in range(i * tokens // PARTS, (i + 1) * tokens // PARTS):
            for m in range(rows):
                part[i, m] += gradient[t, m] * y[t, m]
                scaled[m] = gradient[t, m] * (scale[m] * token_scale[t])
            narrowed(scaled.view(np.uint32), out[t])
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
            product = words(z @ _decoded(books, codes, group_size, z.dtype))
            y = torch.empty(product.shape)
            _scale_product(product, scale.numpy(), token_scale.numpy(), y.numpy())
        ctx.save_for_backward(z, books, scale, token_scale, y)
        ctx.codes, ctx.group_size = codes, group_size
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        z, books, scale, token_scale, y = ctx.saved_tensors
        grad = torch.empty(y.shape, dtype=z.dtype)
        grad_scale = torch.from_numpy(
            _scale_gradient(
                gradients[0].contiguous().numpy(),
                y.numpy(),
                scale.numpy(),
                token_scale.numpy(),
                words(grad),
            )
        ).div_(scale)
        grad_z = None
        if ctx.needs_input_grad[0]:
            grad_z = grad @ _decoded(books, ctx.codes, ctx.group_size, z.dtype).t()
        grad_weight = (z.t() @ grad).view(books.shape[1], books.shape[4], -1)
        grad_books = torch.empty_like(books)
        _collect_gradient(words(grad_weight), ctx.codes, ctx.group_size, grad_books.numpy())
        return grad_z, grad_books, grad_scale, None, None, None, None


@njit(inline="always")
def _gather(x: np.ndarray, perm: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    """out f32[C] = x f32[D] in the order of slots, scaled; -1 in perm is padding."""
    for c in range(len(perm)):
        out[c] = x[perm[c]] * scale[c] if perm[c] >= 0 else 0


@njit(cache=True, parallel=True)
def _gather_slots(x: np.ndarray, perm: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    for t in prange(len(x)):
        _gather(x[t], perm, scale, out[t])


@njit(cache=True, parallel=True)
def _round_slots(
    x: np.ndarray, perm: np.ndarray, scale: np.ndarray, out: np.ndarray, unit: np.ndarray
) -> None:
    """Slots of each token in units of its largest / 127, f32[T] `unit`, rounded to out, words."""
    for t in prange(len(x)):
        row = np.empty(len(perm), np.float32)
        _gather(x[t], perm, scale, row)
        top = np.float32(1e-30)
        for c in range(len(row)):
            top = max(top, abs(row[c]))
        factor = np.float32(127) / top
        unit[t] = top / np.float32(127)
        for c in range(len(row)):
            row[c] = np.rint(row[c] * factor)
        narrowed(row.view(np.uint32), out[t])


@njit(cache=True, parallel=True)
def _scatter_slots(
    gradient: np.ndarray, perm: np.ndarray, scale: np.ndarray, unit: np.ndarray, out: np.ndarray
) -> None:
    """The adjoint of slots in units of `unit` f32[T]: every channel has one. gradient: words."""
    for t in prange(len(gradient)):
        row = np.empty(len(perm), np.float32)
        widened(gradient[t], row.view(np.uint32))
        for c in range(len(perm)):
            if perm[c] >= 0:
                out[t, perm[c]] = row[c] * scale[c] / unit[t]


class _Slots(torch.autograd.Function):
    """Activations f32[T, D] in the order of slots, times the scale of each: f32[T, C].

    by_token: in units of the token's largest / 127. Returns as well what 1 is worth, f32[T].
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, perm: np.ndarray, scale: np.ndarray, by_token: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, unit = torch.empty(len(x), len(perm)), torch.ones(len(x))
        _gather_slots(x.contiguous().numpy(), perm, scale, out.numpy())
        if by_token:
            top = out.abs().amax(1).clamp(min=1e-30)
            out *= (127 / top)[:, None]
            unit = top / 127
        ctx.perm, ctx.scale, ctx.shape, ctx.unit = perm, scale, x.shape, unit.numpy()
        ctx.mark_non_differentiable(unit)
        return out, unit

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        out = torch.empty(ctx.shape)
        _scatter_slots(words(gradients[0].contiguous()), ctx.perm, ctx.scale, ctx.unit, out.numpy())
        return out, None, None, None


class _RoundedSlots(torch.autograd.Function):
    """The same rounded to integers up to 127, in `dtype`, and what 1 is worth in each token.

    f32[T, D] -> [T, C], f32[T]; the gradient goes straight through the rounding.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, perm: np.ndarray, scale: np.ndarray, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, unit = torch.empty(len(x), len(perm), dtype=dtype), torch.empty(len(x))
        _round_slots(x.contiguous().numpy(), perm, scale, words(out), unit.numpy())
        ctx.perm, ctx.scale, ctx.shape, ctx.unit = perm, scale, x.shape, unit.numpy()
        ctx.mark_non_differentiable(unit)
        return out, unit

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        out = torch.empty(ctx.shape)
        _scatter_slots(words(gradients[0].contiguous()), ctx.perm, ctx.scale, ctx.unit, out.numpy())
        return out, None, None, None


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
    out = torch.empty(positions, books.shape[4], rows, dtype=dtype)
    _decode_weight(books.detach().numpy(), codes, group_size, words(out))
    return out.view(-1, rows)


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


class StudentLinear:
    """A LUT linear with trainable codebooks and output scale.

    parameters: `books` f32[Sw, PC, B, Kw, v] in units of `rms` integers, `gain` f32[M] around 1,
    and in scheme "co" `act_books` f32[Sa, P, Ka, v] in units of theirs. Matrices are multiplied in
    `dtype`: bfloat16 holds an integer activation and an integer centroid exactly. The engine runs
    tables whose entries are rounded. Where they are dot products, and without an engine, the
    product is what they give, but for its own rounding.
    """

    def __init__(
        self,
        linear: LutLinear,
        dtype: torch.dtype = torch.float32,
        engine: TableEngine | None = None,
    ):
        self.linear = linear
        rounds = not all(linear.exact(stage) for stage in range(linear.config.weight_stages))
        self._tables = None
        if engine is not None and rounds:
            self._tables = engine(dataclasses.replace(linear, bias=None))
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

    def _own(self, books: torch.Tensor) -> torch.Tensor:
        """f32[Sw, PC, B, Kw, v] -> f32[Sw, P, B, Kw, v], of every position."""
        shared = self.linear.config.codebook_positions
        if shared == 1:
            return books
        return books[:, torch.arange(self.linear.num_positions) // shared]

    def act_integers(self) -> torch.Tensor:
        """Activation codebooks likewise, scheme "co"."""
        assert self.act_books is not None
        return round_through((self.act_books * self._act_rms).clamp(-127, 127))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """x: f32[T, D] -> f32[T, M]."""
        rounded, codes = (None, None) if self._tables is None else self._through_tables(x)
        z, token_scale = self._code(x, codes)
        books = self._own(self.integers()) * self._unit
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

    def _code(self, x: torch.Tensor, codes: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Coded activations with straight-through gradients, and what one of them is worth.

        x: f32[T, D] -> [T, C] in the type that matrices are multiplied in, f32[T]. codes: those of
        scheme "co" where they are known.
        """
        config = self.linear.config
        x = rotated(x, config.rotation)
        if config.scheme == "weight":
            return _RoundedSlots.apply(x, self._perm, self._scale, self._dtype)
        centroids = self.act_integers() * self._act_unit
        by_chebyshev = config.metric == "chebyshev"
        scale = self._scale if config.token_scale else self._scale / np.float32(self._fine)
        z, unit = _Slots.apply(x, self._perm, scale, config.token_scale)
        coded = _CodedActivation.apply(z, centroids, self._fine, by_chebyshev, codes)
        return coded.to(self._dtype), unit

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
