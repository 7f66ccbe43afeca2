"""A finished artifact distilled into a new one: what changes, determinism, resume, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lutllm
from calib.text import default_text
from lutllm.artifact import Artifact, artifact_hash, read_json
from lutllm.cli import main
from lutllm.errors import ArtifactError, ConfigError, ResourceError
from lutllm.recipes import RECIPES
from quant import distill as training
from quant import resources
from quant.refine import Schedule, usual_step
from tests.embedded import MODEL, SAMPLE, embedded_artifact
from tests.test_tied_head import untied

#: Characters of the calibration text, some ten windows.
TEXT = 20_000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "calib.txt"
    file.write_text(default_text()[:TEXT], encoding="utf-8")
    return file


def run(artifact: Path, out: Path, text: Path, **options: Any) -> dict[str, Any]:
    settings = {"reference": MODEL, "steps": 2, "calib": text, "eval_tokens": 0} | options
    return lutllm.distill(artifact, out, **settings)


def test_values_are_trained_and_codes_stay(text: Path, tmp_path: Path) -> None:
    source, out = embedded_artifact("weight"), tmp_path / "out"
    report = run(source, out, text)
    before, after = Artifact.open(source), Artifact.open(out)
    assert after.verify() == []
    for old, new in zip(before.linears(), after.linears(), strict=True):
        assert np.array_equal(old.weight_codes, new.weight_codes)
        assert not np.array_equal(old.output_scale, new.output_scale)
    for name in ("config.json", "tokenizer.json", "lutllm_hub.py"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert report == read_json(out / "report.json")
    assert report["distillation"]["steps"] == 2
    assert report["distilled_from"]["inputs"]["artifact"] == artifact_hash(source)
    assert report["distilled_from"]["distillation"] is None
    assert report["artifact_hash"] == artifact_hash(out) != artifact_hash(source)
    assert "lutllm generate out" in (out / "README.md").read_text()
    again = run(out, tmp_path / "again", text)
    assert again["distilled_from"]["distillation"] == report["distillation"]


def test_a_killed_run_goes_on_to_the_same_bytes(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    source = embedded_artifact("co")
    whole = run(source, tmp_path / "whole", text, steps=3)
    original, calls = training._train_step, []

    def stop(*rest: Any) -> float:
        calls.append(rest)
        if len(calls) == 3:
            raise Stop
        return original(*rest)

    monkeypatch.setattr(training, "SAVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(training, "_train_step", stop)
    with pytest.raises(Stop):
        run(source, tmp_path / "out", text, steps=3)
    with pytest.raises(ConfigError, match="begun with another schedule"):
        run(source, tmp_path / "out", text, steps=4, resume=True)
    resumed = run(source, tmp_path / "out", text, steps=3, resume=True)
    assert len(calls) == 4
    assert resumed["artifact_hash"] == whole["artifact_hash"]
    # a run that ended behind the training, in its evaluation, is not trained again
    measured = run(
        source, tmp_path / "out", text, steps=3, resume=True, eval_text=SAMPLE, eval_tokens=512
    )
    assert len(calls) == 4
    assert measured["perplexity_after"] > 1


def test_what_the_old_report_measured_is_left_behind(text: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(embedded_artifact("weight"), source)
    old = read_json(source / "report.json") | {"evaluations": [{}], "perplexity_after": 1.0}
    (source / "report.json").write_text(json.dumps(old))
    report = run(source, tmp_path / "out", text)
    assert "evaluations" not in report
    assert report["perplexity_after"] is None
    assert report["layers"] == old["layers"]
    (source / "report.json").unlink()
    assert "layers" not in run(source, tmp_path / "bare", text)


def test_an_artifact_with_one_matrix_has_such_a_teacher(text: Path, tmp_path: Path) -> None:
    source = untied(tmp_path / "model", 0.03)
    lutllm.quantize(
        source, tmp_path / "tied", recipe="tiny", tie_head=True, calib_tokens=512, eval_tokens=0
    )
    report = run(tmp_path / "tied", tmp_path / "out", text, reference=source)
    assert report["head_bytes"] == read_json(tmp_path / "tied" / "report.json")["head_bytes"]
    assert Artifact.open(tmp_path / "out").verify() == []


def test_the_command(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", str(embedded_artifact("weight")), "--reference", str(MODEL), "--json", "-q"]
    words += ["--calib", str(text), "--eval", str(SAMPLE), "--eval-tokens", "512"]
    assert main([*words, "-o", str(tmp_path / "out"), "--minutes", "0.01"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["distillation"]["steps"] >= 1
    assert 1 < found["perplexity_before"] < found["perplexity_after"]
    words.remove("--json")
    more = [*words, "-o", str(tmp_path / "more"), "--steps", "1", "--learning-rate", "0.003"]
    assert main(more) == 0
    assert found["distillation"]["learning_rate"] == 0.002
    assert found["distillation"]["windows_per_step"] == 1
    assert read_json(tmp_path / "more" / "report.json")["distillation"]["learning_rate"] == 0.003
    shown = capsys.readouterr().out
    assert "divergence" in shown
    assert "perplexity after" in shown


@pytest.mark.parametrize(
    ("recipe", "step"),
    [("paper", (2e-3, 1)), ("tiny", (2e-3, 1)), ("balanced", (1.5e-3, 2)), ("accurate", (6e-4, 2))],
)
def test_coarse_codes_take_more_and_smaller_steps(recipe: str, step: tuple[float, int]) -> None:
    names = [f"model.layers.0.mlp.{name}" for name in ("gate_up_proj", "down_proj")]
    assert usual_step(RECIPES[recipe].quant(), names) == step


def test_refusals_come_before_any_work(text: Path, tmp_path: Path) -> None:
    source, out = embedded_artifact("weight"), tmp_path / "out"
    with pytest.raises(ConfigError, match="give one of them"):
        run(source, out, text, minutes=1)
    with pytest.raises(ConfigError, match="0 minutes and 0 steps"):
        Schedule()
    with pytest.raises(ConfigError, match="or be left out"):
        run(source, out, text, learning_rate=0.2)
    with pytest.raises(ConfigError, match="give another folder"):
        run(source, source, text)
    short = tmp_path / "short.txt"
    short.write_text(text.read_text()[:500])
    with pytest.raises(ConfigError, match="windows"):
        run(source, out, short)
    other = tmp_path / "model"
    shutil.copytree(MODEL, other)
    config = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(ConfigError, match="give what it was made of"):
        run(source, out, text, reference=other)
    damaged = tmp_path / "damaged"
    shutil.copytree(source, damaged)
    (damaged / "report.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        run(damaged, out, text)
    assert not out.exists()
    assert not out.with_name("out.partial").exists()


def test_a_full_disk_or_memory_is_told_before(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = embedded_artifact("weight")  # made here, with all the memory there is
    monkeypatch.setattr(resources, "available_memory", lambda: 10 << 20)
    with pytest.raises(ResourceError, match="10 MiB of memory available, distillation needs"):
        run(source, tmp_path / "out", text)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match="distillation needs about"):
        run(source, tmp_path / "out", text)
    assert list(tmp_path.iterdir()) == []
