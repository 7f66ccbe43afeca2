"""The tokenizer inside a GGUF file, rewritten as the JSON files of a Hugging Face folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.errors import CheckpointError

#: GGUF token types: control tokens are special, user-defined ones are matched but printed.
_CONTROL, _USER_DEFINED = 3, 4

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
#: Control tokens that end a text or a turn whatever the metadata says.
_STOPS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>")
_BYTES_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [{**split, "invert": False}, {**_BYTES_GPT2, "use_regex": False}]


_GPT2_STEPS = [{**_BYTES_GPT2, "use_regex": True}]
#: tokenizer.ggml.pre -> pre-tokenizer steps
_PRE_TOKENIZERS = {
    "default": _GPT2_STEPS,
    "gpt-2": _GPT2_STEPS,
    "smollm": [{"type": "Digits", "individual_digits": True}, *_GPT2_STEPS],
    "qwen2": _split(_QWEN2),
    "llama-bpe": _split(_LLAMA3),
}


def tokenizer_files(metadata: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """File name -> content, for the byte-pair tokenizer described by GGUF metadata."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise CheckpointError(
            f"{source}: GGUF tokenizer of kind {kind!r} is not supported, only byte-level BPE "
            "('gpt2'); use the Hugging Face folder of this model"
        )
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{source}: GGUF pre-tokenizer {pre!r} is not supported "
            f"({', '.join(sorted(_PRE_TOKENIZERS))}); use the Hugging Face folder of this model"
        )
    tokens = _strings(metadata, "tokens", source)
    special = _special_tokens(metadata, tokens, source)
    return {
        "tokenizer.json": _tokenizer_json(metadata, tokens, pre, source),
        "tokenizer_config.json": _tokenizer_config(metadata, special),
        "generation_config.json": _generation_config(metadata, tokens),
    }


def _strings(metadata: dict[str, Any], key: str, source: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(
            f"{source}: metadata tokenizer.ggml.{key} is missing or not a list of strings; "
            "the file holds no usable tokenizer"
        )
    return value


def _special_tokens(metadata: dict[str, Any], tokens: list[str], source: str) -> dict[str, str]:
    """ "bos_token" and so on -> the token itself."""
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    out = {}
    for gguf, name in names.items():
        index = metadata.get(f"tokenizer.ggml.{gguf}_token_id")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise CheckpointError(
                f"{source}: metadata tokenizer.ggml.{gguf}_token_id is {index!r}, outside the "
                f"vocabulary of {len(tokens)} tokens; the file is damaged"
            )
        out[f"{name}_token"] = tokens[index]
    return out


def _tokenizer_json(
    metadata: dict[str, Any], tokens: list[str], pre: str, source: str
) -> dict[str, Any]:
    merges = [merge.split(" ", 1) for merge in _strings(metadata, "merges", source)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(metadata, tokens),
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": _post_processor(metadata, tokens),
        "decoder": {**_BYTES_GPT2, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _added_tokens(metadata: dict[str, Any], tokens: list[str]) -> list[dict[str, Any]]:
    kinds = np.asarray(metadata.get("tokenizer.ggml.token_type", []))[: len(tokens)]
    fields = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": int(i), "content": tokens[i], **fields, "special": bool(kinds[i] == _CONTROL)}
        for i in np.flatnonzero((kinds == _CONTROL) | (kinds == _USER_DEFINED))
    ]


def _post_processor(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """Adds the beginning-of-text token where the model expects it."""
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if not metadata.get("tokenizer.ggml.add_bos_token") or bos is None:
        return None
    token, text = tokens[bos], {"Sequence": {"id": "A", "type_id": 0}}
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
    }


def _tokenizer_config(metadata: dict[str, Any], special: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        **special,
    }
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config


def token_ids(metadata: dict[str, Any]) -> dict[str, int]:
    """ "bos_token_id", "eos_token_id" and "pad_token_id", those that the metadata names."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {key: metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in names.items()}
    return {key: value for key, value in found.items() if isinstance(value, int)}


def _generation_config(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    """The ids a generator starts and stops at."""
    config: dict[str, Any] = dict(token_ids(metadata))
    stops = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    stops += [t["id"] for t in _added_tokens(metadata, tokens) if t["content"] in _STOPS]
    if stops := [stop for stop in dict.fromkeys(stops) if isinstance(stop, int)]:
        config["eos_token_id"] = stops
    return config
