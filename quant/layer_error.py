"""Error of the hidden states behind every layer: a loss beside the divergence.

A step of distillation sees few tokens, and what a codebook of an early layer should be comes
through all later ones, whose codes flip as it moves. Hidden states tell it sooner and with less
noise. A few channels and the first token of a window are far larger than all others, so channels
count in units of their spread and that token not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: Standard deviation over mean absolute deviation, of normal values.
_NORMAL = (torch.pi / 2) ** 0.5


def layer_error(own: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """Square of the error relative to the float model's, mean over layers and tokens.

    own, other: f32[N, ctx, hidden] behind each layer, the quantized model's and the float model's.
    Of each token sum((own - other)^2 / v) / sum((other - mean)^2 / v) over channels, with the mean
    and the variance v of a channel over tokens; the latter from absolute deviations, and the
    divisor is at least the number of channels, so that no token near the mean counts for many.
    """
    errors = [_error(a[:, 1:], b[:, 1:]) for a, b in zip(own, other, strict=True)]
    return torch.stack(errors).mean()


def _error(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    centred = other - other.mean((0, 1))
    spread = (_NORMAL * centred.abs().mean((0, 1))).clamp(min=1e-30)
    size = (centred / spread).square().mean(-1).clamp(min=1)
    return (((own - other) / spread).square().mean(-1) / size).mean()
