"""Choosing the next token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutllm.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the likeliest token; top_k 0 and top_p 1 keep every token.

    top_k keeps the k likeliest tokens, top_p then the fewest likeliest ones whose probabilities
    reach p.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 or above")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; it must be 0 (all tokens) or above")

    def choose(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        """A token id. logits: f32[V]. Greedy choice takes the lowest id of equals."""
        if self.temperature == 0:
            return int(logits.argmax())
        ids = _top_k(logits, self.top_k)
        scores = logits[ids].astype(np.float64) / self.temperature
        weights = np.exp(scores - scores.max())
        probabilities = weights / weights.sum()
        order = np.argsort(-probabilities, kind="stable")
        cumulative = probabilities[order].cumsum()
        kept = int(np.searchsorted(cumulative, self.top_p * cumulative[-1])) + 1
        kept = min(kept, len(order))
        draw = rng.random() * cumulative[kept - 1]
        return int(ids[order[min(int(np.searchsorted(cumulative, draw, "right")), kept - 1)]])


def _top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest logits in ascending order of id; all ids for k = 0."""
    if not 0 < k < len(logits):
        return np.arange(len(logits))
    return np.sort(np.argsort(-logits, kind="stable")[:k])
