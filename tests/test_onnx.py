"""The ONNX export in stock onnxruntime: every integer equal, and the model beside the emulator."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest

import lutllm
from codegen.onnx import steps
from codegen.onnx.body import IR_VERSION, OPSET, Body
from codegen.onnx.export import DATA_FILE, MODEL_FILE, export, write_linear
from codegen.onnx.linear import FUNCTION
from codegen.onnx.run import Expected, compare, empty_cache, open_session, run_ids
from codegen.onnx.weights import narrow
from lutllm import intmath
from lutllm.artifact import Artifact
from lutllm.cli import main
from lutllm.config import LutConfig, QuantConfig
from lutllm.emulator import LutModel
from lutllm.errors import ArtifactError, ConfigError
from lutllm.tensorfile import bf16_to_f32
from tests.embedded import TOLERANCE, assert_equal_up_to_flips, embedded_artifact, sample_ids
from tests.helpers import random_input, random_linear
from tests.make_artifact import tiny_config, write_artifact

LINEARS = {
    "published": (LutConfig(), 72, 100),
    "two stages each": (LutConfig(act_stages=2, weight_stages=2, group_size=33), 73, 101),
    "three stages, long vectors": (LutConfig(act_stages=3, vec_len=8), 80, 70),
    "chebyshev": (LutConfig(metric="chebyshev", act_stages=2), 73, 101),
    "chebyshev, three stages": (LutConfig(metric="chebyshev", act_stages=3, vec_len=5), 41, 70),
    "codes of a byte": (LutConfig(weight_centroids=20, vec_len=3, block_positions=3), 50, 90),
    "token scales, rotated": (LutConfig(token_scale=True, rotation=16, act_stages=2), 73, 101),
    "rotated in whole blocks": (LutConfig(rotation=8), 64, 70),
    "weight, rotated": (LutConfig(scheme="weight", rotation=32), 41, 70),
    "weight": (LutConfig(scheme="weight", block_positions=4), 73, 101),
    "weight, two stages": (LutConfig(scheme="weight", weight_stages=2, group_size=33), 64, 96),
    "wide entries": (
        LutConfig(table_bits=16, act_stages=2, weight_stages=3, wide_stages=2),
        40,
        60,
    ),
    "weight, wide entries": (LutConfig(scheme="weight", table_bits=12, weight_stages=2), 64, 96),
    "codebooks of five positions": (
        LutConfig(
            scheme="weight",
            codebook_positions=5,
            rotation=16,
            weight_stages=2,
            table_bits=16,
            wide_stages=2,
        ),
        41,
        70,
    ),
    "weight, few bits": (LutConfig(scheme="weight", vec_len=1, table_bits=5), 33, 70),
}


# ---------------------------------------------------------------- one linear


@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("tokens", [1, 5])
def test_every_integer_of_a_linear_is_equal(tmp_path, name, tokens):
    config, size, outputs = LINEARS[name]
    linear = random_linear(config, size, outputs, bias=tokens == 1)
    linear.table_shift[:, :, ::4] = 0
    write_linear(tmp_path, linear)
    x = random_input(tokens, size)
    y, acc, codes = open_session(tmp_path, threads=1).run(None, {"x": x})
    x_int, token_scale = intmath.quantize_activation(x, linear)
    if config.scheme == "co":
        np.testing.assert_array_equal(
            codes, intmath.search(x_int, linear.act_codebook, config.metric)
        )
    else:
        np.testing.assert_array_equal(codes, x_int)
    sums, _ = intmath.accumulate(x, linear)
    np.testing.assert_array_equal(acc, sums)
    np.testing.assert_array_equal(y, intmath.dequantize(sums, token_scale, linear))


@pytest.mark.parametrize("size", [1e-45, 1e-38, 9e-31, 2e-30])
def test_tiny_tokens(tmp_path, size):
    linear = random_linear(LutConfig(scheme="weight"), 40, 64)
    linear.input_scale[...] = 1
    write_linear(tmp_path, linear)
    x = np.full((2, 40), size, np.float32)
    codes = open_session(tmp_path, threads=1).run(None, {"x": x})[2]
    np.testing.assert_array_equal(codes, intmath.quantize_activation(x, linear)[0])
    assert codes.any() == (size > 1e-30)


def test_onnx_reference_gives_the_same_integers(tmp_path):
    """A third party: the slow Python evaluator of the onnx package."""
    from onnx.reference import ReferenceEvaluator

    linear = random_linear(LutConfig(weight_centroids=8, act_centroids=8, group_size=20), 12, 30)
    write_linear(tmp_path, linear)
    x = random_input(3, 12)
    _, acc, _ = ReferenceEvaluator(str(tmp_path / MODEL_FILE)).run(None, {"x": x})
    np.testing.assert_array_equal(acc, intmath.accumulate(x, linear)[0])


@pytest.mark.parametrize("table_bits", [4, 8, 16])
def test_entries_round_halves_away_from_zero_and_saturate(table_bits):
    """Every dot product around the borders of an entry, at small and at the largest shift."""
    shifts = np.array([0, 1, 2, 4, 10, 24], np.uint8)
    dots = np.r_[-200:201, -129032, 129032, -5120:5121:512, -2568, 2568].astype(np.int32)[:, None]
    g = Body()
    entry = steps.table_entry(g, "dot", "shift", table_bits, onnx.TensorProto.FLOAT)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        g.nodes,
        "entry",
        [value("dot", 1, ["N", 1]), value("shift", onnx.TensorProto.UINT8, ["K"])],
        [value(entry, 1, ["N", "K"])],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {"dot": dots.astype(np.float32), "shift": shifts})[0]
    expected = intmath.table_entry(dots, shifts.astype(np.int32), table_bits)
    np.testing.assert_array_equal(found, expected)
    assert found.min() == max(-(1 << (table_bits - 1)), -129032)


# ---------------------------------------------------------------- the embedded model


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The artifact, its export and an emulator."""
    folder = tmp_path_factory.mktemp("onnx")
    export(embedded_artifact(), folder)
    return embedded_artifact(), folder, LutModel.load(embedded_artifact(), threads=1)


