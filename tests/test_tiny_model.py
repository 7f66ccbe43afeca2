"""The embedded model is what its files say, and predicts text it was not trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-qwen3"
SAMPLE = MODEL / "sample.txt"
CALIBRATION = ROOT / "calib" / "data" / "default.txt"
WINDOW = 512
PERPLEXITY_BOUND = 23.0


def read_json(name: str) -> dict:
    return json.loads((MODEL / name).read_text())


def shingles(text: str, words: int = 10) -> set[tuple[str, ...]]:
    tokens = re.findall(r"\w+", text.lower())
    return {tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1)}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def test_config_is_a_small_qwen3():
    config = read_json("config.json")
    expected = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 2048,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "dtype": "bfloat16",
    }
    assert {key: config.get(key) for key in expected} == expected


def test_files_are_small_and_sharded():
    assert len(list(MODEL.glob("*.safetensors"))) >= 2
    for path in MODEL.iterdir():
        assert path.stat().st_size < 4 * 2**20, path.name


def test_shards_hold_what_the_index_lists():
    safetensors = pytest.importorskip("safetensors")
    index = read_json("model.safetensors.index.json")
    found, total = {}, 0
    for path in sorted(MODEL.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as shard:
            for name in sorted(shard.keys()):
                tensor = shard.get_slice(name)
                assert tensor.get_dtype() == "BF16", name
                size = 2
                for dimension in tensor.get_shape():
                    size *= dimension
                found[name] = path.name
                total += size
    assert found == index["weight_map"]
    assert total == index["metadata"]["total_size"]


def test_sample_and_calibration_share_no_ten_words():
    assert not shingles(SAMPLE.read_text()) & shingles(CALIBRATION.read_text())


def test_texts_are_large_enough():
    assert 50_000 < SAMPLE.stat().st_size < 90_000
    assert 130_000 < CALIBRATION.stat().st_size < 190_000


@pytest.mark.parametrize(
    "text",
    [
        "Call me Ishmael. It's 1851;\n\nthe whale  swam\t on.",
        "na\u00efve caf\u00e9 \u2014 \u4f60\u597d \U0001f40b",
        " leading and trailing \n",
        "",
    ],
)
def test_tokenizer_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_round_trips_the_sample(tokenizer):
    text = SAMPLE.read_text()
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids) == text
    assert len(text.encode()) / len(encoded.ids) > 3.0


def test_special_tokens_have_the_last_ids(tokenizer):
    assert tokenizer.get_vocab_size() == 2048
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert [tokenizer.token_to_id(name) for name in names] == [2045, 2046, 2047]
    assert read_json("config.json")["eos_token_id"] == 2045


def test_chat_template_is_chatml():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    message = [{"role": "user", "content": "Speak."}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nSpeak.<|im_end|>\n<|im_start|>assistant\n"


def test_perplexity_on_held_out_text(tokenizer):
    """First four windows of the sample, through transformers; 20.9 as shipped."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokens = torch.tensor(tokenizer.encode(SAMPLE.read_text()).ids[: 4 * WINDOW])
    windows = tokens.view(4, WINDOW)
    with torch.no_grad():
        loss = model(windows, labels=windows).loss
    assert loss.exp().item() < PERPLEXITY_BOUND
