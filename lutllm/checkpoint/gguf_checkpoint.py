"""A GGUF file seen as a Hugging Face checkpoint: names, layout and configuration translated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.artifact import write_json
from lutllm.checkpoint.base import FLOAT_KINDS, Checkpoint, check_tensors
from lutllm.checkpoint.gguf_file import GgufFile
from lutllm.checkpoint.gguf_tokenizer import token_ids, tokenizer_files
from lutllm.errors import CheckpointError
from lutllm.model_config import ARCHITECTURES, ModelConfig
from lutllm.rope import inverse_frequencies

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
#: Divisors of the rotary frequencies, stored by converters of Llama 3.1 and later.
_ROPE_FREQS = "rope_freqs.weight"
_F16_MAX = 65504.0
#: Every release of Llama 3 scaling uses these bounds; only their ratio to the context matters.
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR = 1.0, 4.0


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; an unknown name is returned as it is."""
    match = _LAYER.fullmatch(name)
    if match and match[2] in _LAYER_NAMES:
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    return _NAMES.get(name, name)


class GgufCheckpoint(Checkpoint):
    """A GGUF file of architecture llama, qwen2 or qwen3, in any ggml quantization."""

    def __init__(self, path: Path, source: str):
        self._file = GgufFile(path)
        super().__init__(source, _hf_config(self._file, source))
        self._gguf_names = {hf_name(n): n for n in self._file.tensors if n != _ROPE_FREQS}
        self._shapes = self._check()

    def _check(self) -> dict[str, tuple[int, ...]]:
        """Every tensor present, of the right shape and of a type that can be read."""
        found = {hf: (self._file.tensors[n].shape, "F32") for hf, n in self._gguf_names.items()}
        shapes = check_tensors(self.source, self.model, found, FLOAT_KINDS)
        by_kind = {self._file.tensors[self._gguf_names[hf]].kind: hf for hf in shapes}
        for name in by_kind.values():
            self._file.check_readable(self._gguf_names[name])
        return shapes

    def _row_order(self, name: str) -> np.ndarray | None:
        """Row of the file for each row of the Hugging Face layout, None where they agree.

        Converters interleave the two halves of every q and k head of a llama model, because its
        first implementation rotates neighbours where Hugging Face rotates halves.
        """
        part = name.rsplit(".", 2)[-2]
        if self.model.model_type != "llama" or part not in ("q_proj", "k_proj"):
            return None
        (rows, *_), dim = self.shape(name), self.model.head_dim
        return np.arange(rows).reshape(-1, dim // 2, 2).swapaxes(1, 2).reshape(-1)

    def _read_as(self, name: str, dtype: type[np.floating]) -> np.ndarray:
        gguf_name, shape = self._gguf_names[name], self.shape(name)
        out: np.ndarray = np.empty((int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]), dtype)
        with np.errstate(over="ignore"):  # the caller looks for what became infinite
            for rows, values in self._file.chunks(gguf_name, self._row_order(name)):
                out[rows] = values
        return out.reshape(shape)

    def _read_f32(self, name: str) -> np.ndarray:
        return self._read_as(name, np.float32)

    def _read_stored(self, name: str) -> tuple[str, np.ndarray]:
        tensor = self._file.tensors[self._gguf_names[name]]
        if tensor.kind == "BF16":
            bits = self._file.raw_rows(tensor.name).view(np.uint16)
            order = self._row_order(name)
            return "BF16", (bits if order is None else bits[order]).reshape(self.shape(name))
        if tensor.kind == "F32":
            return "F32", self._read_f32(name)
        values = self._read_as(name, np.float16)
        if np.isfinite(values).all() or tensor.kind == "F16":
            return "F16", values
        return "F32", self._read_f32(name)

    def _read_rows(self, name: str, index: np.ndarray) -> np.ndarray:
        order = self._row_order(name)
        return self._file.rows(self._gguf_names[name], index if order is None else order[index])

    def write_tokenizer(self, dest: Path) -> None:
        for name, content in tokenizer_files(self._file.metadata, self.source).items():
            write_json(dest / name, content)


