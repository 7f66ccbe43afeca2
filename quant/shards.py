"""The tensor files of an artifact in the making: one per layer, one for the rest, and the index."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lutllm.artifact import INDEX_NAME, write_json
from lutllm.errors import ArtifactError
from lutllm.tensorfile import TensorFile, write_tensors


def shard_name(index: int, count: int) -> str:
    """Name of tensor file `index` of `count`, as Hugging Face writes it."""
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_shard(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """Write a tensor file beside its name and rename it: a kill leaves no half of one."""
    temporary = path.with_suffix(".new")
    write_tensors(temporary, tensors)
    os.replace(temporary, path)


def write_index(folder: Path, count: int) -> None:
    """Say which of the `count` tensor files in `folder` holds which tensor."""
    weight_map: dict[str, str] = {}
    total = 0
    for index in range(count):
        file = TensorFile(folder / shard_name(index, count), ArtifactError)
        for name in file.names():
            weight_map[name] = file.path.name
            total += file.view(name).nbytes
    write_json(
        folder / INDEX_NAME,
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )
