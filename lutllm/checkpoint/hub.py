"""Fetching a checkpoint from the Hugging Face hub, for machines with a network."""

from __future__ import annotations

from pathlib import Path

from lutllm.artifact import read_json
from lutllm.checkpoint.base import read_model_config
from lutllm.errors import CheckpointError

#: Small files first: they decide whether the model is supported.
_SMALL = ("config.json",)
_ALL = (
    *_SMALL,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model*.safetensors",
)


def fetch(repo_id: str) -> Path:
    """Download `repo_id` into the hub's cache and return its folder.

    config.json comes first, so that an unsupported model is refused before its weights are
    fetched. Files already in the cache are not fetched again.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{repo_id}: no such folder here, and fetching it from the hub needs the package "
            'huggingface_hub; run: pip install "lutllm[hub]"'
        ) from None
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=list(_SMALL)))
        read_model_config(read_json(folder / "config.json", CheckpointError), repo_id)
        return Path(snapshot_download(repo_id, allow_patterns=list(_ALL)))
    except CheckpointError:
        raise
    except Exception as cause:  # the hub client raises many kinds, its own and its transport's
        first = str(cause).strip().splitlines()
        raise CheckpointError(
            f"{repo_id}: no such folder here, and it could not be fetched from the hub "
            f"({type(cause).__name__}: {first[0] if first else 'no detail'}); check the name and "
            "the network, or give a local folder"
        ) from None
