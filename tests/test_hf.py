"""Artifacts in transformers: loading, logits, text, saving, and what happens without lutllm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
import torch  # noqa: E402

import lutllm.hf  # noqa: E402
from lutllm import intmath  # noqa: E402
from lutllm.artifact import Artifact  # noqa: E402
from lutllm.config import LutConfig, QuantConfig  # noqa: E402
from lutllm.emulator import LutModel  # noqa: E402
from lutllm.errors import ArtifactError  # noqa: E402
from lutllm.hf.compare import compare  # noqa: E402
from lutllm.hf.module import Joined, LutLinear, Part  # noqa: E402
from lutllm.hub_files import HUB_FILE, hub_config  # noqa: E402
from tests.embedded import (  # noqa: E402
    MODEL,
    TOLERANCE,
    assert_equal_up_to_flips,
    embedded_artifact,
    sample_ids,
)
from tests.helpers import random_input, random_linear  # noqa: E402
from tests.make_artifact import tiny_config, write_artifact  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "The people of the United States"


def load(folder: Path, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


@torch.no_grad()
def logits(model, ids: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(ids)[None]).logits[0].numpy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


# ---------------------------------------------------------------- the module


def module_of(linear, bias: bool) -> LutLinear:
    module = LutLinear(
        linear.name, linear.config, linear.in_features, linear.out_features, bias=bias
    )
    for key, value in linear.arrays().items():
        getattr(module, key).data = torch.from_numpy(value.copy())
    return module


@pytest.mark.parametrize("scheme", ["co", "weight"])
@pytest.mark.parametrize("bias", [False, True])
def test_module_is_the_integer_arithmetic(scheme, bias):
    linear = random_linear(LutConfig(scheme=scheme, weight_stages=2), 40, 70, bias=bias)
    module = module_of(linear, bias)
    x = random_input(6, 40)
    y = module(torch.from_numpy(x).reshape(2, 3, 40))
    assert y.shape == (2, 3, 70)
    np.testing.assert_array_equal(y.reshape(6, 70).numpy(), intmath.lut_linear(x, linear))
    assert module(torch.from_numpy(x).double()).dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_parts_share_one_run_and_see_changes():
    linear = random_linear(LutConfig(), 16, 30)
    module = module_of(linear, bias=False)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    joined = Joined(module, 2)
    parts = [Part(joined, 0, 10), Part(joined, 10, 30)]
    x = torch.from_numpy(random_input(2, 16))
    expected = intmath.lut_linear(x.numpy(), linear)
    np.testing.assert_array_equal(torch.cat([p(x) for p in parts], -1).numpy(), expected)
    assert len(calls) == 1
    parts[0](x)
    x[0] += 1  # changed between the parts: what the first one computed is not used
    np.testing.assert_array_equal(
        parts[1](x).numpy(), intmath.lut_linear(x.numpy(), linear)[:, 10:]
    )
    other = x.clone()
    np.testing.assert_array_equal(
        parts[0](other).numpy(), intmath.lut_linear(other.numpy(), linear)[:, :10]
    )


def test_damaged_arrays_are_refused():
    module = module_of(random_linear(LutConfig(), 16, 30), bias=False)
    module.input_perm.data[0] = 99
    with pytest.raises(ArtifactError, match="does not name each of 16 channels once"):
        module(torch.zeros(1, 16))


# ---------------------------------------------------------------- the embedded model


@pytest.fixture(scope="module")
def loaded():
    """The embedded model in transformers and in the emulator."""
    return load(embedded_artifact()), LutModel.load(embedded_artifact(), threads=1)


def test_logits_are_those_of_the_emulator(loaded):
    model, emulator = loaded
    ids = sample_ids(48)
    assert type(model) is lutllm.hf.LutLLMQwen3ForCausalLM
    assert model.dtype == torch.float32
    found = compare(model, emulator, ids)
    assert found["tokens_compared"] == 48
    assert_equal_up_to_flips(found)


def test_generates_what_the_emulator_generates(loaded):
    model, emulator = loaded
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_artifact())
    inputs = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    expected = emulator.generate(PROMPT, max_tokens=12)
    assert out[0, inputs["input_ids"].shape[1] :].tolist() == expected.tokens
    assert tokenizer.decode(out[0]) == PROMPT + expected.text


def test_padded_batches(loaded):
    """Two texts of different length at once, the shorter one padded on the left."""
    model, emulator = loaded
    ids = sample_ids(10)
    batch = torch.from_numpy(np.stack([ids, np.r_[[0] * 4, ids[:6]]]))
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    with torch.no_grad():
        out = model(batch, attention_mask=mask).logits.numpy()
    # rows of a batch come from other matrix products than a single one: no flips were found here
    assert_close(out[0], emulator.logits(ids))
    assert_close(out[1, 4:], emulator.logits(ids[:6]))


def test_other_float_types_are_not_used(caplog):
    assert load(embedded_artifact(), dtype=torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("shard", ["5GB", "300KB"])
def test_saved_models_load_in_both(loaded, tmp_path, shard):
    model, emulator = loaded
    ids = sample_ids(20)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard != "5GB")
    np.testing.assert_array_equal(logits(load(tmp_path), ids), logits(model, ids))
    again = LutModel.load(tmp_path, threads=1)
    assert_close(again.logits(ids), emulator.logits(ids))
    assert Artifact.open(tmp_path).verify() == []
    assert (tmp_path / HUB_FILE).read_text() == (embedded_artifact() / HUB_FILE).read_text()


# ---------------------------------------------------------------- architectures


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("own_type", [True, False])
def test_architectures(tmp_path, arch, own_type):
    """With the model type of an artifact, and with that of its source as older artifacts have."""
    config = tiny_config(arch, eos_token_id=2)
    quant = QuantConfig(LutConfig(group_size=64), {"*.o_proj": {"weight_stages": 2}})
    write_artifact(tmp_path, hub_config(config) if own_type else config, quant)
    model = load(tmp_path)
    assert type(model).__name__.startswith("LutLLM") == own_type
    ids = np.random.default_rng(0).integers(0, 301, 16)
    assert_equal_up_to_flips(compare(model, LutModel.load(tmp_path, threads=1), ids))


@pytest.mark.parametrize("head", ["int8", "lut"])
@pytest.mark.parametrize("tied", [True, False])
def test_heads(tmp_path, tied, head):
    """Rows of integers or a LUT linear: the emulator's logits, and saved as they were."""
    config = hub_config(tiny_config("qwen3", eos_token_id=2, tie_word_embeddings=tied))
    write_artifact(tmp_path / "art", config, QuantConfig(LutConfig(group_size=64), head=head))
    model, emulator = load(tmp_path / "art"), LutModel.load(tmp_path / "art", threads=1)
    ids = np.random.default_rng(0).integers(0, 301, 16)
    assert_equal_up_to_flips(compare(model, emulator, ids))
    prompt = torch.from_numpy(ids[None, :6])
    out = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    expected = ids[:6].tolist()
    while len(expected) < 12:
        expected.append(int(emulator.logits(np.array(expected))[-1].argmax()))
    assert out[0].tolist() == expected
    model.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(logits(load(tmp_path / "saved"), ids), logits(model, ids))
    assert Artifact.open(tmp_path / "saved").verify() == []


