"""The output head as a LUT linear: in the artifact, the emulator, the quantizer, the exports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from calib.decoder import FloatDecoder, rms_norm
from codegen.export import export
from fpga.performance.commands import estimate
from lutllm.artifact import EMBEDDING, HEAD, Artifact, artifact_hash, read_json, write_json
from lutllm.cli import build_parser
from lutllm.cli.quantize import build_config
from lutllm.config import HEAD_LINEAR, LutConfig, QuantConfig
from lutllm.emulator import LutModel, reference
from lutllm.errors import ArtifactError, ConfigError
from lutllm.model_config import LinearShape
from lutllm.recipes import LUT_HEAD, recipe, with_head
from quant import linear
from quant.distill import Student
from quant.linear import Effort
from quant.student import StudentLinear
from tests.make_artifact import tiny_config, write_artifact
from tests.test_quant_pipeline import IDS, run, without_tokenizer
from tests.tiny_models import make_model, write_hf
from tests.tiny_models import tiny_config as tiny_checkpoint

#: 301 or 300 words in groups of 128: the last group is short.
LUT = QuantConfig(
    LutConfig(group_size=64, act_centroids=16),
    {HEAD_LINEAR: LUT_HEAD.to_dict() | {"group_size": 128}},
    head="lut",
)


@pytest.fixture(scope="module", params=["llama", "qwen3"])  # untied, tied
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "artifact"
    return write_artifact(path, tiny_config(request.param), LUT)


def test_the_artifact_has_one_row_tensor(folder: Path) -> None:
    artifact = Artifact.open(folder)
    assert artifact.verify() == []
    names = set(artifact.tensor_bytes())
    assert {EMBEDDING, f"{EMBEDDING}_scale", f"{HEAD_LINEAR}.weight_codes"} <= names
    assert HEAD not in names
    found = artifact.head_linear()
    assert found is not None
    assert (found.in_features, found.out_features, found.num_groups) == (72, 301, 3)
    assert HEAD_LINEAR not in {linear.name for linear in artifact.linears()}


def test_model_equals_the_reference(folder: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 301, 140)
    expected = reference.logits(Artifact.open(folder), ids)
    models = [LutModel.load(folder, threads=threads) for threads in (1, 2)]
    found = models[0].logits(ids)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    assert np.array_equal(models[1].logits(ids), found)
    models[0].reset()
    one_by_one = np.array([models[0].decode(int(i)) for i in ids[:20]])
    assert np.array_equal(one_by_one, found[:20])


@pytest.mark.parametrize("scheme", ["co", "weight"])
def test_the_head_is_exact_behind_the_same_hidden_state(tmp_path: Path, scheme: str) -> None:
    """A model without layers that matter: the head sees the norm of an embedding row."""
    quant = dataclasses.replace(LUT, overrides={HEAD_LINEAR: {"scheme": scheme}})
    artifact = Artifact.open(write_artifact(tmp_path / "a", tiny_config("qwen3"), quant))
    model = LutModel.load(artifact.path, threads=2)
    ids = np.arange(70)
    logits = model.logits(ids)
    hidden = model._arrays["normed"][: len(ids), : model.config.hidden_size]
    assert np.array_equal(logits, reference.head_logits(artifact, hidden))


def test_losses_equal_those_of_the_logits(folder: Path) -> None:
    """Windows long enough that members take panels in turn, more than once."""
    model = LutModel.load(folder, threads=2)
    window = np.random.default_rng(1).integers(0, 301, (1, 200))
    logits = model.logits(window[0, :-1]).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -logits[np.arange(199), window[0, 1:]]
    assert np.allclose(model.nll(window)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"), [("head", "int8"), ("head", "source"), ("overrides", {})]
)
def test_another_head_in_the_config_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = write_artifact(tmp_path / "a", tiny_config("qwen3"), LUT)
    config = read_json(path / "config.json")
    config["quantization_config"][field] = value
    write_json(path / "config.json", config)
    with pytest.raises(ArtifactError, match=HEAD_LINEAR):
        LutModel.load(path)


# ---------------------------------------------------------------- the quantizer


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[FloatDecoder, Path, dict]:
    """A checkpoint with an untied head, its artifact and the report."""
    folder = tmp_path_factory.mktemp("model")
    write_hf(folder, make_model(tiny_checkpoint("qwen2")))
    checkpoint = without_tokenizer(folder)
    out = tmp_path_factory.mktemp("out") / "artifact"
    return FloatDecoder(checkpoint), out, run(checkpoint, out, LUT)


def test_quantized_head_follows_the_float_one(quantized: tuple[FloatDecoder, Path, dict]) -> None:
    decoder, out, report = quantized
    artifact = Artifact.open(out)
    assert artifact.verify() == []
    norm, weight = decoder.head()
    x = rms_norm(decoder.embed(IDS[None, :64])[0], norm, 1e-6)
    exact = (x @ weight.t()).numpy()
    found = reference.head_logits(artifact, x.numpy())
    assert np.square(found - exact).mean() < 0.1 * np.square(exact).mean()
    coded = sum(v for k, v in artifact.tensor_bytes().items() if k.startswith(HEAD_LINEAR))
    assert report["head_bytes"] == 300 * (64 + 4) + coded


def test_same_seed_same_bytes(quantized: tuple[FloatDecoder, Path, dict], tmp_path: Path) -> None:
    run(quantized[0].checkpoint, tmp_path / "again", LUT)
    assert artifact_hash(tmp_path / "again") == artifact_hash(quantized[1])


def test_distillation_keeps_the_head(
    quantized: tuple[FloatDecoder, Path, dict], tmp_path: Path
) -> None:
    decoder, out, _ = quantized
    run(decoder.checkpoint, tmp_path / "trained", LUT, distill_minutes=0.02)
    found = Artifact.open(tmp_path / "trained")
    assert found.verify() == []
    before, after = Artifact.open(out).head_linear(), found.head_linear()
    assert before is not None
    assert after is not None
    for key, value in before.arrays().items():
        assert np.array_equal(after.arrays()[key], value)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    student = Student.from_artifact(found, decoder)
    exact = reference.head_logits(found, x.numpy())
    rounding = (x @ student.head.t()).numpy() - exact
    assert np.square(rounding).mean() < 0.002 * np.square(exact).mean()


def test_rows_in_parts_are_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are coded one by one, so parts change no more than rounding in the refit does."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 32, generator=generator)
    x = torch.randn(400, 32, generator=generator)
    config = dataclasses.replace(LUT_HEAD, group_size=64)
    shape = LinearShape(HEAD_LINEAR, ("lm_head",), 32, 300)
    whole = linear.quantize_linear(shape, weight, None, x, x, config, Effort(), 0).linear
    monkeypatch.setattr(linear, "CHUNK_ROWS", 150)  # two groups
    parts = linear.quantize_rows(shape, weight, x, x, config, Effort(), 0)
    exact = x @ weight.t()
    errors = [
        float((StudentLinear(found).apply(x).detach() - exact).square().mean())
        for found in (whole, parts)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
    assert errors[0] < 0.02 * float(exact.square().mean())


@pytest.mark.parametrize("scheme", ["co", "weight"])
def test_the_weight_of_a_student_is_what_it_multiplies_by(scheme: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(100, 31, generator=generator)
    x = torch.randn(400, 31, generator=generator)
    config = LutConfig(scheme=scheme, group_size=64, act_stages=2 if scheme == "co" else 1)
    shape = LinearShape("x", ("x",), 31, 100)
    student = StudentLinear(
        linear.quantize_linear(shape, weight, None, x, x, config, Effort(), 0).linear
    )
    found, coded = x @ student.weight().t(), student.apply(x).detach()
    assert float((found - coded).square().mean()) < 0.02 * float(coded.square().mean())


# ---------------------------------------------------------------- what asks for it


def test_recipe_and_command_line_code_the_head_alike() -> None:
    found = recipe("paper").quant(head="lut")
    assert found.for_linear(HEAD_LINEAR) == LUT_HEAD
    assert found.for_linear("model.layers.0.self_attn.o_proj") == recipe("paper").config
    words = ["quantize", "SRC", "--recipe", "paper", "--head", "lut"]
    assert build_config(build_parser().parse_args(words)) == found
    words += ["--override", "lm_head:weight_stages=1"]
    coarse = build_config(build_parser().parse_args(words)).for_linear(HEAD_LINEAR)
    assert coarse == dataclasses.replace(LUT_HEAD, weight_stages=1)
    assert with_head(found, "int8").head == "int8"


def test_the_decoder_kernel_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "a", tiny_config("qwen3"), LUT)
    with pytest.raises(ConfigError, match=r"head is 'lut'.*--head int8.*--layers"):
        export(artifact, tmp_path / "v80")
    assert not (tmp_path / "v80").exists()
    assert export(artifact, tmp_path / "v80", layers=1)["files"]


def test_estimate_wants_a_schedule_that_has_such_a_head(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "a", tiny_config("qwen3"), LUT)
    with pytest.raises(ConfigError, match=r"head is 'lut'.*--schedule on-chip"):
        estimate(artifact)
    assert estimate(artifact, schedule="on-chip")["fits"]
