"""The whole quantizer on tiny random checkpoints: artifact, determinism, resume, refusals."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from calib.decoder import FloatDecoder
from lutllm.api.quantizing import _calibration
from lutllm.artifact import EMBEDDING, Artifact, artifact_hash, read_json
from lutllm.checkpoint import Checkpoint, open_checkpoint
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import CheckpointError, ConfigError, LutLLMError, ResourceError
from lutllm.int8_rows import round_rows
from quant import head, pipeline, resources
from quant.linear import Effort
from quant.pipeline import CalibrationConfig, plan, quantize
from quant.workspace import Workspace
from tests.tiny_models import make_model, tiny_config, write_hf

CALIBRATION = CalibrationConfig(tokens=512, ctx=64)
CONFIG = QuantConfig(
    LutConfig(act_centroids=16, group_size=64),
    {"*.down_proj": {"scheme": "weight", "weight_stages": 2}},
)
IDS = np.random.default_rng(0).integers(0, 300, 2000)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    write_hf(folder, make_model(tiny_config("qwen2")))
    return without_tokenizer(folder)


def without_tokenizer(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; these tests give token ids, so it needs no tokenizer."""
    found = open_checkpoint(folder)
    found.write_tokenizer = lambda dest: None  # type: ignore[method-assign]
    return found


def run(checkpoint: Checkpoint, out: Path, config: QuantConfig = CONFIG, **options: Any) -> dict:
    return quantize(
        checkpoint, out, config, IDS, calibration=CALIBRATION, progress=False, **options
    )


