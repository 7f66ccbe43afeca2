"""A small linear layer with outlier channels, and its quantization, for several tests."""

from __future__ import annotations

import numpy as np
import torch

from lutllm.config import LutConfig
from lutllm.model_config import LinearShape
from quant.linear import Effort, QuantizedLinear, quantize_linear

ROWS, COLUMNS, TOKENS = 130, 51, 600


def data(outlier: float = 8.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs with outlier channels f32[T, D], and a weight f32[M, D]."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((COLUMNS, COLUMNS)) / COLUMNS**0.5 + np.eye(COLUMNS)
    x = rng.standard_normal((TOKENS, COLUMNS)) @ mix
    x[:, ::17] *= outlier
    weight = rng.standard_normal((ROWS, COLUMNS)) * rng.uniform(0.3, 2, (ROWS, 1))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(weight, dtype=torch.float32)


def run(config: LutConfig, outlier: float = 8.0, sweeps: int = 1) -> QuantizedLinear:
    x, weight = data(outlier)
    shape = LinearShape("layer", ("layer",), COLUMNS, ROWS)
    return quantize_linear(shape, weight, None, x, x, config, Effort(sweeps=sweeps), seed=0)
