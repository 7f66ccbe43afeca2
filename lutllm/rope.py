"""Rotary embedding tables, the one source for calibration, emulator and kernels."""

from __future__ import annotations

import math

import numpy as np

from lutllm.model_config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """f32[head_dim / 2] angular frequencies, Llama 3 and linear scaling applied.

    Source: RoFormer (arXiv 2104.09864); the Llama 3 rule as in the reference implementation of
    Llama 3.1: long wavelengths divided by `factor`, a smooth ramp between the two bounds.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    freq = (np.float32(1.0) / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return freq
    factor = np.float32(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return (freq / factor).astype(np.float32)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / freq
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * freq / factor + smooth * freq
    out = np.where(wavelength > context / low, freq / factor, freq)
    middle = (wavelength <= context / low) & (wavelength >= context / high)
    return np.where(middle, blended, out).astype(np.float32)


def rope_tables(config: ModelConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, each f32[length, head_dim / 2], for positions 0 .. length - 1."""
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse_frequencies(config)[None, :]
    return np.cos(angles), np.sin(angles)
