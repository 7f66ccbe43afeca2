"""The whole decoder in plain numpy, float32: slow, short, and what the fast path is tested against.

Float steps are those of the Hugging Face models; LUT linears go through `lutllm.intmath`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lutllm import int8_rows, intmath
from lutllm.artifact import EMBEDDING, Artifact
from lutllm.config import KV_DTYPES
from lutllm.model_config import ModelConfig
from lutllm.rope import rope_tables

Apply = Callable[[str, np.ndarray], np.ndarray]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x: f32[..., D] -> f32[..., D]."""
    variance = (x * x).mean(axis=-1, keepdims=True, dtype=np.float32)
    return x / np.sqrt(variance + np.float32(eps)) * weight


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding, element i paired with i + hd / 2. x: f32[T, H, hd]; cos: f32[T, hd / 2]."""
    a, b = np.split(x, 2, axis=-1)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention. q: f32[T, H, hd]; k, v: f32[T, KV, hd] -> f32[T, H * hd]."""
    tokens, heads, size = q.shape
    k, v = (np.repeat(a, heads // a.shape[1], axis=1) for a in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) * np.float32(size**-0.5)
    scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, v).reshape(tokens, -1)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (np.float32(1) + np.exp(-x))


def decoder_layer(
    h: np.ndarray,
    base: str,
    config: ModelConfig,
    get: Callable[[str], np.ndarray],
    apply: Apply,
    rope: tuple[np.ndarray, np.ndarray],
    kv: str,
) -> np.ndarray:
    """One layer. h: f32[T, hidden] -> f32[T, hidden]."""
    eps, hd = config.rms_norm_eps, config.head_dim
    x = rms_norm(h, get(f"{base}.input_layernorm.weight"), eps)
    qkv = apply(f"{base}.self_attn.qkv_proj", x).reshape(len(h), -1, hd)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    q, k, v = np.split(qkv, [heads, heads + groups], axis=1)
    if config.qk_norm:
        q = rms_norm(q, get(f"{base}.self_attn.q_norm.weight"), eps)
        k = rms_norm(k, get(f"{base}.self_attn.k_norm.weight"), eps)
    k, v = (x.astype(KV_DTYPES[kv]).astype(np.float32) for x in (rotate(k, *rope), v))
    mixed = attention(rotate(q, *rope), k, v)
    h = h + apply(f"{base}.self_attn.o_proj", mixed)
    x = rms_norm(h, get(f"{base}.post_attention_layernorm.weight"), eps)
    gate, up = np.split(apply(f"{base}.mlp.gate_up_proj", x), 2, axis=1)
    return h + apply(f"{base}.mlp.down_proj", silu(gate) * up)


def logits(
    artifact: Artifact,
    ids: np.ndarray,
    visit: Callable[[str, np.ndarray], np.ndarray | None] | None = None,
    kv: str = "F32",
) -> np.ndarray:
    """Logits f32[T, V] of one sequence i64[T].

    visit(name, x) sees the input of every linear; what it returns, if anything, takes the place
    of x. kv: of `LutModel`.
    """
    config = artifact.model
    shapes = {shape.name: shape for shape in config.linears()}

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        other = visit(name, x) if visit else None
        x = x if other is None else other
        return intmath.lut_linear(x, artifact.linear(shapes[name]))

    embed = artifact.float32(EMBEDDING)
    rope = rope_tables(config, len(ids))
    h = embed[ids]
    for i in range(config.num_hidden_layers):
        h = decoder_layer(h, f"model.layers.{i}", config, artifact.float32, apply, rope, kv)
    h = rms_norm(h, artifact.float32("model.norm.weight"), config.rms_norm_eps)
    return head_logits(artifact, h)


def head_logits(artifact: Artifact, h: np.ndarray) -> np.ndarray:
    """Logits f32[T, V] of normed hidden states f32[T, hidden]."""
    name = artifact.head_name
    kind, rows = artifact.stored(name)
    if kind != "I8":
        return h @ artifact.float32(name).T
    exact = int8_rows.logits(h, rows, artifact.row_scales(name))
    linear = artifact.head_linear()
    if linear is None:
        return exact
    return int8_rows.screen(intmath.lut_linear(h, linear), exact, artifact.quant.head_margin)
