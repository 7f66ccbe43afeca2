"""The float decoder, one layer at a time: the oracle that calibration and evaluation run.

Weights are read layer by layer and dropped again, so memory stays at one layer plus the hidden
states. The linears are called through a function argument, so the same forward pass runs the float
weights, captures their inputs, or runs quantized ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from calib.matmul import product
from calib.operators import causal_attention, rms_norm, rotate_heads, swiglu
from lutllm.model_config import LinearShape
from lutllm.rope import rope_tables

if TYPE_CHECKING:
    from lutllm.checkpoint import Checkpoint

#: (linear of the layer, its input f32[T, D]) -> its output f32[T, M], bias included
ApplyLinear = Callable[[LinearShape, torch.Tensor], torch.Tensor]
#: Windows that run through a layer at once where there are many.
_WINDOWS = 4


@dataclass
class LayerWeights:
    """Float weights of one layer. weight: f32[M, D], bias: f32[M] or None, by linear name."""

    shapes: tuple[LinearShape, ...]
    weight: dict[str, torch.Tensor]
    bias: dict[str, torch.Tensor | None]
    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None

    def apply(self, shape: LinearShape, x: torch.Tensor) -> torch.Tensor:
        """The float linear: y = x W^T + b, multiplied in the type of W."""
        bias = self.bias[shape.name]
        y = product(x, self.weight[shape.name].t())
        return y if bias is None else y + bias


class FloatDecoder:
    """A checkpoint as a sequence of float layers.

    dtype: what queries, keys and values are multiplied in.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32):
        self.checkpoint = checkpoint
        self._dtype = dtype
        self.config = checkpoint.model
        self._rope: tuple[torch.Tensor, torch.Tensor] | None = None

    def _tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.checkpoint.tensor(name))

    def layer(self, index: int) -> LayerWeights:
        """Read the weights of decoder layer `index`."""
        shapes = self.config.layer_linears(index)
        weight: dict[str, torch.Tensor] = {}
        bias: dict[str, torch.Tensor | None] = {}
        for shape in shapes:
            parts = [self._tensor(f"{source}.weight") for source in shape.sources]
            weight[shape.name] = torch.cat(parts) if len(parts) > 1 else parts[0]
            bias[shape.name] = (
                torch.cat([self._tensor(f"{s}.bias") for s in shape.sources])
                if shape.has_bias
                else None
            )
        prefix = f"model.layers.{index}"
        qk = self.config.qk_norm
        return LayerWeights(
            shapes,
            weight,
            bias,
            self._tensor(f"{prefix}.input_layernorm.weight"),
            self._tensor(f"{prefix}.post_attention_layernorm.weight"),
            self._tensor(f"{prefix}.self_attn.q_norm.weight") if qk else None,
            self._tensor(f"{prefix}.self_attn.k_norm.weight") if qk else None,
        )

    def embed(self, ids: np.ndarray) -> torch.Tensor:
        """ids: i64[N, ctx] -> hidden states f32[N, ctx, hidden_size]."""
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = self.checkpoint.rows("model.embed_tokens.weight", unique)
        return torch.from_numpy(rows)[torch.from_numpy(inverse.reshape(ids.shape))]

    def head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Final norm weight f32[hidden] and head weight f32[vocab, hidden]."""
        tied = self.config.tie_word_embeddings
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return self._tensor("model.norm.weight"), self._tensor(name)

    def run_layer(
        self, hidden: torch.Tensor, weights: LayerWeights, apply: ApplyLinear
    ) -> torch.Tensor:
        """One decoder layer. hidden: f32[N, ctx, hidden_size] -> the same shape."""
        config = self.config
        flat = hidden.flatten(0, 1)
        qkv_proj, o_proj, gate_up_proj, down_proj = weights.shapes
        x = rms_norm(flat, weights.input_norm, config.rms_norm_eps)
        qkv = apply(qkv_proj, x).unflatten(0, hidden.shape[:2])
        attended = self.attention(qkv, weights).flatten(0, 1)
        flat = flat + apply(o_proj, attended)
        x = rms_norm(flat, weights.post_attention_norm, config.rms_norm_eps)
        flat = flat + apply(down_proj, swiglu(apply(gate_up_proj, x)))
        return flat.unflatten(0, hidden.shape[:2])

    def run_with_inputs(
        self, hidden: torch.Tensor, weights: LayerWeights
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`run_layer` a few windows at a time, and the input of each linear: f32[T, D]."""
        outputs: list[torch.Tensor] = []
        inputs: dict[str, list[torch.Tensor]] = {s.name: [] for s in weights.shapes}

        def apply(shape: LinearShape, x: torch.Tensor) -> torch.Tensor:
            inputs[shape.name].append(x)
            return weights.apply(shape, x)

        for part in hidden.split(_WINDOWS):
            outputs.append(self.run_layer(part, weights, apply))
        return torch.cat(outputs), {name: torch.cat(parts) for name, parts in inputs.items()}

    def attention(self, qkv: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
        """Causal grouped-query attention. qkv: f32[N, ctx, q+k+v] -> f32[N, ctx, q_size]."""
        config = self.config
        sizes = [config.q_size, config.kv_size, config.kv_size]
        counts = [size // config.head_dim for size in sizes]
        heads = qkv.unflatten(-1, (-1, config.head_dim))
        if weights.q_norm is not None and weights.k_norm is not None:
            q, k, v = heads.split(counts, 2)
            q = rms_norm(q, weights.q_norm, config.rms_norm_eps)
            k = rms_norm(k, weights.k_norm, config.rms_norm_eps)
            heads = torch.cat([q, k, v], 2)
        heads = rotate_heads(heads, *self._rope_for(qkv.shape[1]), sum(counts[:2]))
        q, k, v = (part.transpose(1, 2) for part in heads.to(self._dtype).split(counts, 2))
        return causal_attention(q, k, v).transpose(1, 2).flatten(2).float()

    def _rope_for(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._rope is None or len(self._rope[0]) < length:
            cos, sin = rope_tables(self.config, length)
            self._rope = torch.from_numpy(cos), torch.from_numpy(sin)
        return self._rope[0][:length], self._rope[1][:length]

    @torch.no_grad()
    def logits(self, ids: np.ndarray) -> np.ndarray:
        """ids: i64[T] -> logits f32[T, vocab]."""
        hidden = self.embed(np.asarray(ids)[None])
        for index in range(self.config.num_hidden_layers):
            weights = self.layer(index)
            hidden = self.run_layer(hidden, weights, weights.apply)
        norm, head = self.head()
        return product(rms_norm(hidden[0], norm, self.config.rms_norm_eps), head.t()).numpy()


class ResidentDecoder:
    """The float model with all its layers in memory, for many passes over few tokens.

    dtype: of the weights, and of what multiplies them.
    """

    def __init__(self, decoder: FloatDecoder, dtype: torch.dtype = torch.float32):
        self.decoder = decoder
        self.layers = [decoder.layer(i) for i in range(decoder.config.num_hidden_layers)]
        for layer in self.layers:
            layer.weight = {name: w.to(dtype) for name, w in layer.weight.items()}
        self.norm, head = decoder.head()
        self.head = head.to(dtype)

    @torch.no_grad()
    def hidden(self, ids: np.ndarray) -> torch.Tensor:
        """Normalised last hidden states f32[N, ctx, hidden]. ids: i64[N, ctx]."""
        hidden = self.decoder.embed(ids)
        for weights in self.layers:
            hidden = self.decoder.run_layer(hidden, weights, weights.apply)
        return rms_norm(hidden, self.norm, self.decoder.config.rms_norm_eps)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """ids: i64[T] -> f32[T, vocab]."""
        return product(self.hidden(np.asarray(ids)[None])[0], self.head.t()).numpy()
