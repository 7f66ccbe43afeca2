"""What a decoder layer does beside its linears, each in one pass over its data, and differentiable.

Tensors of a layer are larger than the caches, so what counts is how often they are read and
written: torch takes five passes for a norm and about ten for its gradient. Sums over tokens are
made of a fixed number of parts, so that threads do not matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange

from calib.matmul import narrowed, widened, words

#: Stretches of tokens that sums over tokens are made of.
PARTS = 16
#: Sums may be made in any order that the compiler finds fast, the same on every run.
_SUMS = {"reassoc", "contract", "nsz"}
#: Values that are compared side by side.
_LANES = 16
#: Shares of attention below are 0: products with them would have too small an exponent, and
#: processors take a hundred times as long over such numbers.
_TINY = np.float32(1e-18)
_LOG2_E = np.float32(1.44269504)
#: Coefficients of 2^f in -0.5 .. 0.5, interpolated at Chebyshev points; relative error 3e-9.
_POWER = tuple(
    np.float32(c)
    for c in (1, 0.6931472067, 0.2402265092, 0.0555032723, 0.0096180567, 0.0013400428, 0.0001546145)
)


@njit(inline="always", fastmath=True)
def exponentials(x: np.ndarray, top: np.float32, bits: np.ndarray, out: np.ndarray) -> np.float32:
    """out = exp(x - top), f32[n], x at most top; returns the sum. bits: i32[n], scratch."""
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


@njit(inline="always")
def maximum(x: np.ndarray) -> np.float32:
    """The largest of x f32[n]."""
    lanes = np.full(_LANES, -np.inf, np.float32)  # what the compiler does not do by itself
    whole = len(x) // _LANES * _LANES
    for first in range(0, whole, _LANES):
        for i in range(_LANES):
            lanes[i] = x[first + i] if x[first + i] > lanes[i] else lanes[i]
    top = lanes.max()
    for i in range(whole, len(x)):
        top = max(top, x[i])
    return top


@njit(cache=True, parallel=True, fastmath=_SUMS)
def _norm_rows(
    x: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray, inverse: np.ndarray
) -> None:
    for t in prange(len(x)):
        total = np.float32(0)
        for i in range(x.shape[1]):
            total += x[t, i] * x[t, i]
        scale = np.float32(1) / np.sqrt(total / np.float32(x.shape[1]) + eps)
        inverse[t] = scale
        for i in range(x.shape[1]):
            out[t, i] = x[t, i] * scale * weight[i]


@njit(cache=True, parallel=True, fastmath=_SUMS)
def _norm_gradient(
    x: np.ndarray, weight: np.ndarray, inverse: np.ndarray, gradient: np.ndarray, out: np.ndarray
) -> np.ndarray:
    """out f32[T, D], the gradient of x; returns that of weight, f32[D]."""
    tokens, size = x.shape
    part = np.zeros((PARTS, size), np.float32)
    for p in prange(PARTS):
        for t in range(p * tokens // PARTS, (p + 1) * tokens // PARTS):
            scale, along = inverse[t], np.float32(0)
            for i in range(size):
                along += gradient[t, i] * weight[i] * x[t, i]
            along *= scale * scale / np.float32(size)
            for i in range(size):
                out[t, i] = scale * (gradient[t, i] * weight[i] - x[t, i] * along)
                part[p, i] += gradient[t, i] * x[t, i] * scale
    return part.sum(0)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out, inverse = torch.empty_like(x), torch.empty(len(x))
        _norm_rows(x.numpy(), weight.numpy(), np.float32(eps), out.numpy(), inverse.numpy())
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = (tensor.numpy() for tensor in ctx.saved_tensors)
        out = torch.empty(x.shape)
        of_weight = _norm_gradient(
            x, weight, inverse, gradients[0].contiguous().numpy(), out.numpy()
        )
        return out, torch.from_numpy(of_weight), None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. x: f32[..., D], weight: f32[D]."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return _RmsNorm.apply(rows, weight, eps).view(x.shape)


@njit(inline="always", fastmath=True)
def _sigmoid(x: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    """out = 1 / (1 + exp(-x)), f32[n]; bits: i32[n], scratch."""
    for i in range(len(x)):
        out[i] = -abs(x[i])
    exponentials(out, np.float32(0), bits, out)
    for i in range(len(x)):
        small = out[i] / (np.float32(1) + out[i])
        out[i] = small if x[i] < 0 else np.float32(1) - small


@njit(cache=True, parallel=True)
def _swiglu_rows(x: np.ndarray, out: np.ndarray) -> None:
    size = out.shape[1]
    for t in prange(len(x)):
        share, bits = np.empty(size, np.float32), np.empty(size, np.int32)
        gate, up = x[t, :size], x[t, size:]
        _sigmoid(gate, bits, share)
        for i in range(size):
            out[t, i] = gate[i] * share[i] * up[i]


@njit(cache=True, parallel=True)
def _swiglu_gradient(x: np.ndarray, gradient: np.ndarray, out: np.ndarray) -> None:
    size = gradient.shape[1]
    for t in prange(len(x)):
        share, bits = np.empty(size, np.float32), np.empty(size, np.int32)
        gate, up = x[t, :size], x[t, size:]
        _sigmoid(gate, bits, share)
        for i in range(size):
            silu = gate[i] * share[i]
            slope = share[i] + silu * (np.float32(1) - share[i])
            out[t, i] = gradient[t, i] * up[i] * slope
            out[t, size + i] = gradient[t, i] * silu


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(x), x.shape[1] // 2)
        _swiglu_rows(x.numpy(), out.numpy())
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        _swiglu_gradient(x.numpy(), gradients[0].contiguous().numpy(), out.numpy())
        return out


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, f32[T, I], of gate and up one behind the other, f32[T, 2 I]."""
    return _SwiGlu.apply(gate_up.contiguous())


