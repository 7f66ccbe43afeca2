"""Embedding and output head in the artifact: as they are, or as int8 rows (`lutllm.int8_rows`).

A LUT linear may come before the rows of the head.
"""

from __future__ import annotations

import numpy as np
import torch

from calib.decoder import FloatDecoder
from calib.operators import rms_norm
from lutllm.checkpoint import Checkpoint
from lutllm.config import QuantConfig
from lutllm.int8_rows import quantize_rows, round_rows
from lutllm.lut_linear import LutLinear, stored_bytes
from quant import linear
from quant.linear import Effort

#: Rows read at a time, which bounds the float copies.
_CHUNK = 8192
_ROWS = ("embed_tokens.weight", "lm_head.weight")


def stored_tensors(
    checkpoint: Checkpoint, name: str, config: QuantConfig
) -> dict[str, tuple[str, np.ndarray]]:
    """What the artifact holds for the tensor `name`: safetensors dtype and values by name."""
    if not config.int8_rows or not name.endswith(_ROWS):
        return {name: checkpoint.stored(name)}
    count, size = checkpoint.shape(name)
    weight, scale = np.empty((count, size), np.int8), np.empty(count, np.float32)
    for first in range(0, count, _CHUNK):
        index = np.arange(first, min(first + _CHUNK, count))
        weight[index], scale[index] = quantize_rows(checkpoint.rows(name, index))
    return {name: ("I8", weight), f"{name}_scale": ("F32", scale)}


def stored_values(rows: torch.Tensor, config: QuantConfig) -> torch.Tensor:
    """Rows f32[..., H] of embedding or head with the values the artifact gives them (a copy)."""
    if not config.int8_rows:
        return rows.clone()
    flat = rows.flatten(0, -2).numpy()
    return torch.from_numpy(round_rows(flat)).view(rows.shape)


@torch.no_grad()
def quantize_head(
    decoder: FloatDecoder,
    exact: torch.Tensor,
    quantized: torch.Tensor,
    config: QuantConfig,
    effort: Effort,
    progress: bool = False,
) -> LutLinear:
    """The LUT linear before the rows of the head.

    exact, quantized: f32[N, ctx, hidden_size], what leaves the last layer of the float model and
    of the quantized one.
    """
    norm, weight = decoder.head()
    shape = decoder.config.head_linear()
    x_float, x_quant = (
        rms_norm(x.flatten(0, 1), norm, decoder.config.rms_norm_eps) for x in (exact, quantized)
    )
    setting = config.for_linear(shape.name)
    return linear.quantize_rows(
        shape, weight, x_float, x_quant, setting, effort, config.seed, progress
    )


def head_bytes(checkpoint: Checkpoint, config: QuantConfig) -> int:
    """Bytes of embedding and head in the artifact; float tensors are taken as 16 bits."""
    total = 0
    for name in checkpoint.names():
        if name.endswith(_ROWS):
            count, size = checkpoint.shape(name)
            total += count * (size + 4 if config.int8_rows else 2 * size)
    if config.lut_head:
        shape = checkpoint.model.head_linear()
        setting = config.for_linear(shape.name)
        total += stored_bytes(setting, shape.in_features, shape.out_features, bias=False)
    return total
