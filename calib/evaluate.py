"""Perplexity over windows of text, with its standard error.

A model is given as a function from token ids to losses or to logits, or as a float checkpoint,
which runs layer by layer so that memory stays bounded. Every window stands alone: its first token
has no prediction, so a window of ctx tokens counts ctx - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from calib.decoder import FloatDecoder
from calib.operators import rms_norm
from lutllm.errors import CheckpointError
from lutllm.progress import Progress

if TYPE_CHECKING:
    from lutllm.checkpoint import Checkpoint

#: Hidden states held at a time; more windows than fit are run in several passes over the layers.
HIDDEN_BYTES = 512 << 20
#: Tokens that go through a layer, and through the head, at a time.
LAYER_TOKENS, HEAD_TOKENS = 2048, 128


@dataclass(frozen=True)
class Perplexity:
    """Result of an evaluation.

    perplexity  exp of the mean negative log-likelihood per predicted token
    stderr      its standard error by the delta method, perplexity * s / sqrt(N), where s is the
                standard deviation of the N windows' mean log-likelihoods: tokens of a window are
                correlated, windows hardly are. None with a single window.
    tokens      predicted tokens
    ctx         tokens per window
    """

    perplexity: float
    stderr: float | None
    tokens: int
    ctx: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "perplexity": self.perplexity,
            "stderr": self.stderr,
            "tokens": self.tokens,
            "ctx": self.ctx,
        }

    @classmethod
    def from_window_nll(cls, nll: np.ndarray, ctx: int) -> Perplexity:
        """nll: f64[N], the mean negative log-likelihood of each window of ctx - 1 predictions."""
        if not np.isfinite(nll).all():
            raise CheckpointError(
                f"{int((~np.isfinite(nll)).sum())} of {len(nll)} windows give logits that are not "
                "finite; the model is damaged"
            )
        mean = float(nll.mean())
        perplexity = math.exp(min(mean, 700.0))  # exp(700) is the last power of e in range
        stderr = float(nll.std(ddof=1) / math.sqrt(len(nll))) if len(nll) > 1 else None
        return cls(
            perplexity,
            None if stderr is None else perplexity * stderr,
            len(nll) * (ctx - 1),
            ctx,
        )


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target. logits: f32[T, V]; targets: i64[T] -> f64[T]."""
    return F.cross_entropy(logits, targets, reduction="none").double()


def perplexity_of_losses(
    losses: Callable[[np.ndarray], np.ndarray],
    windows: np.ndarray,
    progress: bool = False,
    label: str = "evaluating",
) -> Perplexity:
    """Perplexity of any model.

    losses gives the negative log-likelihood of every token after the first: i64[1, ctx] ->
    f64[1, ctx - 1]. windows: i64[N, ctx].
    """
    nll = np.empty(len(windows))
    with Progress(len(windows), label, progress) as bar:
        for i in range(len(windows)):
            nll[i] = losses(windows[i : i + 1]).mean()
            bar.advance(note=f"perplexity {math.exp(min(nll[: i + 1].mean(), 700.0)):.3f}")
    return Perplexity.from_window_nll(nll, windows.shape[1])


def perplexity_of_logits(
    logits: Callable[[np.ndarray], np.ndarray], windows: np.ndarray, progress: bool = False
) -> Perplexity:
    """Perplexity of a model given as a function. logits: i64[T] -> f32[T, V]."""

    def losses(window: np.ndarray) -> np.ndarray:
        predicted = torch.from_numpy(np.asarray(logits(window[0, :-1]), np.float32))
        return token_nll(predicted, torch.from_numpy(window[0, 1:]))[None].numpy()

    return perplexity_of_losses(losses, windows, progress)


@torch.no_grad()
def perplexity_of_checkpoint(
    checkpoint: Checkpoint,
    windows: np.ndarray,
    progress: bool = False,
    label: str = "evaluating the float model",
) -> Perplexity:
    """Perplexity of a float checkpoint. windows: i64[N, ctx].

    Holds one layer's weights, or the head's, and up to HIDDEN_BYTES of hidden states.
    """
    decoder = FloatDecoder(checkpoint)
    per_window = 4 * decoder.config.hidden_size * windows.shape[1]
    count = max(1, HIDDEN_BYTES // per_window)
    passes = [windows[i : i + count] for i in range(0, len(windows), count)]
    layers = decoder.config.num_hidden_layers
    with Progress(len(passes) * (layers + 1), label, progress) as bar:
        nll = [_pass_nll(decoder, part, bar) for part in passes]
    return Perplexity.from_window_nll(np.concatenate(nll), windows.shape[1])


def _pass_nll(decoder: FloatDecoder, windows: np.ndarray, bar: Progress) -> np.ndarray:
    """Mean negative log-likelihood of each window. windows: i64[N, ctx] -> f64[N]."""
    nll = _head_nll(decoder, last_hidden(decoder, windows, bar), windows)
    bar.advance()
    return nll


def last_hidden(decoder: FloatDecoder, windows: np.ndarray, bar: Progress) -> torch.Tensor:
    """Hidden states behind the last layer, before the final norm: f32[N, ctx, hidden_size].

    windows: i64[N, ctx]; the bar advances once a layer.
    """
    hidden = decoder.embed(windows)
    step = max(1, LAYER_TOKENS // windows.shape[1])
    for index in range(decoder.config.num_hidden_layers):
        weights = decoder.layer(index)
        for i in range(0, len(windows), step):
            hidden[i : i + step] = decoder.run_layer(hidden[i : i + step], weights, weights.apply)
        bar.advance()
    return hidden


def _head_nll(decoder: FloatDecoder, hidden: torch.Tensor, windows: np.ndarray) -> np.ndarray:
    """The head and the loss, a few tokens at a time. hidden: f32[N, ctx, hidden_size]."""
    norm, head = decoder.head()
    flat = rms_norm(hidden[:, :-1].flatten(0, 1), norm, decoder.config.rms_norm_eps)
    targets = torch.from_numpy(np.ascontiguousarray(windows[:, 1:])).flatten()
    nll = torch.empty(len(flat), dtype=torch.float64)
    for i in range(0, len(flat), HEAD_TOKENS):
        part = slice(i, i + HEAD_TOKENS)
        nll[part] = token_nll(F.linear(flat[part], head), targets[part])
    return nll.view(len(windows), -1).mean(1).numpy()