@pytest.fixture(scope="module")
def artifact(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "artifact"
    run(checkpoint, out)
    return out


def test_the_artifact_opens_and_verifies(artifact: Path) -> None:
    opened = Artifact.open(artifact)
    assert opened.verify() == []
    linears = {linear.name: linear for linear in opened.linears()}
    assert len(linears) == 8
    assert linears["model.layers.1.mlp.down_proj"].config.scheme == "weight"
    assert linears["model.layers.0.self_attn.qkv_proj"].bias is not None
    assert not artifact.with_name("artifact.partial").exists()


def test_the_report_names_every_linear(artifact: Path) -> None:
    report = read_json(artifact / "report.json")
    names = [e["name"] for layer in report["layers"] for e in layer["linears"]]
    assert len(names) == len(set(names)) == 8
    assert report["artifact_hash"] == artifact_hash(artifact)
    for layer in report["layers"]:
        for entry in layer["linears"]:
            assert 0 < entry["relative_error"] < 1


def test_plan_predicts_the_sizes(checkpoint: Checkpoint, artifact: Path) -> None:
    expected = plan(checkpoint, CONFIG, CALIBRATION)
    report = read_json(artifact / "report.json")
    assert expected["supported"] is True
    assert expected["bits_per_weight"] == report["bits_per_weight"]
    tensors = sum(f.stat().st_size for f in artifact.glob("*.safetensors"))
    floats = 2 * 64 * (2 * 300 + 5)  # the test model is float32, the plan counts 2 bytes
    assert abs(tensors - floats - expected["estimated_artifact_bytes"]) < 20_000


def test_same_seed_same_bytes(checkpoint: Checkpoint, artifact: Path, tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "again")
    assert artifact_hash(tmp_path / "again") == artifact_hash(artifact)


INT8 = dataclasses.replace(CONFIG, head="int8")


def test_int8_rows_are_those_of_the_checkpoint(
    checkpoint: Checkpoint, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_CHUNK", 128)  # 300 rows in parts
    report = run(checkpoint, tmp_path / "out", INT8)
    opened = Artifact.open(tmp_path / "out")
    assert opened.verify() == []
    for name in (EMBEDDING, opened.head_name):
        expected = round_rows(checkpoint.tensor(name))
        assert np.array_equal(opened.float32(name), expected)
        assert not np.array_equal(expected, checkpoint.tensor(name))
    assert report["head_bytes"] == 2 * 300 * (64 + 4)
    expected_bytes = plan(checkpoint, INT8, CALIBRATION)["estimated_artifact_bytes"]
    tensors = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    assert abs(tensors - expected_bytes) < 20_000


def test_the_quantized_stream_starts_from_the_stored_rows(checkpoint: Checkpoint) -> None:
    embedded = FloatDecoder(checkpoint).embed(IDS[:128].reshape(2, 64))
    stored = head.stored_values(embedded, INT8)
    rows = round_rows(checkpoint.tensor(EMBEDDING))
    assert np.array_equal(stored.numpy(), rows[IDS[:128].reshape(2, 64)])
    assert np.array_equal(head.stored_values(embedded, CONFIG), embedded)


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1])
def test_resume_gives_the_same_bytes(
    checkpoint: Checkpoint,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    out = tmp_path / "killed"
    original = pipeline._quantize_layer

    def stop(decoder: FloatDecoder, index: int, *rest: Any) -> Any:
        if index == after:
            raise Stop
        return original(decoder, index, *rest)

    monkeypatch.setattr(pipeline, "_quantize_layer", stop)
    with pytest.raises(Stop):
        run(checkpoint, out)
    assert not out.exists()
    calls = []
    monkeypatch.setattr(pipeline, "_quantize_layer", lambda *a: calls.append(a[1]) or original(*a))
    run(checkpoint, out, resume=True)
    assert calls == list(range(after, 2))
    assert artifact_hash(out) == artifact_hash(artifact)


def test_resume_with_other_settings_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise Stop

    monkeypatch.setattr(pipeline, "_quantize_layer", stop)
    with pytest.raises(Stop):
        run(checkpoint, tmp_path / "out")
    with pytest.raises(ConfigError, match="begun with another quantization"):
        run(checkpoint, tmp_path / "out", QuantConfig(seed=9), resume=True)


def test_quantized_prefix_feeds_the_next_linear(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first linear sees the float input; float and quantized inputs part from there on."""
    gaps = []
    original = pipeline.quantize_linear

    def spy(*args: Any, **options: Any) -> Any:
        x_float, x_quant = args[3:5]
        gaps.append(float((x_float - x_quant).abs().max()))
        return original(*args, **options)

    monkeypatch.setattr(pipeline, "quantize_linear", spy)
    run(checkpoint, tmp_path / "out")
    assert len(gaps) == 8
    assert gaps[0] < 1e-5
    assert min(gaps[1:]) > 1e-2


def test_what_adds_to_the_stream_takes_back_what_it_lacks(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """o_proj and down_proj are told the error of the residual stream, and lower it."""
    seen: list[tuple[str, torch.Tensor | None]] = []
    original = pipeline.quantize_linear

    def spy(shape: Any, *args: Any, lacking: Any, **options: Any) -> Any:
        seen.append((shape.name, None if lacking is None else lacking.clone()))
        return original(shape, *args, lacking=lacking, **options)

    streams = {}
    finish = Workspace.finish_layer
    for share in (1.0, 0.0):
        monkeypatch.setattr(pipeline, "quantize_linear", spy if share else original)

        def keep(self: Any, record: Any, hidden: Any, share: float = share) -> None:
            streams[share] = {k: v.copy() for k, v in hidden.items()}
            finish(self, record, hidden)

        monkeypatch.setattr(Workspace, "finish_layer", keep)
        run(checkpoint, tmp_path / f"out{share}", effort=Effort(correction=share))
        monkeypatch.undo()
    told = [name.rsplit(".", 1)[-1] for name, lacking in seen if lacking is not None]
    assert told == ["o_proj", "down_proj"] * 2
    assert seen[1][1] is not None
    assert float(seen[1][1].abs().max()) < 1e-6  # nothing is lost yet before the first o_proj
    errors = {k: float(np.square(v["exact"] - v["quantized"]).mean()) for k, v in streams.items()}
    assert errors[1.0] < 0.9 * errors[0.0]


def test_progress_counts_layers(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(checkpoint, tmp_path / "out", CONFIG, IDS, calibration=CALIBRATION)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "quantizing layers" in captured.err


def test_a_damaged_weight_is_named_and_nothing_is_lost(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tiny_config("qwen3"))
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    broken = without_tokenizer(write_hf(tmp_path / "model", model))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight.*not finite"):
        run(broken, tmp_path / "out")
    assert (tmp_path / "out.partial" / "model-00001-of-00003.safetensors").is_file()


def test_too_little_memory_or_disk(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 10 << 20)
    with pytest.raises(ResourceError, match="10 MiB of memory available"):
        run(checkpoint, tmp_path / "out")
    monkeypatch.setattr(resources, "available_memory", lambda: None)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match="0 MiB free"):
        run(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_distillation_is_part_of_the_run(
    checkpoint: Checkpoint, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained codebooks reach the artifact, codes stay; a kill while files move loses nothing."""
    from quant import refine

    monkeypatch.setattr(refine, "_MANY_STEPS", 3)
    adopt = refine._adopt

    def stop(workspace: Any) -> None:
        raise Stop

    monkeypatch.setattr(refine, "_adopt", stop)
    with pytest.raises(Stop):
        run(checkpoint, tmp_path / "out", distill_minutes=5)
    monkeypatch.setattr(refine, "_adopt", adopt)
    report = run(checkpoint, tmp_path / "out", distill_minutes=5, resume=True)
    assert report["distillation"]["steps"] == 3
    trained, plain = Artifact.open(tmp_path / "out"), Artifact.open(artifact)
    assert trained.verify() == []
    for after, before in zip(trained.linears(), plain.linears(), strict=True):
        assert np.array_equal(after.weight_codes, before.weight_codes)
        assert not np.array_equal(after.output_scale, before.output_scale)


def test_output_that_is_something_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(LutLLMError, match="folder with other content"):
        run(checkpoint, tmp_path / "notes")
    (tmp_path / "file").write_text("x")
    with pytest.raises(LutLLMError, match="is a file"):
        run(checkpoint, tmp_path / "file")


@pytest.mark.parametrize(
    ("asked", "available", "found"),
    [
        (None, None, 32768),
        (None, 10_000_000, 32768),
        (None, 5000, 4608),
        (None, 100, 512),
        (1500, 100, 1500),
    ],
)
def test_calibration_takes_what_the_text_has(
    asked: int | None, available: int | None, found: int
) -> None:
    checkpoint = SimpleNamespace(model=SimpleNamespace(max_position_embeddings=2048))
    assert _calibration(checkpoint, asked, available) == CalibrationConfig(found, 512)
    with pytest.raises(ConfigError, match="at least one window of 512 tokens"):
        _calibration(checkpoint, 511, available)
