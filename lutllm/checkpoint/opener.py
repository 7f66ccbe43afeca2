"""Which kind of checkpoint did the user name?"""

from __future__ import annotations

import re
from pathlib import Path

from lutllm.checkpoint.base import Checkpoint
from lutllm.checkpoint.gguf_checkpoint import GgufCheckpoint
from lutllm.checkpoint.gguf_file import is_gguf
from lutllm.checkpoint.hf import HfCheckpoint
from lutllm.checkpoint.hub import fetch
from lutllm.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a Hugging Face folder, a GGUF file or a hub id ("Qwen/Qwen3-0.6B").

    Only headers are read. CheckpointError says what is missing, damaged or not supported.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return HfCheckpoint(path, str(source))
    if path.is_file():
        if is_gguf(path):
            return GgufCheckpoint(path, str(source))
        raise CheckpointError(
            f"{source}: not a GGUF file; give a GGUF file or the folder that holds config.json"
        )
    if isinstance(source, str) and _HUB_ID.fullmatch(source) and not source.endswith(".gguf"):
        return HfCheckpoint(fetch(source), source)
    raise CheckpointError(
        f"{source}: no such file or folder; give a Hugging Face folder, a GGUF file or a hub id "
        "such as Qwen/Qwen3-0.6B"
    )
