"""A whole decoder as an ONNX graph: token ids and a KV cache in, logits and the longer cache out.

Inputs and outputs are named as in other exports of such models: input_ids i64[batch, tokens],
past_key_values.N.key and .value f32[batch, kv_heads, past, head_dim], logits f32[batch, tokens, V],
present.N.key and .value. Every sequence of a batch has the same length: there is no padding mask.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from codegen.onnx.body import Body
from codegen.onnx.linear import LinearFunctions
from codegen.onnx.steps import int8_head
from codegen.onnx.weights import Weights
from lutllm.artifact import Artifact
from lutllm.model_config import LinearShape
from lutllm.rope import rope_tables

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class DecoderGraph:
    """Builds the graph of an artifact layer by layer."""

    def __init__(self, artifact: Artifact, functions: LinearFunctions, weights: Weights):
        self.artifact = artifact
        self.config = artifact.model
        self._functions, self._weights = functions, weights
        self._g = Body()

    def build(self) -> onnx.GraphProto:
        self._rotary_tables()
        hidden = self._embed("input_ids")
        for i in range(self.config.num_hidden_layers):
            hidden = self._layer(i, hidden)
        self._head(self._norm(hidden, "model.norm.weight"))
        outputs = [_value("logits", ["batch", "tokens", self.config.vocab_size])]
        outputs += self._cache("present", "past + tokens")
        inputs = [_value("input_ids", ["batch", "tokens"], TensorProto.INT64)]
        inputs += self._cache("past_key_values", "past")
        return helper.make_graph(
            self._g.nodes, "decoder", inputs, outputs, initializer=self._weights.tensors
        )

    # ------------------------------------------------------------ parts

    def _rotary_tables(self) -> None:
        """Tables of all positions, and the positions of this call: past .. past + tokens."""
        g = self._g
        tables = rope_tables(self.config, self.config.max_position_embeddings)
        for name, table in zip(("rotary.cos", "rotary.sin"), tables, strict=True):
            self._weights.add(name, table)
        zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
        past = g("Gather", g("Shape", "past_key_values.0.key"), g.constant(2, np.int64))
        tokens = g("Gather", g("Shape", "input_ids"), one)
        row = g("Add", g("Range", zero, tokens, one), past)
        g("Expand", row, g("Shape", "input_ids"), outputs=["positions"])

    def _rows(self, name: str) -> tuple[str, str]:
        """int8 rows i8[V, H] of embedding or head, and their scales f32[V]."""
        scale = f"{name}_scale"
        self._weights.add(name, self.artifact.stored(name)[1])
        self._weights.add(scale, self.artifact.stored(scale)[1])
        return name, scale

    def _embed(self, ids: str) -> str:
        if self.artifact.quant.int8_rows:
            g = self._g
            rows, scale = self._rows(EMBEDDING)
            factor = g("Unsqueeze", g("Gather", scale, ids), g.constant([-1], np.int64))
            return g("Mul", g.cast(g("Gather", rows, ids), TensorProto.FLOAT), factor)
        table = self._weights.add_float(EMBEDDING, self.artifact.float32(EMBEDDING))
        return self._g.cast(self._g("Gather", table, ids), TensorProto.FLOAT)

    def _head(self, hidden: str) -> None:
        """logits = hidden . head^T; a tied head is the embedding, stored once."""
        g = self._g
        rows = g.reshape(hidden, -1, self.config.hidden_size)
        tied = self.config.tie_word_embeddings
        linear = self.artifact.head_linear()
        if linear is not None:
            flat = self._functions.call(g, rows, linear, self._weights)
        elif self.artifact.quant.int8_rows:
            weight, scale = (EMBEDDING, f"{EMBEDDING}_scale") if tied else self._rows(HEAD)
            flat = int8_head(g, rows, weight, scale, self.config.hidden_size)
        else:
            name = EMBEDDING
            if not tied:
                name = self._weights.add_float(HEAD, self.artifact.float32(HEAD))
            flat = g("Gemm", rows, g.cast(name, TensorProto.FLOAT), transB=1)
        leading = g("Shape", "input_ids")
        shape = g("Concat", leading, g.constant([self.config.vocab_size], np.int64), axis=0)
        g("Reshape", flat, shape, outputs=["logits"])

    def _norm(self, x: str, name: str) -> str:
        self._weights.add(name, self.artifact.float32(name))
        return self._g("RMSNormalization", x, name, axis=-1, epsilon=self.config.rms_norm_eps)

    def _linear(self, shape: LinearShape, x: str) -> str:
        return self._functions.call(self._g, x, self.artifact.linear(shape), self._weights)

    def _layer(self, index: int, hidden: str) -> str:
        base = f"model.layers.{index}"
        qkv, out, gate_up, down = self.config.layer_linears(index)
        g = self._g
        normed = self._norm(hidden, f"{base}.input_layernorm.weight")
        mixed = self._attention(index, self._linear(qkv, normed))
        hidden = g("Add", hidden, self._linear(out, mixed))
        normed = self._norm(hidden, f"{base}.post_attention_layernorm.weight")
        gate, up = g("Split", self._linear(gate_up, normed), outputs=2, axis=-1, num_outputs=2)
        product = g("Mul", g("Swish", gate), up)
        return g("Add", hidden, self._linear(down, product))

    def _attention(self, index: int, qkv: str) -> str:
        """qkv: f32[batch, tokens, (H + 2 KV) hd] -> f32[batch, tokens, H hd]."""
        config, g = self.config, self._g
        sizes = [config.q_size, config.kv_size, config.kv_size]
        q, k, v = g("Split", qkv, g.constant(sizes, np.int64), outputs=3, axis=-1)
        q = self._place(q, index, "q", config.num_attention_heads)
        k = self._place(k, index, "k", config.num_key_value_heads)
        past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        mixed, _, _ = g(
            "Attention",
            q,
            k,
            v,
            "",
            *past,
            outputs=[f"model.layers.{index}.self_attn.mixed", *present],
            is_causal=1,
            q_num_heads=config.num_attention_heads,
            kv_num_heads=config.num_key_value_heads,
            scale=float(np.float32(config.head_dim**-0.5)),
        )
        return mixed

    def _place(self, x: str, index: int, which: str, heads: int) -> str:
        """Norm (Qwen3) and rotate queries or keys f32[batch, tokens, heads * hd]."""
        g, size = self._g, self.config.head_dim
        if self.config.qk_norm:
            name = f"model.layers.{index}.self_attn.{which}_norm.weight"
            normed = self._norm(g.reshape(x, 0, 0, heads, size), name)
            x = g.reshape(normed, 0, 0, heads * size)
        return g("RotaryEmbedding", x, "rotary.cos", "rotary.sin", "positions", num_heads=heads)

    def _cache(self, stem: str, length: str) -> list[onnx.ValueInfoProto]:
        dims = ["batch", self.config.num_key_value_heads, length, self.config.head_dim]
        return [
            _value(f"{stem}.{i}.{part}", dims)
            for i in range(self.config.num_hidden_layers)
            for part in ("key", "value")
        ]


def _value(name: str, dims: list, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)