def test_embedded_model_beside_the_emulator(embedded):
    artifact, folder, _ = embedded
    found = lutllm.compare_onnx(artifact, folder, tokens=48)
    assert found["tokens_compared"] == 48
    assert found["integer_mismatches"] == 0
    assert_equal_up_to_flips(found)


def test_a_wrong_table_shows(embedded, tmp_path):
    """One changed weight code of the last layer is found as wrong sums, not as a flip."""
    artifact, folder, _ = embedded
    for name in (MODEL_FILE, DATA_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    proto = onnx.load(tmp_path / MODEL_FILE, load_external_data=False)
    name = "model.layers.5.mlp.down_proj.weight_codes"
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    offset = next(int(e.value) for e in tensor.external_data if e.key == "offset")
    with open(tmp_path / DATA_FILE, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x55]))
    found = lutllm.compare_onnx(artifact, tmp_path, tokens=16)
    assert found["integer_mismatches"] > 0
    assert found["max_abs_error_before_flip"] > TOLERANCE * found["max_abs_logit"]


def test_cache_in_pieces_is_the_whole(embedded):
    """Prefill, a longer piece, single tokens: the logits of one run."""
    _, folder, _ = embedded
    session = open_session(folder, threads=1)
    ids = sample_ids(20)
    whole = run_ids(session, ids)["logits"][0]
    cache, parts = empty_cache(session), []
    for piece in (ids[:9], ids[9:16], *ids[16:, None]):
        logits, *present = session.run(None, {"input_ids": piece[None], **cache})
        cache = dict(zip(cache, present, strict=True))
        parts.append(logits[0])
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    assert all(value.shape[2] == 20 for value in cache.values())


def test_batches_run_side_by_side(embedded):
    _, folder, _ = embedded
    session = open_session(folder, threads=1)
    ids = sample_ids(24).reshape(2, 12)
    cache = {name: np.repeat(value, 2, axis=0) for name, value in empty_cache(session).items()}
    logits = session.run(["logits"], {"input_ids": ids, **cache})[0]
    for row, single in zip(logits, ids, strict=True):
        np.testing.assert_allclose(row, run_ids(session, single)["logits"][0], atol=1e-4)


# ---------------------------------------------------------------- every architecture


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_architectures(tmp_path, arch):
    """Biases, untied heads, q and k norm; embeddings in every stored type."""
    kind = {"llama": "F32", "qwen2": "BF16", "qwen3": "F16"}[arch]
    artifact = write_artifact(tmp_path / "art", tiny_config(arch), kind=kind)
    assert_equal_to_emulator(artifact, tmp_path / "onnx")


def assert_equal_to_emulator(artifact, out):
    """Export to `out` and compare both on random tokens."""
    export(artifact, out)
    ids = np.random.default_rng(0).integers(0, 301, 12)
    model = LutModel.load(artifact, threads=1)
    inputs, sums = model.capture(ids)
    expected = Expected(ids, model.logits(ids), inputs, sums)
    found = compare(out, Artifact.open(artifact), expected)
    assert found["integer_mismatches"] == 0
    assert_equal_up_to_flips(found)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("head", ["int8", "lut"])
