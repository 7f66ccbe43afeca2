"""A LUT linear before the rows of the head: in artifact, emulator, quantizer, command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit

from calib.decoder import FloatDecoder
from calib.operators import rms_norm
from codegen.csim import run_csim
from codegen.decoder_images import plan_decoder
from codegen.export import export
from codegen.head_linear import slice_linear
from codegen.manifest import read_design
from codegen.plan import select_linears
from fpga.decoder_design import DecoderConfig
from fpga.design import EngineConfig
from fpga.engine_plan import plan_engines
from fpga.head_slices import slice_shapes
from fpga.performance.commands import estimate, read_source
from lutllm import int8_rows, intmath
from lutllm.api import golden_run
from lutllm.artifact import EMBEDDING, Artifact, artifact_hash, read_json, write_json
from lutllm.cli import build_parser
from lutllm.cli.quantize import build_config
from lutllm.config import HEAD_LINEAR, LutConfig, QuantConfig
from lutllm.emulator import LutModel, reference
from lutllm.emulator.floats import rms_norm as rms_norm_kernel
from lutllm.errors import ArtifactError, ConfigError
from lutllm.model_config import LinearShape
from lutllm.recipes import HEAD_MARGIN, LUT_HEAD, recipe, with_head
from quant import linear
from quant.linear import Effort
from quant.student import StudentLinear
from tests.make_artifact import tiny_config, write_artifact
from tests.test_quant_pipeline import IDS, run, without_tokenizer
from tests.tiny_models import make_model, write_hf
from tests.tiny_models import tiny_config as tiny_checkpoint

#: 301 or 300 words in groups of 128: the last group is short. The margin takes some words of some
#: tokens.
LUT = QuantConfig(
    LutConfig(group_size=64, act_centroids=16),
    {HEAD_LINEAR: LUT_HEAD.to_dict() | {"group_size": 128}},
    head="lut",
    head_margin=1.0,
)


@pytest.fixture(scope="module", params=["llama", "qwen3"])  # untied, tied
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "artifact"
    return write_artifact(path, tiny_config(request.param), LUT)


def test_screening_takes_exact_logits_near_the_largest() -> None:
    coarse = np.array([[1, 5, 3, 4], [0, 0, -9, 2]], np.float32)
    exact = coarse + 10
    found = int8_rows.screen(coarse, exact, 1.0)
    assert found.tolist() == [[1, 15, 3, 14], [0, 0, -9, 12]]
    assert int8_rows.screen(coarse, exact, 100.0).tolist() == exact.tolist()


def test_the_artifact_has_rows_and_a_linear(folder: Path) -> None:
    artifact = Artifact.open(folder)
    assert artifact.verify() == []
    names = set(artifact.tensor_bytes())
    assert {artifact.head_name, f"{EMBEDDING}_scale", f"{HEAD_LINEAR}.weight_codes"} <= names
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


@njit
def _norm(x: int, weight: int, out: int, size: int, eps: float) -> None:
    rms_norm_kernel(x, weight, out, size, eps)


@pytest.mark.parametrize("scheme", ["co", "weight"])
@pytest.mark.parametrize("margin", [0.0, 1.0, 1000.0])
def test_the_head_is_exact_behind_the_same_hidden_state(
    tmp_path: Path, scheme: str, margin: float
) -> None:
    overrides = {HEAD_LINEAR: {"scheme": scheme, "table_bits": 16}}
    quant = dataclasses.replace(LUT, overrides=overrides, head_margin=margin)
    artifact = Artifact.open(write_artifact(tmp_path / "a", tiny_config("qwen3"), quant))
    model = LutModel.load(artifact.path, threads=2)
    logits = model.logits(np.arange(70))
    size = model.config.hidden_size
    stream = model._arrays["h"][:70]  # what the final norm is of
    hidden = np.zeros_like(stream)
    weight = artifact.float32("model.norm.weight")
    for row, out in zip(stream, hidden, strict=True):
        places = row.ctypes.data, weight.ctypes.data, out.ctypes.data
        _norm(*places, size, np.float32(model.config.rms_norm_eps))
    assert np.array_equal(logits, reference.head_logits(artifact, hidden[:, :size]))


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
    found = artifact.head_linear()
    assert found is not None
    coarse = intmath.lut_linear(x.numpy(), found)
    assert np.square(coarse - exact).mean() < 0.25 * np.square(exact).mean()
    near = reference.head_logits(artifact, x.numpy()) - exact
    taken = coarse >= coarse.max(1, keepdims=True) - LUT.head_margin
    assert np.abs(near[taken]).max() < 0.05 < np.abs(near[~taken]).max()
    own = sum(v for k, v in artifact.tensor_bytes().items() if k.startswith(HEAD_LINEAR + "."))
    assert report["head_bytes"] == 300 * (64 + 4) + own


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
    assert errors[0] < 0.1 * float(exact.square().mean())


# ---------------------------------------------------------------- what asks for it


def test_recipe_and_command_line_code_the_head_alike() -> None:
    found = recipe("paper").quant(head="lut")
    assert found.for_linear(HEAD_LINEAR) == LUT_HEAD
    assert found.for_linear("model.layers.0.self_attn.o_proj") == recipe("paper").config
    words = ["quantize", "SRC", "--recipe", "paper", "--head", "lut"]
    assert build_config(build_parser().parse_args(words)) == found
    assert found.head_margin == HEAD_MARGIN
    words += ["--override", "lm_head:weight_stages=2"]
    fine = build_config(build_parser().parse_args(words)).for_linear(HEAD_LINEAR)
    assert fine == dataclasses.replace(LUT_HEAD, weight_stages=2)
    assert with_head(found, "int8").head == "int8"


@pytest.mark.parametrize("margin", [-1, 1001.0, "8", float("nan")])
def test_margins_out_of_range_are_refused(margin: object) -> None:
    with pytest.raises(ConfigError, match="head_margin is"):
        QuantConfig(head="lut", head_margin=margin)  # type: ignore[arg-type]


def test_a_head_coded_like_the_layers_for_their_engine() -> None:
    found = recipe("tiny").quant(head="engine")
    assert found.head == "lut"
    assert found.head_margin == HEAD_MARGIN
    assert found.for_linear(HEAD_LINEAR) == recipe("tiny").config
    two = dataclasses.replace(recipe("paper").config, act_stages=2, weight_stages=2)
    assert with_head(QuantConfig(two), "engine").for_linear(HEAD_LINEAR) == recipe("paper").config
    words = ["quantize", "SRC", "--recipe", "tiny", "--head", "engine"]
    assert build_config(build_parser().parse_args(words)) == found
    parsed = build_parser().parse_args([*words, "--head-margin", "6"])
    assert build_config(parsed) == dataclasses.replace(found, head_margin=6.0)
    parsed = build_parser().parse_args(["quantize", "SRC", "--head-margin", "6"])
    with pytest.raises(ConfigError, match="--head-margin is 6, but head is 'int8'"):
        build_config(parsed)


# ---------------------------------------------------------------- on the board


def test_slices_join_to_the_linear(folder: Path) -> None:
    artifact = Artifact.open(folder)
    linear_of_head = artifact.head_linear()
    assert linear_of_head is not None
    shapes = slice_shapes(artifact.model, linear_of_head.config)
    assert [shape.name for shape in shapes] == ["lm_head.0", "lm_head.1", "lm_head.2"]
    assert {shape.out_features for shape in shapes} == {128}
    x = np.random.default_rng(0).standard_normal((5, 72), np.float32)
    parts = []
    for i, shape in enumerate(shapes):
        part = slice_linear(linear_of_head, shape, 128 * i)
        part.validate()
        parts.append(intmath.lut_linear(x, part))
    whole = np.concatenate(parts, axis=1)
    assert np.array_equal(whole[:, :301], intmath.lut_linear(x, linear_of_head))
    assert not whole[:, 301:].any()


def test_slices_are_whole_groups_no_wider_than_a_layer() -> None:
    model = read_source("qwen3-1.7b").model
    for lut, width in ((recipe("paper").config, 11776), (LUT_HEAD, 12288)):
        shapes = slice_shapes(model, lut)
        assert len(shapes) == 13
        assert {shape.out_features for shape in shapes} == {width}
        assert width % lut.group_size == 0
        assert 12 * width < model.vocab_size <= 13 * width


def test_export_has_the_slices_with_all_layers_only(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "whole")
    export(folder, tmp_path / "part", layers=1)
    whole, part = read_design(tmp_path / "whole"), read_design(tmp_path / "part")
    assert [engine.name for engine in whole.engines] == ["lut_linear_0", "lut_linear_1"]
    assert [kind.name for kind in whole.engines[1].kinds] == [HEAD_LINEAR]
    assert whole.decoder is not None
    assert whole.decoder.design.screened
    readme = (tmp_path / "whole/README.md").read_text()
    assert "a LUT linear in 3 slices of 128 words on lut_linear_1; rows are read of words" in readme
    assert [engine.name for engine in part.engines] == ["lut_linear"]
    assert part.decoder is None
    # of the engine that runs them, to the bit, among all golden vectors
    assert "lm_head.0" in {golden.name for golden in whole.golden}
    assert run_csim(tmp_path / "whole", tokens=2)["integer_mismatches"] == 0


def test_decoders_without_all_slices_are_refused(folder: Path) -> None:
    artifact = Artifact.open(folder)
    engines = plan_engines(
        artifact.model, artifact.quant, select_linears(artifact, None), EngineConfig()
    )
    decoder = plan_decoder(artifact, engines, DecoderConfig())
    kind = engines[1].kinds[0]
    few = dataclasses.replace(kind, names=kind.names[:2])
    less = [engines[0], dataclasses.replace(engines[1], kinds=(few,))]
    with pytest.raises(ConfigError, match="2 slices of 128 words do not hold a vocabulary of 301"):
        dataclasses.replace(decoder, engines=tuple(less))
    gap = dataclasses.replace(kind, names=(kind.names[0], kind.names[2]))
    less = [engines[0], dataclasses.replace(engines[1], kinds=(gap,))]
    with pytest.raises(ConfigError, match="slices of lm_head are not on one engine"):
        dataclasses.replace(decoder, engines=tuple(less))
    with pytest.raises(ConfigError, match="head is screened, but its rows are F16"):
        dataclasses.replace(decoder, head_kind="F16")


def test_the_golden_run_of_the_emulator_has_the_input_of_the_head(folder: Path) -> None:
    model = LutModel.load(folder, threads=1)
    run = golden_run(model, [5, 3, 8, 1], 3)
    artifact = Artifact.open(folder)
    found = reference.head_logits(artifact, run.inputs[HEAD_LINEAR][3:])
    np.testing.assert_allclose(found, run.logits, atol=1e-4)


def test_estimates_know_the_linear_before_the_rows(folder: Path) -> None:
    found = estimate(folder)
    assert found["fits"]
    assert found["head"] == "i8 rows behind a LUT linear"
    assert found["decode_parts_ms"]["head"] > 0