# ---------------------------------------------------------------- what is refused


def test_float_checkpoints_are_not_quantized_on_the_way():
    with pytest.raises(ValueError, match="pre-quantized"):
        load(MODEL, quantization_config=lutllm.hf.LutLLMConfig(format_version=1))


_WITHOUT_IMPORT = """
import sys
from transformers import AutoModelForCausalLM

def attempt(**options):
    try:
        return type(AutoModelForCausalLM.from_pretrained(sys.argv[1], **options)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print("1", attempt(trust_remote_code=False).replace("\\n", " "))
sys.modules["lutllm"] = None  # as if it were not installed
print("2", attempt(trust_remote_code=True).replace("\\n", " "))
del sys.modules["lutllm"]
print("3", attempt(trust_remote_code=True))
"""


def test_without_the_plugin_there_is_a_clear_error(tmp_path):
    """Never a model with random weights."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_IMPORT, str(embedded_artifact())],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    untrusted, missing, trusted = (line[2:] for line in done.stdout.splitlines())
    assert untrusted.startswith("ValueError")
    assert "trust_remote_code=True" in untrusted
    assert missing.startswith(("ImportError", "ModuleNotFoundError"))
    assert "lutllm" in missing
    assert trusted == "LutLLMQwen3ForCausalLM"


def test_config_of_an_artifact():
    config = json.loads((embedded_artifact() / "config.json").read_text())
    source = json.loads((MODEL / "config.json").read_text())
    assert config["model_type"] == "lutllm_qwen3"
    assert config["auto_map"]["AutoModelForCausalLM"] == "lutllm_hub.LutLLMQwen3ForCausalLM"
    changed = {"model_type", "auto_map", "architectures", "quantization_config"}
    assert {k: v for k, v in config.items() if k not in changed} == {
        k: v for k, v in source.items() if k not in changed
    }
    assert Artifact.open(embedded_artifact()).model.model_type == "qwen3"
