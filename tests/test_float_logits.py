"""The float decoder gives the logits of transformers, on every architecture and file format."""

from __future__ import annotations

import numpy as np
import pytest

from calib.decoder import FloatDecoder, ResidentDecoder
from lutllm.checkpoint import open_checkpoint
from tests.tiny_models import ARCHS, make_model, state_f32, tiny_config, write_gguf, write_hf

TOLERANCE = 1e-4


def oracle_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


def assert_close(found, expected):
    """Largest difference relative to the largest logit."""
    relative = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert relative <= TOLERANCE


def random_ids(length=200, vocab=300):
    return np.random.default_rng(1).integers(0, vocab, length)


VARIANTS = [
    *((arch, {}) for arch in ARCHS),
    *((arch, {"tie_word_embeddings": arch != "qwen3"}) for arch in ARCHS),
    ("llama", {"num_key_value_heads": 4}),
    ("qwen2", {"num_key_value_heads": 1}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
]


@pytest.mark.parametrize(("arch", "changes"), VARIANTS)
def test_logits_equal_transformers(tmp_path, arch, changes):
    config = tiny_config(arch, **changes)
    model = make_model(config)
    expected = oracle_logits(model, random_ids())
    decoder = FloatDecoder(open_checkpoint(write_hf(tmp_path, model)))
    assert_close(decoder.logits(random_ids()), expected)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_gguf_logits_equal_transformers(tmp_path, arch, kind):
    """The oracle gets the values that the quantized file holds."""
    gguf = pytest.importorskip("gguf")
    import torch

    config = tiny_config(arch)
    model, qtype = make_model(config), gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                coded = gguf.quants.quantize(parameter.numpy(), qtype)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(coded, qtype).copy()))
    path = write_gguf(tmp_path / "tiny.gguf", config, state_f32(model), kind)
    found = FloatDecoder(open_checkpoint(path)).logits(random_ids())
    assert_close(found, oracle_logits(model, random_ids()))


@pytest.mark.parametrize("arch", ARCHS)
def test_half_precision_shards(tmp_path, arch):
    """Weights rounded to bfloat16 and split over files, as transformers loads them."""
    from transformers import AutoModelForCausalLM

    write_hf(tmp_path, make_model(tiny_config(arch)), "bfloat16", shard_bytes=40_000)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()
    found = FloatDecoder(open_checkpoint(tmp_path)).logits(random_ids())
    assert_close(found, oracle_logits(model, random_ids()))


def test_resident_decoder_is_the_same_model(tmp_path):
    decoder = FloatDecoder(open_checkpoint(write_hf(tmp_path, make_model(tiny_config("qwen3")))))
    ids = random_ids()
    assert_close(ResidentDecoder(decoder).logits(ids), decoder.logits(ids))
