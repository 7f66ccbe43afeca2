"""Embedding and head stored as one matrix, where a checkpoint holds two roundings of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import lutllm
from lutllm.artifact import EMBEDDING, HEAD, Artifact
from lutllm.checkpoint import open_checkpoint
from lutllm.checkpoint.tied import TiedCheckpoint
from lutllm.errors import ConfigError
from lutllm.int8_rows import quantize_rows
from lutllm.tensorfile import write_tensors
from tests.embedded import MODEL, SAMPLE


def untied(folder: Path, noise: float) -> Path:
    """The embedded model with a head of its own: its embedding and some noise."""
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    source = open_checkpoint(MODEL)
    tensors = {name: source.stored(name) for name in source.names()}
    rows = source.tensor(EMBEDDING)
    draw = np.random.default_rng(0).standard_normal(rows.shape) * rows.std()
    tensors[HEAD] = ("F32", (rows + noise * draw).astype(np.float32))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    write_tensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untied(tmp_path_factory.mktemp("tied") / "model", 0.03)


def test_the_rows_are_those_of_the_head(source: Path) -> None:
    two = open_checkpoint(source)
    one = TiedCheckpoint(two)
    assert HEAD in two.names()
    assert HEAD not in one.names()
    assert one.model.tie_word_embeddings
    assert np.array_equal(one.tensor(EMBEDDING), two.tensor(HEAD))
    assert np.array_equal(one.stored(EMBEDDING)[1], two.stored(HEAD)[1])
    index = np.array([5, 0, 5])
    assert np.array_equal(one.rows(EMBEDDING, index), two.tensor(HEAD)[index])
    assert np.array_equal(one.tensor("model.norm.weight"), two.tensor("model.norm.weight"))


def test_an_artifact_holds_one_matrix(source: Path, tmp_path: Path) -> None:
    plain = lutllm.plan(source, recipe="tiny")["estimated_artifact_bytes"]
    planned = lutllm.plan(source, recipe="tiny", tie_head=True)["estimated_artifact_bytes"]
    model = open_checkpoint(source).model
    assert plain - planned == model.vocab_size * (model.hidden_size + 4)
    report = lutllm.quantize(
        source, tmp_path / "out", recipe="tiny", tie_head=True, calib_tokens=512, eval_tokens=512
    )
    assert report["tie_head"]
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.head_name == EMBEDDING
    stored = artifact.stored(EMBEDDING)[1]
    assert np.array_equal(stored, quantize_rows(open_checkpoint(source).tensor(HEAD))[0])
    found = lutllm.evaluate(tmp_path / "out", SAMPLE, max_tokens=1024, reference=source)
    assert 1 < found["ratio"] < 2


def test_other_matrices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one matrix already; leave tie_head out"):
        lutllm.plan(MODEL, tie_head=True)
    with pytest.raises(ConfigError, match="differ by 29% of the head; up to 15%"):
        lutllm.plan(untied(tmp_path / "model", 0.31), tie_head=True)
