"""Perplexity, divergence and zero-shot accuracy of artifacts and float checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutllm.api.running import load
from lutllm.api.source import CTX, Source, names_artifact, open_reference
from lutllm.artifact import Artifact
from lutllm.errors import ConfigError

if TYPE_CHECKING:
    from calib.evaluate import Perplexity


def artifact_perplexity(path: Path, windows: np.ndarray, progress: bool) -> Perplexity:
    from calib.evaluate import perplexity_of_losses

    return perplexity_of_losses(load(path).nll, windows, progress, "evaluating the artifact")


def evaluate(
    model: Source,
    text: Source,
    *,
    ctx: int = CTX,
    max_tokens: int | None = None,
    reference: Source | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Perplexity of an artifact or a float checkpoint over windows that do not overlap.

    Returns perplexity, stderr (delta method over windows), tokens (predicted ones) and ctx. With
    `reference`, the float checkpoint of an artifact, also the paired ratio of perplexities, the
    KL divergence and the agreement of first ranks (`calib.compare.Comparison`).
    """
    from calib.evaluate import perplexity_of_checkpoint
    from calib.text import read_text, windows
    from lutllm.checkpoint import open_checkpoint
    from lutllm.tokenizer import Tokenizer

    content = read_text(text)
    if names_artifact(model):
        limit = Artifact.open(model).model.max_position_embeddings
        _check_ctx(model, ctx, limit)
        ids = Tokenizer.from_folder(model).encode(content)
        if reference is not None:
            return _compare(model, reference, windows(ids, ctx, max_tokens), progress)
        return artifact_perplexity(Path(model), windows(ids, ctx, max_tokens), progress).to_dict()
    if reference is not None:
        raise ConfigError(f"{model} is not an artifact; only artifacts have a reference")
    checkpoint = open_checkpoint(model)
    _check_ctx(model, ctx, checkpoint.model.max_position_embeddings)
    ids = checkpoint.tokenizer().encode(content)
    return perplexity_of_checkpoint(checkpoint, windows(ids, ctx, max_tokens), progress).to_dict()


def evaluate_task(
    model: Source,
    task: Source,
    *,
    limit: int | None = None,
    reference: Source | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Zero-shot accuracy of an artifact or a float checkpoint on a local task file.

    task: JSON lines (`calib.tasks`); limit: the first so many items. Returns accuracy,
    accuracy_norm (per character of the answer), their standard errors and items; with
    `reference`, a float checkpoint, also the paired change of accuracy on the same items.
    """
    from calib.tasks import paired, read_task, score

    items = read_task(task, limit)
    own = score(items, *_task_model(model), progress)
    if reference is None:
        return own.to_dict()
    return own.to_dict() | paired(own, score(items, *_task_model(reference), progress))


def _task_model(model: Source) -> tuple[Any, Any, int]:
    """How to encode a text, how to get logits i64[T] -> f32[T, V], and the longest sequence."""
    if names_artifact(model):
        artifact = load(model)
        return artifact.tokenizer.encode, artifact.logits, artifact.context
    from calib.decoder import FloatDecoder, ResidentDecoder
    from lutllm.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    resident = ResidentDecoder(FloatDecoder(checkpoint))
    limit = checkpoint.model.max_position_embeddings
    return checkpoint.tokenizer().encode, resident.logits, limit


def _compare(
    model: Source, reference: Source, windows: np.ndarray, progress: bool
) -> dict[str, Any]:
    from calib.compare import compare

    artifact = load(model)
    checkpoint = open_reference(reference, model, artifact.config)
    return compare(checkpoint, artifact.logits, windows, progress).to_dict()


def _check_ctx(model: Source, ctx: int, limit: int) -> None:
    if ctx > limit:
        raise ConfigError(
            f"ctx is {ctx}, but {model} is made for up to {limit} positions; lower ctx"
        )