@njit(cache=True, parallel=True)
def _rotate_heads(
    x: np.ndarray, cos: np.ndarray, sin: np.ndarray, rotated: int, sign: np.float32, out: np.ndarray
) -> None:
    """The first `rotated` heads of each token by the angle of its place, the others copied.

    x, out: f32[N, ctx, heads, hd]; cos, sin: f32[ctx, hd / 2]; sign: 1, or -1 to turn back.
    """
    count, ctx, heads, size = x.shape
    half = size // 2
    for t in prange(count * ctx):
        n, place = t // ctx, t % ctx
        for h in range(heads):
            head, to = x[n, place, h], out[n, place, h]
            if h >= rotated:
                to[:] = head
                continue
            for i in range(half):
                c, s = cos[place, i], sin[place, i] * sign
                to[i] = head[i] * c - head[half + i] * s
                to[half + i] = head[half + i] * c + head[i] * s


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotated: int
    ) -> torch.Tensor:
        ctx.cos, ctx.sin, ctx.rotated = cos.numpy(), sin.numpy(), rotated
        out = torch.empty_like(x)
        _rotate_heads(x.numpy(), cos.numpy(), sin.numpy(), rotated, np.float32(1), out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        out = torch.empty_like(gradient)
        _rotate_heads(gradient.numpy(), ctx.cos, ctx.sin, ctx.rotated, np.float32(-1), out.numpy())
        return out, None, None, None


def rotate_heads(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotated: int
) -> torch.Tensor:
    """Rotary embedding on halves of the first `rotated` heads. x: f32[N, ctx, heads, hd]."""
    return _Rotate.apply(x.contiguous(), cos, sin, rotated)


@njit(cache=True, parallel=True, fastmath=True)
def _causal_softmax(scores: np.ndarray, scale: np.float32) -> None:
    """Softmax of scale * scores over the keys up to each query, in place; 0 behind it.

    scores: words of [rows, ctx], queries by keys.
    """
    ctx = scores.shape[1]
    for r in prange(len(scores)):
        seen = r % ctx + 1
        values, scratch = np.empty(seen, np.float32), np.empty(seen, np.int32)
        bits = values.view(np.uint32)
        widened(scores[r, :seen], bits)
        for i in range(seen):
            values[i] *= scale
        total = exponentials(values, maximum(values), scratch, values)
        for i in range(seen):
            share = values[i] / total
            values[i] = share if share > _TINY else 0
        narrowed(bits, scores[r, :seen])
        scores[r, seen:] = 0


@njit(cache=True, parallel=True, fastmath=_SUMS)
def _softmax_gradient(share: np.ndarray, gradient: np.ndarray, scale: np.float32) -> None:
    """gradient = share * (gradient - sum of share * gradient) * scale, in place.

    share, gradient: words of [rows, ctx].
    """
    ctx = share.shape[1]
    for r in prange(len(share)):
        seen = r % ctx + 1
        p, g = np.empty(seen, np.float32), np.empty(seen, np.float32)
        bits = g.view(np.uint32)
        widened(share[r, :seen], p.view(np.uint32))
        widened(gradient[r, :seen], bits)
        along = np.float32(0)
        for i in range(seen):
            along += p[i] * g[i]
        for i in range(seen):
            g[i] = p[i] * (g[i] - along) * scale
        narrowed(bits, gradient[r, :seen])
        gradient[r, seen:] = 0


class _Attention(torch.autograd.Function):
    """Causal attention whose gradient is made of matrix products.

    torch's own gradient does not use the processor's bfloat16 products. The scores of one layer
    exist at once.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        return _attend(q, k, v)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        whole, k, v = ctx.saved_tensors
        length, scale = k.shape[2], np.float32(whole.shape[-1] ** -0.5)
        # queries of the heads that share keys, one behind the other
        q, out = (x.reshape(*k.shape[:2], -1, k.shape[3]) for x in (whole, gradients[0]))
        share = q @ k.transpose(2, 3)
        share_words = words(share).reshape(-1, length)
        _causal_softmax(share_words, scale)
        of_v = share.transpose(2, 3) @ out
        of_scores = out @ v.transpose(2, 3)
        _softmax_gradient(share_words, words(of_scores).reshape(-1, length), scale)
        return (of_scores @ k).view(whole.shape), of_scores.transpose(2, 3) @ q, of_v


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal grouped-query attention. q: [N, heads, ctx, hd]; k, v: [N, kv_heads, ctx, hd]."""
    return _Attention.apply(q, k, v) if q.dtype == torch.bfloat16 else _attend(q, k, v)
