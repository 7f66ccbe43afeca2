"""Text that grows token by token: what is chosen, when it ends, what is handed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lutllm.emulator.cache import KVCache
from lutllm.emulator.sampling import Sampling
from lutllm.errors import ArtifactError, ConfigError
from lutllm.tokenizer import StreamDecoder

if TYPE_CHECKING:
    from lutllm.emulator.model import LutModel


@dataclass(frozen=True)
class Generation:
    """Generated text and how it went.

    tokens         the generated ids, without the one that ended the text
    finish_reason  "stop" (the model ended it) or "length" (max_tokens or the context ran out)
    """

    text: str
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    def __str__(self) -> str:
        return self.text


class Continuation:
    """A text that grows token by token behind a prompt."""

    def __init__(
        self,
        model: LutModel,
        prompt: list[int],
        cache: KVCache,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        on_text: Callable[[str], None] | None = None,
    ):
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}; it must be 1 or above")
        self.prompt, self.cache = prompt, cache
        self.tokens: list[int] = []
        self._model, self._sampling, self._max_tokens = model, sampling, max_tokens
        self._rng = np.random.default_rng(seed)
        self._stream = Stream(model.tokenizer.stream_decoder(), on_text)
        self._reason = "length"

    def push(self, logits: np.ndarray) -> bool:
        """Choose a token; False if no logits behind it are needed."""
        model = self._model
        token = self._sampling.choose(check_finite(logits, model.path), self._rng)
        if token in model.tokenizer.eos_ids:
            self._reason = "stop"
            return False
        self.tokens.append(token)
        self._stream.push(token)
        return len(self.tokens) < self._max_tokens and self.cache.length < model.context

    def finish(self, prefill_s: float, decode_s: float) -> Generation:
        return Generation(
            self._stream.finish(),
            self.tokens,
            self._reason,
            len(self.prompt),
            len(self.prompt) / max(prefill_s, 1e-9),
            (self.cache.length - len(self.prompt)) / max(decode_s, 1e-9),
        )


class Stream:
    """Collects text and hands every new piece on."""

    def __init__(self, decoder: StreamDecoder, on_text: Callable[[str], None] | None):
        self._decoder, self._on_text = decoder, on_text
        self._pieces: list[str] = []

    def _add(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            if self._on_text:
                self._on_text(piece)

    def push(self, token: int) -> None:
        self._add(self._decoder.push(token))

    def finish(self) -> str:
        self._add(self._decoder.finish())
        return "".join(self._pieces)


def check_finite(logits: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise ArtifactError(
            f"{path}: the logits are not finite; the artifact is damaged, "
            f"`lutllm verify {path}` looks for the place"
        )
    return logits
