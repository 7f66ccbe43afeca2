"""Tokenizers from both kinds of checkpoint, streaming, chat templates."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from lutllm.checkpoint import open_checkpoint
from lutllm.errors import CheckpointError
from lutllm.tokenizer import Tokenizer
from tests.tiny_models import make_model, state_f32, tiny_config, write_gguf, write_tokenizer

TEXT = "hello world, 12 is 1+1… grün 日本語 🙂\n\n\tend  "


@pytest.fixture
def folder(tmp_path):
    return write_tokenizer(tmp_path / "tok")


@pytest.fixture
def tokenizer(folder):
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def tensors():
    return state_f32(make_model(tiny_config("qwen2")))


def from_gguf(path, tensors, **metadata):
    pytest.importorskip("gguf")
    write_gguf(path, tiny_config("qwen2"), tensors, metadata=metadata)
    return open_checkpoint(path)


def edit_config(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


def test_round_trip(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.vocab_size == 300
    assert tokenizer.encode("") == []
    assert len(tokenizer.encode("hello")) == 1


def test_special_tokens_are_recognized_but_never_added(tokenizer):
    ids = tokenizer.encode("<|im_start|>hello<|im_end|>")
    assert [ids[0], ids[-1]] == [1, 2]
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hello<|im_end|>"
    assert tokenizer.bos_id == 1


def test_eos_ids_come_from_every_file(folder):
    assert Tokenizer.from_folder(folder).eos_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    assert Tokenizer.from_folder(folder).eos_ids == (0, 2, 7)


# Streaming


def test_stream_equals_decode_and_never_splits_a_character(tokenizer):
    ids = tokenizer.encode(TEXT)
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([p for p in pieces if p]) > 20  # text comes as it goes, not at the end
    assert pieces[0] == "hello"


def test_stream_of_random_tokens_equals_decode(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(30):
        ids = rng.integers(0, 300, 40).tolist()
        stream = tokenizer.stream_decoder()
        streamed = "".join(stream.push(i) for i in ids) + stream.finish()
        assert streamed == tokenizer.decode(ids)


def test_stream_cut_inside_a_character(tokenizer):
    stream = tokenizer.stream_decoder()
    assert "".join(stream.push(i) for i in tokenizer.encode("a🙂")[:-1]) == "a"
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


# Chat templates


def test_chat_template_as_transformers_renders_it(folder):
    transformers = pytest.importorskip("transformers")
    messages = [
        {"role": "system", "content": "be <brief>"},
        {"role": "user", "content": "grün"},
        {"role": "assistant", "content": "ok"},
    ]
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|im_start|>"
    )
    templates = [
        json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}"
        "{% endif %}{{ m | tojson }}{% endfor %}{% if tools %}x{% endif %}",
        "  {%- for m in messages %}\n  {{- m.content | trim }}\n  {% endfor %}\n  {# note #}\nend",
    ]
    for template in templates:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        for prompt in (True, False):
            expected = oracle.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=prompt, tokenize=False
            )
            assert Tokenizer.from_folder(folder).apply_chat(messages, prompt) == expected


def test_no_chat_template(folder):
    edit_config(folder, chat_template=None)
    tokenizer = Tokenizer.from_folder(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(CheckpointError, match="no chat template"):
        tokenizer.apply_chat([])


def test_named_chat_templates(folder):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    edit_config(folder, chat_template=named)
    assert Tokenizer.from_folder(folder).apply_chat([]) == "y"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only user turns') }}", "only user turns"),
        ("{% if %}", "chat template"),
        ("{{ messages[0].content + 1 }}", "chat template"),
        ("{{ 1 / 0 }}", "chat template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template"),
        ("{{ messages.append(1) }}", "chat template"),
    ],
)
def test_bad_chat_templates_are_told(folder, template, message):
    edit_config(folder, chat_template=template)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(folder).apply_chat([{"role": "user", "content": "x"}])


# Files that are damaged


def test_missing_and_damaged_files(tmp_path, folder):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: file not found"):
        Tokenizer.from_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not valid JSON"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a valid tokenizer"):
        Tokenizer.from_folder(folder)


# GGUF


def test_gguf_tokenizer_equals_the_folders(tmp_path, tensors, tokenizer):
    built = from_gguf(tmp_path / "m.gguf", tensors, pre="gpt-2").tokenizer()
    assert built.encode(TEXT) == tokenizer.encode(TEXT)
    assert built.decode(built.encode(TEXT)) == TEXT
    assert built.eos_ids == (0, 2)  # the end of a text ends a chat turn as well
    assert built.bos_id == 1
    messages = [{"role": "user", "content": "hello"}]
    assert built.apply_chat(messages) == tokenizer.apply_chat(messages)


@pytest.mark.parametrize(
    ("pre", "number", "accent"),
    [
        ("gpt-2", ["12345"], "e\u0301"),
        ("smollm", list("12345"), "e\u0301"),
        ("llama-bpe", ["123", "45"], "e\u0301"),
        ("qwen2", list("12345"), "\u00e9"),
    ],
)
def test_gguf_pre_tokenizers(tmp_path, tensors, pre, number, accent):
    checkpoint = from_gguf(tmp_path / "m.gguf", tensors, pre=pre)
    checkpoint.write_tokenizer(tmp_path)
    core = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [piece for piece, _ in core.pre_tokenizer.pre_tokenize_str("12345")] == number
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == accent


def test_gguf_beginning_of_text(tmp_path, tensors):
    tokenizer = from_gguf(tmp_path / "a.gguf", tensors, add_bos=True).tokenizer()
    assert tokenizer.encode("hello") == tokenizer.encode_prompt("hello")[1:]
    assert tokenizer.encode_prompt("hello")[0] == 1
    without = from_gguf(tmp_path / "b.gguf", tensors).tokenizer()
    assert without.encode("hello") == without.encode_prompt("hello")


def test_gguf_tokenizer_loads_in_transformers(tmp_path, tensors):
    transformers = pytest.importorskip("transformers")
    checkpoint = from_gguf(tmp_path / "m.gguf", tensors)
    checkpoint.write_tokenizer(tmp_path)
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert oracle(TEXT)["input_ids"] == checkpoint.tokenizer().encode(TEXT)
    assert oracle.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": "llama"}, "kind 'llama' is not supported"),
        ({"pre": "deepseek-llm"}, "pre-tokenizer 'deepseek-llm' is not supported"),
    ],
)
def test_gguf_tokenizers_that_are_not_supported(tmp_path, tensors, metadata, message):
    checkpoint = from_gguf(tmp_path / "m.gguf", tensors, **metadata)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.tokenizer()


def test_gguf_eos_outside_the_vocabulary(tmp_path, tensors):
    path = tmp_path / "m.gguf"
    from_gguf(path, tensors)
    key = b"tokenizer.ggml.eos_token_id"
    data = bytearray(path.read_bytes())
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = struct.pack("<I", 5000)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="5000, outside the vocabulary of 300"):
        open_checkpoint(path).tokenizer()