class _Metadata:
    """Typed access to the metadata of one architecture."""

    def __init__(self, file: GgufFile, source: str):
        self.values, self.source = file.metadata, source
        self.arch: str = self.values.get("general.architecture", "")
        if self.arch not in ARCHITECTURES:
            raise CheckpointError(
                f"{source}: GGUF architecture {self.arch!r} is not supported; lutllm reads "
                f"{', '.join(sorted(ARCHITECTURES))} (dense decoders)"
            )

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(f"{self.arch}.{key}", default)

    def number(self, key: str, default: Any = None) -> Any:
        """A number; per-layer arrays are accepted when all their values agree."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value.flat[0]).all():
            value = value.flat[0].item()
        if not isinstance(value, int | float) or isinstance(value, bool):
            shown = "missing" if value is None else f"{str(value)[:60]!r}, not one number"
            raise CheckpointError(
                f"{self.source}: metadata {self.arch}.{key} is {shown}; "
                "the file is damaged or of an unsupported kind"
            )
        return value


def _hf_config(file: GgufFile, source: str) -> dict[str, Any]:
    """The config.json that this GGUF file was made from, as far as it can be known."""
    meta = _Metadata(file, source)
    if meta.get("expert_count", 0):
        raise CheckpointError(
            f"{source}: a mixture of {meta.get('expert_count')} experts is not supported; "
            "lutllm reads dense decoders"
        )
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{source}: tensor 'token_embd.weight' is missing; not a whole model")
    embedding = file.tensors["token_embd.weight"]
    heads, hidden = meta.number("attention.head_count"), meta.number("embedding_length")
    head_dim = meta.number("attention.key_length", hidden // max(1, heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if meta.number(key, head_dim) != head_dim:
            raise CheckpointError(
                f"{source}: metadata {meta.arch}.{key} is {meta.get(key)}, but heads have "
                f"{head_dim} channels; lutllm needs them equal"
            )
    config = {
        "architectures": [ARCHITECTURES[meta.arch]],
        "model_type": meta.arch,
        "dtype": {"F32": "float32", "BF16": "bfloat16"}.get(embedding.kind, "float16"),
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": meta.number("feed_forward_length"),
        "num_hidden_layers": meta.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(meta.number("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": meta.number("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": _shortest(meta.number("rope.freq_base", 10000.0)),
    }
    if meta.arch != "qwen2":
        config["attention_bias"] = False
    config |= token_ids(file.metadata)
    scaling = _rope_scaling(file, meta, config)
    if scaling:
        config["rope_scaling"] = scaling
    return config


def _shortest(value: float) -> float:
    """The short decimal a float32 was made from: 9.99999997e-07 -> 1e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile, meta: _Metadata, config: dict[str, Any]) -> dict[str, Any] | None:
    kind = meta.get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": _shortest(meta.number("rope.scaling.factor"))}
    if kind != "none":
        return {"rope_type": kind}  # refused by name when the configuration is read
    if _ROPE_FREQS in file.tensors:
        return _llama3_scaling(file, config, meta.source)
    return None


def _llama3_scaling(file: GgufFile, config: dict[str, Any], source: str) -> dict[str, Any]:
    """The Llama 3 parameters behind the stored frequency divisors.

    The divisors depend on factor (the largest of them) and on the original context, a power of
    two; the first context that reproduces them is taken.
    """
    divisors = file.rows(_ROPE_FREQS, np.array([0]))[0]
    pairs = config["head_dim"] // 2
    if divisors.shape != (pairs,) or not np.isfinite(divisors).all() or (divisors < 0.99).any():
        raise CheckpointError(
            f"{source}: {_ROPE_FREQS} must hold {pairs} divisors of at least 1; "
            "the file is damaged or of an unsupported kind"
        )
    plain = inverse_frequencies(ModelConfig.from_hf(config))
    for bits in range(24):
        scaling = {
            "rope_type": "llama3",
            "factor": _shortest(divisors.max()),
            "low_freq_factor": _LOW_FREQ_FACTOR,
            "high_freq_factor": _HIGH_FREQ_FACTOR,
            "original_max_position_embeddings": 1 << bits,
        }
        scaled = inverse_frequencies(ModelConfig.from_hf({**config, "rope_scaling": scaling}))
        if np.allclose(plain / scaled, divisors, rtol=1e-4):
            return scaling
    raise CheckpointError(
        f"{source}: {_ROPE_FREQS} does not follow the Llama 3 rule; this scaling is not supported"
    )
