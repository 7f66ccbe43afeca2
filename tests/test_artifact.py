"""Opening and verifying artifacts, and refusing damaged ones by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutllm.artifact import Artifact, artifact_hash, file_digest, write_json
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import ArtifactError
from lutllm.tensorfile import TensorFile, bf16_to_f32, f32_to_bf16, write_tensors
from tests.make_artifact import tiny_config, write_artifact


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artifact") / "good", tiny_config("qwen3"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_good_artifact_verifies(original: Path) -> None:
    artifact = Artifact.open(original)
    assert artifact.verify() == []
    assert len(list(artifact.linears())) == 8


def test_arrays_are_views_of_the_file(original: Path) -> None:
    linear = next(Artifact.open(original).linears())
    base: Any = linear.weight_codes
    while not isinstance(base, np.memmap) and getattr(base, "base", None) is not None:
        base = base.base
    assert isinstance(base, np.memmap)
    assert not linear.weight_codes.flags.writeable


def test_the_metric_is_kept(tmp_path: Path) -> None:
    quant = QuantConfig(LutConfig(metric="chebyshev"))
    folder = write_artifact(tmp_path / "art", tiny_config("qwen3"), quant)
    assert Artifact.open(folder).quant == quant
    assert {linear.config.metric for linear in Artifact.open(folder).linears()} == {"chebyshev"}


def test_artifacts_from_before_the_metric(folder: Path) -> None:
    default = LutConfig().to_dict()
    del default["metric"]
    edit_config(folder, default=default)
    assert Artifact.open(folder).quant.default.metric == "l2"


def edit_index(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    write_json(path, index)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(values)
    write_json(path, config)


def test_damaged_folders_are_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        Artifact.open(folder / "nothing")
    (folder / "layer-0.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"layer-0\.safetensors: file not found"):
        Artifact.open(folder)


def test_a_float_checkpoint_is_not_an_artifact(folder: Path) -> None:
    write_json(folder / "config.json", {"model_type": "qwen3"})
    with pytest.raises(ArtifactError, match="no lutllm quantization"):
        Artifact.open(folder)


def test_truncated_tensor_file(folder: Path) -> None:
    path = folder / "layer-1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"layer-1\.safetensors: not a complete"):
        Artifact.open(folder)


def test_file_names_with_a_path(folder: Path) -> None:
    edit_index(folder, lambda m: m.update({"model.norm.weight": "../floats.safetensors"}))
    with pytest.raises(ArtifactError, match="points to"):
        Artifact.open(folder)


def test_missing_and_unexpected_tensors(folder: Path) -> None:
    edit_index(folder, lambda m: m.update({"extra.weight": "floats.safetensors"}))
    with pytest.raises(ArtifactError, match=r"unexpected tensor 'extra\.weight'"):
        Artifact.open(folder)
    edit_index(folder, lambda m: (m.pop("extra.weight"), m.pop("model.norm.weight")))
    with pytest.raises(ArtifactError, match=r"lacks tensor 'model\.norm\.weight'"):
        Artifact.open(folder)


def test_config_and_tensors_must_agree(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    default = config["quantization_config"]["default"]
    edit_config(folder, default=default | {"weight_centroids": 64})
    artifact = Artifact.open(folder)
    with pytest.raises(ArtifactError, match=r"qkv_proj\.weight_co\w+: is "):
        next(artifact.linears())
    assert len(artifact.verify()) == 8


def test_newer_format_and_unknown_fields(folder: Path) -> None:
    edit_config(folder, format_version=2)
    with pytest.raises(ArtifactError, match="format version 2"):
        Artifact.open(folder)
    edit_config(folder, format_version=1, shape="round")
    with pytest.raises(ArtifactError, match="unknown field 'shape'"):
        Artifact.open(folder)


def test_verify_compares_recorded_digests(folder: Path) -> None:
    digest = file_digest(folder / "layer-0.safetensors")
    write_json(folder / "report.json", {"file_sha256": {"layer-0.safetensors": digest}})
    assert Artifact.open(folder).verify() == []
    before = artifact_hash(folder)
    data = bytearray((folder / "layer-0.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "layer-0.safetensors").write_bytes(bytes(data))
    problems = Artifact.open(folder).verify()
    assert any("sha256 differs" in p for p in problems)
    assert artifact_hash(folder) != before


def test_tensor_file_round_trip(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3e38, 1e-30], np.float32)
    tensors = {
        "b": ("BF16", f32_to_bf16(values)),
        "a": ("F32", values.reshape(2, 2)),
        "c": ("U8", np.arange(3, dtype=np.uint8)),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    file = TensorFile(tmp_path / "x.safetensors", ArtifactError)
    assert sorted(file.names()) == ["a", "b", "c"]
    assert np.array_equal(file.view("a"), values.reshape(2, 2))
    assert np.array_equal(file.float32("b"), bf16_to_f32(f32_to_bf16(values)))
    assert np.allclose(file.float32("b"), values, rtol=1 / 128)
    with pytest.raises(ArtifactError, match="'d' is missing"):
        file.view("d")
    with pytest.raises(ArtifactError, match="a float type is needed"):
        file.float32("c")
    again = tmp_path / "y.safetensors"
    write_tensors(again, dict(reversed(tensors.items())))
    assert again.read_bytes() == (tmp_path / "x.safetensors").read_bytes()


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    rounded = bf16_to_f32(f32_to_bf16(values))
    assert rounded.tolist() == [1.0, 1 + 4 * 2**-8, 1 + 2 * 2**-8]
