"""Round-to-nearest, the baseline every per-layer error is shown beside."""

from __future__ import annotations

import torch

#: Input channels that share a scale and a zero point.
GROUP_CHANNELS = 64


def round_to_nearest(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Asymmetric min-max rounding per row and group of 64 channels. f32[M, D] -> f32[M, D]."""
    rows, columns = weight.shape
    pad = -columns % GROUP_CHANNELS
    padded = torch.nn.functional.pad(weight, (0, pad)).view(rows, -1, GROUP_CHANNELS)
    low = padded.amin(-1, keepdim=True)
    step = ((padded.amax(-1, keepdim=True) - low) / (2**bits - 1)).clamp(min=1e-12)
    rounded = torch.round((padded - low) / step) * step + low
    return rounded.reshape(rows, -1)[:, :columns]


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """|output - reference|^2 / |reference|^2."""
    energy = float(reference.pow(2).sum().clamp(min=1e-30))
    return float((output - reference).pow(2).sum()) / energy
