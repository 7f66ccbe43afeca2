"""A checkpoint whose embedding is its output head: one matrix where two roundings of it are stored.

A GGUF file of a model that ties the two often holds the matrix twice, as the embedding and, with
more bits, as the head.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lutllm.artifact import EMBEDDING, HEAD
from lutllm.checkpoint.base import Checkpoint, tensor_shapes
from lutllm.errors import ConfigError

#: Largest distance of the two, relative to the head, at which they count as one matrix: that of a
#: rounding to 4 bits or so.
_MOST_DISTANCE = 0.15
#: Rows that are compared.
_SAMPLE = 512


class TiedCheckpoint(Checkpoint):
    """`checkpoint` with the rows of its head for an embedding.

    ConfigError where it has no head of its own, or one that is another matrix.
    """

    def __init__(self, checkpoint: Checkpoint):
        _check_alike(checkpoint)
        super().__init__(checkpoint.source, checkpoint.hf_config | {"tie_word_embeddings": True})
        self._untied = checkpoint
        self._shapes = tensor_shapes(self.model)

    def write_tokenizer(self, dest: Path) -> None:
        self._untied.write_tokenizer(dest)

    def _read_f32(self, name: str) -> np.ndarray:
        return self._untied._read_f32(_stored_name(name))

    def _read_stored(self, name: str) -> tuple[str, np.ndarray]:
        return self._untied._read_stored(_stored_name(name))

    def _read_rows(self, name: str, index: np.ndarray) -> np.ndarray:
        return self._untied._read_rows(_stored_name(name), index)


def _stored_name(name: str) -> str:
    return HEAD if name == EMBEDDING else name


def _check_alike(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    if model.tie_word_embeddings:
        raise ConfigError(
            f"{checkpoint.source}: embedding and head are one matrix already; leave tie_head out"
        )
    index = np.linspace(0, model.vocab_size - 1, min(_SAMPLE, model.vocab_size)).astype(np.int64)
    head = checkpoint.rows(HEAD, index)
    distance = float(np.linalg.norm(checkpoint.rows(EMBEDDING, index) - head))
    share = distance / max(float(np.linalg.norm(head)), 1e-30)
    if share > _MOST_DISTANCE:
        raise ConfigError(
            f"{checkpoint.source}: embedding and head differ by {share:.0%} of the head; up to "
            f"{_MOST_DISTANCE:.0%} they count as roundings of one matrix; leave tie_head out"
        )
