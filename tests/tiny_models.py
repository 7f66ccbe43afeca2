"""Tiny random checkpoints of every supported architecture, made on the fly for tests.

Weights come from transformers (the oracle); GGUF files are written with the gguf package in the
layout that llama.cpp's converter produces.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

ARCHS = ("llama", "qwen2", "qwen3")

#: Llama 3 scaling whose three regimes all occur with the tiny head size below.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def tiny_config(arch: str, **changes: Any) -> dict[str, Any]:
    """A config.json of a two-layer model with grouped-query attention."""
    config: dict[str, Any] = {
        "model_type": arch,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 300,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": arch == "qwen3",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if arch == "llama":
        config["rope_parameters"] = {**LLAMA3_ROPE, "rope_theta": 10000.0}
    if arch == "qwen3":
        config["head_dim"] = 32  # heads wider than hidden_size / num_attention_heads
    return {**config, **changes}


def make_model(config: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model with random weights large enough for every feature to matter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    hf_config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


def write_hf(folder: Path, model: Any, dtype: str = "float32", shard_bytes: int = 10**9) -> Path:
    """Save a transformers model as a folder; a small `shard_bytes` splits it into shards."""
    import torch

    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    return folder


def state_f32(model: Any) -> dict[str, np.ndarray]:
    """Hugging Face tensor name -> f32 values; a tied lm_head is left out."""
    import torch

    tied = model.config.tie_word_embeddings
    return {
        name: value.to(torch.float32).numpy()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


_TO_GGUF = (
    (r"model\.embed_tokens", "token_embd"),
    (r"model\.norm", "output_norm"),
    (r"lm_head", "output"),
    (r"model\.layers\.(\d+)\.", r"blk.\1."),
    (r"input_layernorm", "attn_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
    (r"self_attn\.([qk])_norm", r"attn_\1_norm"),
    (r"self_attn\.([qkv])_proj", r"attn_\1"),
    (r"self_attn\.o_proj", "attn_output"),
    (r"mlp\.(\w+)_proj", r"ffn_\1"),
)


def gguf_name(name: str) -> str:
    for pattern, replacement in _TO_GGUF:
        name = re.sub(pattern, replacement, name)
    return name


def interleave_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order converters give q and k of a llama model."""
    rows = len(weight)
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kind: str = "F16",
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write `tensors` (Hugging Face names) as a GGUF file; matrices in ggml type `kind`."""
    import gguf

    arch = config["model_type"]
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    add_tokenizer(writer, config["vocab_size"], **(metadata or {}))
    for name, values in tensors.items():
        if arch == "llama" and re.search(r"[qk]_proj", name):
            which = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            values = interleave_heads(values, config[which])
        plain = values.ndim == 1 or kind == "F32"
        qtype = gguf.GGMLQuantizationType["F32" if plain else kind]
        data = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), qtype)
        writer.add_tensor(gguf_name(name), data, raw_dtype=qtype)
    if config["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama3_divisors(config: dict[str, Any]) -> np.ndarray:
    """f32[head_dim / 2], what converters store for Llama 3 rope scaling."""
    rope, dim = config["rope_parameters"], config["head_dim"]
    out = []
    for i in range(dim // 2):
        turns = rope["original_max_position_embeddings"] / (
            2 * np.pi * rope["rope_theta"] ** (2 * i / dim)
        )
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        mix = np.clip((turns - low) / (high - low), 0, 1)
        out.append(1 / ((1 - mix) / rope["factor"] + mix))
    return np.array(out, np.float32)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level BPE vocabulary, by byte."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    extra = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(extra)) for b in range(256)]


CHAT_TEMPLATE = (
    "{% for m in messages %}\n"
    "<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("1", "2"))


def tiny_vocab(size: int = 300) -> list[str]:
    """Special tokens, all bytes, a few merges and fillers; `size` tokens."""
    tokens = [*SPECIAL, *byte_alphabet(), *(a + b for a, b in MERGES)]
    return tokens + [f"filler{i}" for i in range(size - len(tokens))]


def add_tokenizer(
    writer: Any, size: int, pre: str = "qwen2", model: str = "gpt2", add_bos: bool = False
) -> None:
    """Put the tiny byte-level tokenizer into a GGUF writer."""
    tokens = tiny_vocab(size)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in SPECIAL else 5 if "filler" in t else 1 for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_tokenizer(folder: Path, size: int = 300) -> Path:
    """The tiny tokenizer as the files of a Hugging Face folder."""
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokens = tiny_vocab(size)
    content = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {**bytes_only, "use_regex": True},
        "post_processor": None,
        "decoder": {**bytes_only, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(pair) for pair in MERGES],
        },
    }
    config = {
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|im_end|>"},
        "chat_template": CHAT_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
