"""The tensors of an artifact that stay floats, and what the kernels know of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lutllm.artifact import EMBEDDING, Artifact
from lutllm.emulator.floats import KINDS
from lutllm.emulator.records import DECODER, LAYER
from lutllm.int8_rows import hidden_limit
from lutllm.model_config import ModelConfig


class FloatTensors:
    """Norms in memory, embedding and head mapped from disk.

    They come from a mapping of their own, so that the pages of everything packed can be dropped.
    """

    def __init__(self, path: Path):
        self._artifact = Artifact.open(path)
        self._kept: list[np.ndarray] = []

    def _norm(self, name: str) -> int:
        values = np.ascontiguousarray(self._artifact.float32(name))
        self._kept.append(values)
        return values.ctypes.data

    def _rows(self, part: str, name: str) -> dict[str, int]:
        """The fields of DECODER for the rows `name`, mapped from disk."""
        kind, view = self._artifact.stored(name)
        self._kept.append(view)
        found = {part: view.ctypes.data, f"{part}_kind": KINDS[kind]}
        if kind == "I8":
            scale = np.ascontiguousarray(self._artifact.row_scales(name))
            self._kept.append(scale)
            found[f"{part}_scale"] = scale.ctypes.data
        return found

    def decoder(self, config: ModelConfig) -> np.ndarray:
        """DECODER[1]."""
        record = np.zeros(1, DECODER)
        values = {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "intermediate": config.intermediate_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "vocab": config.vocab_size,
            **self._rows("embed", EMBEDDING),
            **self._rows("head", self._artifact.head_name),
            "screened": int(self._artifact.quant.lut_head),
            "head_margin": self._artifact.quant.head_margin,
            "head_limit": hidden_limit(config.hidden_size),
            "final_norm": self._norm("model.norm.weight"),
            "eps": config.rms_norm_eps,
            "score_scale": config.head_dim**-0.5,
        }
        for key, value in values.items():
            record[key] = value
        return record

    def layers(self, config: ModelConfig) -> np.ndarray:
        """LAYER[L] without the caches."""
        records = np.zeros(config.num_hidden_layers, LAYER)
        for i, record in enumerate(records):
            base = f"model.layers.{i}"
            record["input_norm"] = self._norm(f"{base}.input_layernorm.weight")
            record["post_norm"] = self._norm(f"{base}.post_attention_layernorm.weight")
            if config.qk_norm:
                record["q_norm"] = self._norm(f"{base}.self_attn.q_norm.weight")
                record["k_norm"] = self._norm(f"{base}.self_attn.k_norm.weight")
        return records
