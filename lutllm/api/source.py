"""What several commands take: a model's place."""

from __future__ import annotations

from pathlib import Path

from lutllm.artifact import is_artifact

Source = str | Path

#: Tokens per window in calibration and in the perplexities of a report.
CTX = 512


def names_artifact(model: Source) -> bool:
    """Whether `model` is an artifact folder, not a float checkpoint."""
    return Path(model).is_dir() and is_artifact(Path(model))
