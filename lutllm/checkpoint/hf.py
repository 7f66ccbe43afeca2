"""A Hugging Face folder: config.json, safetensors (one file or shards), tokenizer files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.artifact import INDEX_NAME, TOKENIZER_FILES, read_json, write_json
from lutllm.checkpoint.base import FLOAT_KINDS, Checkpoint, check_tensors
from lutllm.errors import CheckpointError
from lutllm.pages import release_view
from lutllm.tensorfile import TensorFile, bf16_to_f32

_SINGLE_NAME = "model.safetensors"


class HfCheckpoint(Checkpoint):
    """A folder in the Hugging Face layout; tensors are mapped, not copied, until asked for."""

    def __init__(self, folder: Path, source: str):
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{source}: no config.json in this folder{_hint(folder)}")
        super().__init__(source, read_json(folder / "config.json", CheckpointError))
        self.folder = folder
        self._where = _locate_tensors(folder, source)
        found = {name: (f.shape(name), f.dtype(name)) for name, f in self._where.items()}
        self._shapes = check_tensors(source, self.model, found, FLOAT_KINDS)

    def _read_f32(self, name: str) -> np.ndarray:
        file = self._where[name]
        values = file.float32(name)
        release_view(file.view(name))
        return values

    def _read_stored(self, name: str) -> tuple[str, np.ndarray]:
        file = self._where[name]
        return file.dtype(name), file.view(name)

    def _read_rows(self, name: str, index: np.ndarray) -> np.ndarray:
        kind, view = self._read_stored(name)
        chosen = view[index]
        return bf16_to_f32(chosen) if kind == "BF16" else chosen.astype(np.float32)

    def write_tokenizer(self, dest: Path) -> None:
        if not (self.folder / "tokenizer.json").is_file():
            raise CheckpointError(
                f"{self.source}: no tokenizer.json in this folder; write one with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, dest / name)
        if not (dest / "tokenizer_config.json").exists():
            write_json(dest / "tokenizer_config.json", {})
        if not (dest / "generation_config.json").exists():
            write_json(dest / "generation_config.json", _generation_config(self.hf_config))


def _generation_config(hf_config: dict[str, Any]) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: hf_config[key] for key in keys if hf_config.get(key) is not None}


def _hint(folder: Path) -> str:
    """What the user may have meant by a folder without config.json."""
    files = sorted(folder.glob("*.gguf"))
    return f"; did you mean {files[0]}?" if files else "; give the folder that holds it"


def _locate_tensors(folder: Path, source: str) -> dict[str, TensorFile]:
    """The opened file of every tensor in the folder."""
    if (folder / _SINGLE_NAME).is_file() or not (folder / INDEX_NAME).is_file():
        return _single_file(folder, source)
    weight_map = read_json(folder / INDEX_NAME, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_NAME}: weight_map is missing or empty")
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{folder / INDEX_NAME}: {name!r} points to {file!r}; "
                "only *.safetensors of the same folder are read"
            )
    files = {f: TensorFile(folder / f, CheckpointError) for f in sorted(set(weight_map.values()))}
    held = {file: set(opened.names()) for file, opened in files.items()}
    for name, file in weight_map.items():
        if name not in held[file]:
            raise CheckpointError(
                f"{folder / file}: tensor {name!r} is missing, though {INDEX_NAME} says it is "
                "here; fetch the checkpoint again"
            )
    return {name: files[file] for name, file in weight_map.items()}


def _single_file(folder: Path, source: str) -> dict[str, TensorFile]:
    candidates = [folder / _SINGLE_NAME]
    if not candidates[0].is_file():
        candidates = sorted(folder.glob("*.safetensors"))
    if len(candidates) == 1:
        file = TensorFile(candidates[0], CheckpointError)
        return dict.fromkeys(file.names(), file)
    if candidates:
        raise CheckpointError(
            f"{source}: {len(candidates)} safetensors files but no {INDEX_NAME}; "
            "fetch the index that names their tensors"
        )
    old = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pth"))
    reason = (
        f"{old[0].name} is a pickle file, which lutllm does not read; convert it to safetensors "
        "with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
        if old
        else "fetch the weights"
    )
    raise CheckpointError(f"{source}: no *.safetensors in this folder; {reason}")
