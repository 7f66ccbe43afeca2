"""What several commands take: a model's place, and how it is opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from lutllm.artifact import is_artifact
from lutllm.errors import ConfigError

if TYPE_CHECKING:
    from lutllm.checkpoint import Checkpoint
    from lutllm.model_config import ModelConfig

Source = str | Path

#: Tokens per window in calibration and in the perplexities of a report.
CTX = 512


def open_source(source: Source, tie_head: bool) -> Checkpoint:
    """The checkpoint to quantize, with the rows of its head for an embedding on demand."""
    from lutllm.checkpoint import open_checkpoint
    from lutllm.checkpoint.tied import TiedCheckpoint

    checkpoint = open_checkpoint(source)
    return TiedCheckpoint(checkpoint) if tie_head else checkpoint


def names_artifact(model: Source) -> bool:
    """Whether `model` is an artifact folder, not a float checkpoint."""
    return Path(model).is_dir() and is_artifact(Path(model))


def open_reference(reference: Source, model: Source, config: ModelConfig) -> Checkpoint:
    """The float checkpoint that the artifact `model`, of this config, was made of."""
    from lutllm.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(reference)
    tied = config.tie_word_embeddings  # quantize may have tied them
    if dataclasses.replace(checkpoint.model, tie_word_embeddings=tied) != config:
        raise ConfigError(f"{reference} has another config than {model}; give what it was made of")
    return checkpoint
