"""Embedding and output head in the artifact: as they are, or as int8 rows (`lutllm.int8_rows`)."""

from __future__ import annotations

import numpy as np
import torch

from lutllm.checkpoint import Checkpoint
from lutllm.config import QuantConfig
from lutllm.int8_rows import quantize_rows, round_rows

#: Rows read at a time, which bounds the float copies.
_CHUNK = 8192
_ROWS = ("embed_tokens.weight", "lm_head.weight")


def stored_tensors(
    checkpoint: Checkpoint, name: str, config: QuantConfig
) -> dict[str, tuple[str, np.ndarray]]:
    """What the artifact holds for the tensor `name`: safetensors dtype and values by name."""
    if config.head == "source" or not name.endswith(_ROWS):
        return {name: checkpoint.stored(name)}
    count, size = checkpoint.shape(name)
    weight, scale = np.empty((count, size), np.int8), np.empty(count, np.float32)
    for first in range(0, count, _CHUNK):
        index = np.arange(first, min(first + _CHUNK, count))
        weight[index], scale[index] = quantize_rows(checkpoint.rows(name, index))
    return {name: ("I8", weight), f"{name}_scale": ("F32", scale)}


def stored_values(rows: torch.Tensor, config: QuantConfig) -> torch.Tensor:
    """Rows f32[..., H] of embedding or head with the values the artifact gives them (a copy)."""
    if config.head == "source":
        return rows.clone()
    flat = rows.flatten(0, -2).numpy()
    return torch.from_numpy(round_rows(flat)).view(rows.shape)


def head_bytes(checkpoint: Checkpoint, config: QuantConfig) -> int:
    """Bytes of embedding and head in the artifact; float tensors are taken as 16 bits."""
    total = 0
    for name in checkpoint.names():
        if name.endswith(_ROWS):
            count, size = checkpoint.shape(name)
            total += count * (2 * size if config.head == "source" else size + 4)
    return total
