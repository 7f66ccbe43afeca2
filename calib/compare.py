"""A quantized model beside its float model on the same text, token by token.

Differences are paired: both models see the same windows, so the standard errors are those of the
difference, far smaller than those of either perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from calib.decoder import FloatDecoder
from calib.evaluate import Perplexity, last_hidden, token_nll
from calib.operators import rms_norm
from lutllm.progress import Progress

if TYPE_CHECKING:
    from lutllm.checkpoint import Checkpoint

#: Positions whose logits of both models exist at once.
_CHUNK = 128


@dataclass(frozen=True)
class Comparison:
    """Standard errors are over windows; None with a single window.

    ratio           perplexity over reference_perplexity, with the paired error ratio_stderr
    kl_divergence   mean KL(reference || model) per predicted position, nats
    top1_agreement  share of positions where both models rank the same token first
    """

    perplexity: float
    stderr: float | None
    reference_perplexity: float
    reference_stderr: float | None
    ratio: float
    ratio_stderr: float | None
    kl_divergence: float
    kl_stderr: float | None
    top1_agreement: float
    top1_stderr: float | None
    tokens: int
    ctx: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _error(values: np.ndarray) -> float | None:
    """Standard error of the mean of window values f64[N]."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


@torch.no_grad()
def compare(
    checkpoint: Checkpoint,
    logits: Callable[[np.ndarray], np.ndarray],
    windows: np.ndarray,
    progress: bool = False,
) -> Comparison:
    """Compare a model with its float checkpoint.

    logits: i64[T] -> f32[T, V], the quantized model; windows: i64[N, ctx].
    """
    decoder = FloatDecoder(checkpoint)
    layers = decoder.config.num_hidden_layers
    with Progress(layers + len(windows), "comparing", progress) as bar:
        hidden = last_hidden(decoder, windows, bar)
        norm, head = decoder.head()
        states = rms_norm(hidden[:, :-1], norm, decoder.config.rms_norm_eps)
        rows = []
        for window, state in zip(windows, states, strict=True):
            found = torch.from_numpy(logits(window[:-1]))
            rows.append(_window(found, state, head, torch.from_numpy(window[1:])))
            bar.advance(note=f"KL {np.mean([r[2] for r in rows]):.4f}")
    return _summary(np.array(rows), windows.shape[1])


def _window(
    logits: torch.Tensor, state: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> tuple[float, float, float, float]:
    """Means over a window: own and reference negative log-likelihood, KL, agreement."""
    total = np.zeros(4)
    for first in range(0, len(targets), _CHUNK):
        part = slice(first, first + _CHUNK)
        own, reference = logits[part], F.linear(state[part], head)
        log_own, log_reference = F.log_softmax(own, -1), F.log_softmax(reference, -1)
        total += (
            float(token_nll(own, targets[part]).sum()),
            float(token_nll(reference, targets[part]).sum()),
            float(F.kl_div(log_own, log_reference, reduction="sum", log_target=True)),
            float((own.argmax(-1) == reference.argmax(-1)).sum()),
        )
    a, b, c, d = (total / len(targets)).tolist()
    return a, b, c, d


def _summary(rows: np.ndarray, ctx: int) -> Comparison:
    """rows: f64[N, 4] from `_window`."""
    own = Perplexity.from_window_nll(rows[:, 0], ctx)
    reference = Perplexity.from_window_nll(rows[:, 1], ctx)
    gap = rows[:, 0] - rows[:, 1]
    ratio, gap_error = math.exp(min(gap.mean(), 700.0)), _error(gap)
    return Comparison(
        own.perplexity,
        own.stderr,
        reference.perplexity,
        reference.stderr,
        ratio,
        None if gap_error is None else ratio * gap_error,
        float(rows[:, 2].mean()),
        _error(rows[:, 2]),
        float(rows[:, 3].mean()),
        _error(rows[:, 3]),
        own.tokens,
        ctx,
    )