@pytest.mark.parametrize("tied", [True, False])
def test_heads(tmp_path, tied, head):
    """int8 rows, a LUT linear: integers again, so logits agree as closely as before."""
    config = tiny_config("qwen3", tie_word_embeddings=tied)
    artifact = write_artifact(tmp_path / "art", config, QuantConfig(head=head))
    assert_equal_to_emulator(artifact, tmp_path / "onnx")


def test_form_of_the_model(embedded):
    _, folder, _ = embedded
    proto = onnx.load(folder / MODEL_FILE, load_external_data=False)
    linears = [node for node in proto.graph.node if node.domain]
    assert len(linears) == 4 * 6
    assert all(node.op_type.startswith(FUNCTION) for node in linears)
    standard = {node.op_type for node in proto.graph.node if not node.domain}
    assert {"Attention", "RMSNormalization", "RotaryEmbedding", "Swish"} <= standard
    codes = [t for t in proto.graph.initializer if t.name.endswith("weight_codes")]
    assert {t.data_type for t in codes} == {onnx.TensorProto.UINT4}
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in codes)
    large = [t for t in proto.graph.initializer if len(t.raw_data) >= 1024]
    assert not large
    assert (folder / MODEL_FILE).stat().st_size < 1 << 19
    tokens = proto.graph.input[0].type.tensor_type.shape.dim[1]
    assert tokens.dim_param == "tokens"
    keys = [m for m in proto.metadata_props if m.key == "artifact_hash"]
    assert len(keys) == 1


def test_same_input_same_bytes(embedded, tmp_path):
    artifact, folder, _ = embedded
    export(artifact, tmp_path)
    for name in (MODEL_FILE, DATA_FILE, "README.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("layer", [None, "model.layers.1.mlp.down_proj"])
def test_the_readme_runs(embedded, tmp_path, layer, monkeypatch, capsys):
    """The program printed in README.md, word for word."""
    artifact, _, model = embedded
    export(artifact, tmp_path, layer=layer)
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if layer is None:
        model.reset()
        assert int(printed.split()[0]) == model.prefill([1, 2, 3]).argmax()
    else:
        x = np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32)
        shape = next(s for s in model.config.linears() if s.name == layer)
        linear = Artifact.open(artifact).linear(shape)
        assert printed.strip() == str(intmath.accumulate(x, linear)[0])


def test_floats_keep_their_value():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(100).astype(np.float32)
    short = bf16_to_f32((values.view(np.uint32) >> 16).astype(np.uint16))
    for array, kind in (
        (short, onnx.TensorProto.BFLOAT16),
        (values.astype(np.float16).astype(np.float32), onnx.TensorProto.FLOAT16),
        (values, onnx.TensorProto.FLOAT),
    ):
        found, stored = narrow(array)
        assert found == kind
        back = bf16_to_f32(stored) if kind == onnx.TensorProto.BFLOAT16 else stored
        np.testing.assert_array_equal(back.astype(np.float32), array)


# ---------------------------------------------------------------- command line


def test_command(embedded, tmp_path, capsys):
    artifact = str(embedded[0])
    words = ["export", artifact, "-o", str(tmp_path), "--format", "onnx"]
    assert main([*words, "--check", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["integer_mismatches"] == 0
    assert found["tokens_compared"] == 8
    assert all((tmp_path / name).is_file() for name in found["files"])
    assert main([*words, "--check", "4"]) == 0
    assert "0 wrong integer sums" in capsys.readouterr().out
    assert main([*words, "--layer", "model.layers.0.mlp.down_proj"]) == 0
    assert "1 nodes" in capsys.readouterr().out
    assert main([*words, "--layer", "down_proj"]) == 2
    assert "no linear 'down_proj'" in capsys.readouterr().err
    assert main([*words, "--device", "v80"]) == 2
    assert "--device belongs to --format hls" in capsys.readouterr().err
    assert main(["export", artifact, "-o", str(tmp_path), "--layer", "x"]) == 2
    assert "--layer belongs to --format onnx" in capsys.readouterr().err


def test_what_is_refused(embedded, tmp_path):
    with pytest.raises(ConfigError, match="only a whole model is checked"):
        lutllm.export_onnx(embedded[0], tmp_path, layer="x", check_tokens=1)
    with pytest.raises(ArtifactError, match="file not found"):
        open_session(tmp_path)
