"""Checkpoints of every kind: values, layout, configuration, and what is refused."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lutllm.checkpoint import open_checkpoint, tensor_shapes
from lutllm.errors import CheckpointError
from lutllm.model_config import ModelConfig
from lutllm.rope import inverse_frequencies
from lutllm.tensorfile import f32_to_bf16
from tests.tiny_models import (
    ARCHS,
    LLAMA3_ROPE,
    make_model,
    state_f32,
    tiny_config,
    write_gguf,
    write_hf,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def models():
    """One random model per architecture, as transformers builds it."""
    return {arch: make_model(tiny_config(arch)) for arch in ARCHS}


@pytest.fixture
def folder(tmp_path, models):
    """A single-file float32 folder of a qwen2 model (untied, with biases) and its tokenizer."""
    write_hf(tmp_path / "hf", models["qwen2"])
    return write_tokenizer(tmp_path / "hf")


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path)


# Values


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")]
)
@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
def test_hf_values(tmp_path, arch, dtype, kind, shard_bytes):
    model = make_model(tiny_config(arch))
    write_hf(tmp_path, model, dtype, shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    checkpoint = open_checkpoint(tmp_path)
    expected = state_f32(model)
    assert set(checkpoint.names()) == set(expected)
    for name, values in expected.items():
        found = checkpoint.tensor(name)
        assert found.dtype == np.float32
        assert np.array_equal(found, values)
        stored_kind, stored = checkpoint.stored(name)
        assert stored_kind == kind
        assert np.array_equal(stored, f32_to_bf16(values) if kind == "BF16" else values)
    assert checkpoint.hf_config == json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_gguf_values(tmp_path, models, arch, kind):
    gguf = pytest.importorskip("gguf")
    config, expected = tiny_config(arch), state_f32(models[arch])
    path = write_gguf(tmp_path / "tiny.gguf", config, expected, kind)
    checkpoint = open_checkpoint(str(path))
    assert set(checkpoint.names()) == set(expected)
    qtype = gguf.GGMLQuantizationType[kind]
    for name, values in expected.items():
        if values.ndim == 2:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, qtype), qtype)
        assert np.array_equal(checkpoint.tensor(name), values)
        stored_kind, stored = checkpoint.stored(name)
        assert stored_kind == ("F32" if values.ndim == 1 else kind if kind != "Q8_0" else "F16")
        if stored_kind == "BF16":
            assert np.array_equal(stored, f32_to_bf16(values))
        else:
            assert np.array_equal(stored, values.astype(stored.dtype))


@pytest.mark.parametrize("arch", ARCHS)
def test_gguf_configuration_equals_the_folder(tmp_path, models, arch):
    pytest.importorskip("gguf")
    write_hf(tmp_path / "hf", models[arch])
    write_gguf(tmp_path / "tiny.gguf", tiny_config(arch), state_f32(models[arch]))
    from_hf = open_checkpoint(tmp_path / "hf").model
    from_gguf = open_checkpoint(tmp_path / "tiny.gguf")
    if arch == "llama":  # the context is recovered up to what cannot be told apart
        assert from_gguf.model.rope_scaling == LLAMA3_ROPE
        assert np.array_equal(inverse_frequencies(from_hf), inverse_frequencies(from_gguf.model))
    assert from_gguf.model == from_hf
    assert ModelConfig.from_hf(json.loads(json.dumps(from_gguf.hf_config))) == from_hf
    assert from_gguf.hf_config["eos_token_id"] == 2


@pytest.mark.parametrize("source", ["hf", "Q8_0"])
def test_rows_are_rows_of_the_tensor(tmp_path, models, source):
    expected = state_f32(models["llama"])
    if source == "hf":
        path = write_hf(tmp_path / "hf", models["llama"])
    else:
        pytest.importorskip("gguf")
        path = write_gguf(tmp_path / "m.gguf", tiny_config("llama"), expected, source)
    checkpoint = open_checkpoint(path)
    index = np.array([5, 0, 5, 63])
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        assert np.array_equal(checkpoint.rows(name, index), checkpoint.tensor(name)[index])


def test_quantized_values_beyond_f16_stay_f32(tmp_path, models):
    pytest.importorskip("gguf")
    tensors = state_f32(models["qwen3"])
    tensors["model.embed_tokens.weight"][7, 3] = 1e5
    path = write_gguf(tmp_path / "tiny.gguf", tiny_config("qwen3"), tensors, "Q8_0")
    kind, values = open_checkpoint(path).stored("model.embed_tokens.weight")
    assert kind == "F32"
    assert values[7, 3] > 65504


def test_stored_lm_head_of_a_tied_model_is_ignored(tmp_path, models):
    write_hf(tmp_path, models["qwen3"])
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": np.zeros((2, 2), np.float32)}))
    assert "lm_head.weight" not in open_checkpoint(tmp_path).names()


def test_tensor_shapes_need_each_architectures_extras():
    shapes = {arch: tensor_shapes(ModelConfig.from_hf(tiny_config(arch))) for arch in ARCHS}
    q_proj = "model.layers.1.self_attn.q_proj"
    assert [f"{q_proj}.bias" in shapes[arch] for arch in ARCHS] == [False, True, False]
    assert [f"{q_proj[:-4]}norm.weight" in shapes[arch] for arch in ARCHS] == [False, False, True]
    assert ["lm_head.weight" in shapes[arch] for arch in ARCHS] == [True, True, False]
    assert shapes["qwen3"][f"{q_proj}.weight"] == (128, 64)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "'gemma2' is not supported"),
        ({"model_type": ["llama"]}, "wrong type"),
        ({"num_hidden_layers": 3}, r"'model.layers.2.input_layernorm.weight' is missing"),
        ({"num_hidden_layers": 1 << 30}, "do not belong together"),
        ({"num_hidden_layers": 1}, "unexpected tensor 'model.layers.1"),
        ({"hidden_size": 128}, r"shape \[300, 64\], but config.json asks for \[300, 128\]"),
        ({"hidden_size": "64"}, "hidden_size|wrong type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads|wrong type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, "'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor None"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor 0"),
        ({"quantization_config": {"quant_method": "awq"}}, "already quantized"),
        ({"quantization_config": {"quant_method": "lutllm"}}, "artifact already"),
        ({"quantization_config": "awq"}, "wrong type"),
    ],
)
def test_config_is_refused(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": ', "\x00"])
def test_config_that_is_not_an_object(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json"):
        open_checkpoint(folder)


def test_missing_bias_and_unexpected_bias(folder, tmp_path, models):
    bias = "model.layers.0.self_attn.k_proj.bias"
    edit_tensors(folder, lambda t: t.pop(bias))
    with pytest.raises(CheckpointError, match=f"'{bias}' is missing"):
        open_checkpoint(folder)
    other = write_hf(tmp_path / "llama", models["llama"])
    edit_tensors(other, lambda t: t.update({bias: np.zeros(32, np.float32)}))
    with pytest.raises(CheckpointError, match=f"unexpected tensor '{bias}'"):
        open_checkpoint(other)


def test_integer_weights_are_refused(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda t: t.update({name: t[name].astype(np.int8)}))
    with pytest.raises(CheckpointError, match="stored as I8"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_are_not_finite_are_counted(tmp_path, value, dtype):
    import torch

    model = make_model(tiny_config("qwen2"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 4:7] = value
    checkpoint = open_checkpoint(write_hf(tmp_path, model, dtype))
    name = "model.layers.0.mlp.up_proj.weight"
    for read in (checkpoint.tensor, checkpoint.stored):
        with pytest.raises(CheckpointError, match=f"{name} holds 3 values that are not finite"):
            read(name)
    with pytest.raises(CheckpointError, match="not finite"):
        checkpoint.rows(name, np.array([3]))
    checkpoint.tensor("model.layers.0.mlp.down_proj.weight")


def test_unknown_tensor_name(folder):
    with pytest.raises(CheckpointError, match=r"no tensor 'model.nothing'"):
        open_checkpoint(folder).tensor("model.nothing")


@pytest.mark.parametrize("keep", [0, 4, 8, 1000, -1])
def test_truncated_safetensors(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        open_checkpoint(folder)


def test_safetensors_header_of_absurd_length(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="safetensors"):
        open_checkpoint(folder)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(folder)


def test_folder_without_config_points_to_a_gguf_inside(tmp_path):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"no config\.json.*did you mean .*some\.gguf"):
        open_checkpoint(tmp_path)


@pytest.fixture
def sharded(tmp_path, models):
    write_hf(tmp_path / "sharded", models["qwen2"], shard_bytes=40_000)
    return tmp_path / "sharded"


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_missing_shard(sharded):
    name = sorted(sharded.glob("*.safetensors"))[1]
    name.unlink()
    with pytest.raises(CheckpointError, match=f"{name.name}: file not found"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("target", ["../sharded/x.safetensors", "/etc/passwd", "..", "", None, 3])
def test_index_pointing_outside(sharded, target):
    edit_index(sharded, lambda i: i["weight_map"].update({"model.norm.weight": target}))
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' points to"):
        open_checkpoint(sharded)


def test_index_naming_the_wrong_shard(sharded):
    files = sorted(f.name for f in sharded.glob("*.safetensors"))

    def swap(index):
        where = index["weight_map"]["model.norm.weight"]
        index["weight_map"]["model.norm.weight"] = files[0] if where != files[0] else files[1]

    edit_index(sharded, swap)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is missing, though"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_index_without_map(sharded, weight_map):
    edit_index(sharded, lambda i: i.update(weight_map=weight_map))
    with pytest.raises(CheckpointError, match="weight_map is missing or empty"):
        open_checkpoint(sharded)


# GGUF files that are damaged or of another kind


@pytest.fixture
def gguf_path(tmp_path, models):
    pytest.importorskip("gguf")
    return write_gguf(tmp_path / "m.gguf", tiny_config("qwen2"), state_f32(models["qwen2"]))


def test_truncated_gguf(gguf_path):
    data = gguf_path.read_bytes()
    step = len(data) // 25
    for keep in [4, 8, 23, 24, 100, *range(step, len(data) - 32, step)]:
        gguf_path.write_bytes(data[:keep])
        with pytest.raises(CheckpointError, match=r"truncated|damaged"):
            open_checkpoint(gguf_path)


def test_damaged_gguf_headers_raise_nothing_else(gguf_path):
    """Random bytes in the header: opened all the same, or refused with the one exception."""
    data, rng = gguf_path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(4, 9000, 3):
            damaged[at] = rng.integers(256)
        gguf_path.write_bytes(damaged)
        try:
            open_checkpoint(gguf_path)
        except CheckpointError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (4, struct.pack("<I", 1), "version 1 is not supported"),
        (4, struct.pack(">I", 3), "little-endian"),
        (8, struct.pack("<Q", 1 << 62), "leaves the file|dimensions"),
        (16, struct.pack("<Q", 1 << 62), "leaves the file|unknown metadata"),
        (24, struct.pack("<Q", 1 << 62), "leaves the file"),
    ],
)
def test_gguf_header_values(gguf_path, at, value, message):
    data = bytearray(gguf_path.read_bytes())
    data[at : at + len(value)] = value
    gguf_path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(gguf_path)


def test_other_file_is_not_a_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint(tmp_path / "x.gguf")


def test_gguf_architecture_and_experts(tmp_path, models, monkeypatch):
    gguf = pytest.importorskip("gguf")
    tensors = state_f32(models["qwen2"])
    path = tmp_path / "m.gguf"
    write_gguf(path, {**tiny_config("qwen2"), "model_type": "gemma3"}, tensors)
    with pytest.raises(CheckpointError, match="architecture 'gemma3' is not supported"):
        open_checkpoint(path)
    finish = gguf.GGUFWriter.write_header_to_file
    for key, value, message in (
        ("qwen2.expert_count", 8, "mixture of 8 experts"),
        ("qwen2.rope.dimension_count", 8, "rope.dimension_count is 8"),
        ("split.count", 3, "one of 3 parts"),
    ):

        def with_extra(writer, key=key, value=value):
            writer.add_uint32(key, value)
            finish(writer)

        monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_extra)
        write_gguf(path, tiny_config("qwen2"), tensors)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)


def test_gguf_missing_tensor_and_nan(tmp_path, models):
    pytest.importorskip("gguf")
    tensors = state_f32(models["qwen2"])
    name = "model.layers.1.mlp.down_proj.weight"
    without = {k: v for k, v in tensors.items() if k != name}
    path = write_gguf(tmp_path / "a.gguf", tiny_config("qwen2"), without)
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        open_checkpoint(path)
    tensors[name] = tensors[name].copy()
    tensors[name][2, 2] = np.nan
    path = write_gguf(tmp_path / "b.gguf", tiny_config("qwen2"), tensors)
    with pytest.raises(CheckpointError, match=f"{name} holds 1 values"):
        open_checkpoint(path).tensor(name)


def test_gguf_with_an_unknown_rope_rule(tmp_path, models, monkeypatch):
    pytest.importorskip("gguf")
    divisors = np.linspace(1, 8, 8).astype(np.float32)
    monkeypatch.setattr("tests.tiny_models.llama3_divisors", lambda config: divisors)
    path = write_gguf(tmp_path / "m.gguf", tiny_config("llama"), state_f32(models["llama"]))
    with pytest.raises(CheckpointError, match="does not follow the Llama 3 rule"):
        open_checkpoint(path)


def test_gguf_needs_its_package_for_blocks_only(tmp_path, models, monkeypatch):
    pytest.importorskip("gguf")
    tensors = state_f32(models["qwen2"])
    plain = write_gguf(tmp_path / "a.gguf", tiny_config("qwen2"), tensors, "F16")
    blocks = write_gguf(tmp_path / "b.gguf", tiny_config("qwen2"), tensors, "Q8_0")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    open_checkpoint(plain).tensor("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"pip install \"lutllm\[gguf\]\""):
        open_checkpoint(blocks)


# Names that are not there


@pytest.mark.parametrize("source", ["no/such/folder", "./missing", "missing.gguf", "a/b.gguf", ""])
def test_nothing_there(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no such file or folder|no config\.json"):
        open_checkpoint(source)


def test_hub_id_offline(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    error = OSError("no route to host")

    def offline(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"could not be fetched.*no route to host"):
        open_checkpoint("someone/some-model")


def test_hub_id_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install \"lutllm\[hub\]\""):
        open_checkpoint("someone/some-model")


def test_hub_reads_config_before_weights(monkeypatch, folder, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repo_id, allow_patterns):
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert open_checkpoint("someone/some-model").source == "someone/some-model"
    assert asked[0] == ["config.json"]
    assert len(asked) == 2
    edit_config(folder, model_type="mamba")
    with pytest.raises(CheckpointError, match="'mamba' is not supported"):
        open_checkpoint("someone/some-model")
    assert len(asked) == 3


# Tokenizer files


def test_hf_tokenizer_files_are_copied(folder, tmp_path):
    dest = tmp_path / "out"
    dest.mkdir()
    (folder / "generation_config.json").unlink(missing_ok=True)
    checkpoint = open_checkpoint(folder)
    checkpoint.write_tokenizer(dest)
    assert (dest / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert json.loads((dest / "generation_config.json").read_text())["eos_token_id"] == 2
    assert checkpoint.tokenizer().eos_ids == (2,)


def test_hf_folder_without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        open_checkpoint(folder).tokenizer()


def test_tokenizer_larger_than_the_model(folder):
    write_tokenizer(folder, size=301)
    with pytest.raises(CheckpointError, match="tokenizer has 301 tokens, the model 300"):
        open_checkpoint(folder).tokenizer()


def test_single_unindexed_file_of_another_name(folder):
    shutil.move(folder / "model.safetensors", folder / "weights.safetensors")
    assert open_checkpoint(folder).names()
