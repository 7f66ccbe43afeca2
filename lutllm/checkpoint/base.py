"""What every kind of checkpoint offers, and the checks that all of them share."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutllm.errors import CheckpointError
from lutllm.model_config import ModelConfig

if TYPE_CHECKING:
    from lutllm.tokenizer import Tokenizer

#: Kinds a tensor may have when it stays a float in the artifact.
FLOAT_KINDS = ("F32", "F16", "BF16")

#: Values looked at together when a tensor is checked, which bounds the temporary memory.
_CHECK_VALUES = 1 << 22
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


class Checkpoint(ABC):
    """A float model on disk; tensor names and layouts are those of Hugging Face.

    source     what the user named
    hf_config  config.json as found, or the equal of it for a GGUF file
    model      the parsed configuration
    """

    def __init__(self, source: str, hf_config: dict[str, Any]):
        self.source = source
        self.hf_config = hf_config
        self.model = read_model_config(hf_config, source)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def names(self) -> list[str]:
        """Names of all tensors of the model; a stored but tied lm_head is not among them."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the configuration (the file was checked to agree)."""
        if name not in self._shapes:
            raise CheckpointError(f"{self.source}: the model has no tensor {name!r}")
        return self._shapes[name]

    def tensor(self, name: str) -> np.ndarray:
        """The tensor as float32 (a copy), every value finite."""
        shape = self.shape(name)
        values = self._read_f32(name)
        assert values.shape == shape
        self._check_finite(name, values)
        return values

    def stored(self, name: str) -> tuple[str, np.ndarray]:
        """Kind ("F32", "F16", "BF16") and values of a tensor that stays a float.

        The kind is the stored one; what a GGUF file holds in blocks becomes F16, or F32 where a
        value lies beyond the range of F16. BF16 values are u16 bit patterns.
        """
        self.shape(name)
        kind, values = self._read_stored(name)
        bad = count_not_finite(kind, values)
        if bad:
            raise self._not_finite(name, bad)
        return kind, values

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """Chosen rows of a matrix, for embedding lookups. index: i64[N] -> f32[N, columns]."""
        self.shape(name)
        values = self._read_rows(name, np.asarray(index, np.int64))
        self._check_finite(name, values)
        return values

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        from lutllm.tokenizer import Tokenizer

        with tempfile.TemporaryDirectory(prefix="lutllm-") as folder:
            self.write_tokenizer(Path(folder))
            tokenizer = Tokenizer.from_folder(folder)
        if tokenizer.vocab_size > self.model.vocab_size:
            raise CheckpointError(
                f"{self.source}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{self.model.vocab_size}; tokenizer and model do not belong together"
            )
        return tokenizer

    @abstractmethod
    def write_tokenizer(self, dest: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and generation_config.json into `dest`."""

    @abstractmethod
    def _read_f32(self, name: str) -> np.ndarray: ...

    @abstractmethod
    def _read_stored(self, name: str) -> tuple[str, np.ndarray]: ...

    @abstractmethod
    def _read_rows(self, name: str, index: np.ndarray) -> np.ndarray: ...

    def _check_finite(self, name: str, values: np.ndarray) -> None:
        bad = count_not_finite("F32", values)
        if bad:
            raise self._not_finite(name, bad)

    def _not_finite(self, name: str, count: int) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: {name} holds {count} values that are not finite (NaN or infinite); "
            "the checkpoint is damaged, fetch or train it again"
        )


def count_not_finite(kind: str, values: np.ndarray) -> int:
    """Number of NaN and infinite values; BF16 values are u16 bit patterns."""
    flat = values.reshape(-1)
    parts = (flat[i : i + _CHECK_VALUES] for i in range(0, len(flat), _CHECK_VALUES))
    if kind == "BF16":
        return sum(int(np.count_nonzero((part & 0x7F80) == 0x7F80)) for part in parts)
    return sum(len(part) - int(np.count_nonzero(np.isfinite(part))) for part in parts)


def read_model_config(hf_config: dict[str, Any], source: str) -> ModelConfig:
    """ModelConfig of a config.json that may hold anything; CheckpointError names `source`."""
    try:
        model = ModelConfig.from_hf(hf_config)
        _refuse_unsupported(hf_config, model)
    except CheckpointError as cause:
        raise CheckpointError(f"{source}: {cause}") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as cause:
        raise CheckpointError(
            f"{source}: config.json holds a value of a wrong type ({cause}); "
            "restore the file that came with the model"
        ) from None
    return model


def _refuse_unsupported(hf_config: dict[str, Any], model: ModelConfig) -> None:
    """Raise for what the configuration asks of a decoder that lutllm does not compute."""
    quant = hf_config.get("quantization_config")
    if quant:
        method = quant.get("quant_method")
        if method == "lutllm":
            raise CheckpointError("this is a lutllm artifact already; give the float checkpoint")
        raise CheckpointError(
            f"config.json: the weights are already quantized (quant_method {method!r}); "
            "give the float checkpoint"
        )
    kinds = set(hf_config.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise CheckpointError(f"config.json: layer_types has {min(kinds)!r}: full attention only")
    partial = hf_config.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise CheckpointError(f"config.json: partial_rotary_factor is {partial}: must be 1")
    scaling = model.rope_scaling or {}
    keys = _LLAMA3_KEYS if scaling.get("rope_type") == "llama3" else _LLAMA3_KEYS[:1]
    for key in keys if scaling else ():
        value = scaling.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(
                f"config.json: rope scaling {scaling['rope_type']!r} has {key} {value!r}; "
                "it must be a number above zero"
            )


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model, in the order it runs."""
    vocab = (model.vocab_size, model.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": vocab}
    for layer in range(model.num_hidden_layers):
        shapes |= _layer_shapes(model, layer)
    shapes["model.norm.weight"] = (model.hidden_size,)
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = vocab
    return shapes


def _layer_shapes(model: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    prefix = f"model.layers.{layer}"
    attn, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    hidden, inter = model.hidden_size, model.intermediate_size
    rows = {"q": model.q_size, "k": model.kv_size, "v": model.kv_size}
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.input_layernorm.weight": (hidden,)}
    for letter, size in rows.items():
        shapes[f"{attn}.{letter}_proj.weight"] = (size, hidden)
        if model.qkv_bias:
            shapes[f"{attn}.{letter}_proj.bias"] = (size,)
    if model.qk_norm:
        shapes[f"{attn}.q_norm.weight"] = (model.head_dim,)
        shapes[f"{attn}.k_norm.weight"] = (model.head_dim,)
    shapes[f"{attn}.o_proj.weight"] = (hidden, model.q_size)
    shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    shapes[f"{mlp}.gate_proj.weight"] = (inter, hidden)
    shapes[f"{mlp}.up_proj.weight"] = (inter, hidden)
    shapes[f"{mlp}.down_proj.weight"] = (hidden, inter)
    return shapes


def check_tensors(
    source: str,
    model: ModelConfig,
    found: Mapping[str, tuple[tuple[int, ...], str]],
    kinds: Iterable[str],
) -> dict[str, tuple[int, ...]]:
    """Compare the tensors of a file with what the model needs; returns `tensor_shapes`.

    found maps a tensor name to its shape and kind; kinds are those that can be read.
    """
    if model.num_hidden_layers > len(found):  # keeps an absurd config from filling the memory
        raise CheckpointError(
            f"{source}: config.json says {model.num_hidden_layers} layers, the file holds "
            f"{len(found)} tensors; they do not belong together"
        )
    wanted, kinds = tensor_shapes(model), set(kinds)
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(
                f"{source}: tensor {name!r} is missing; a {model.model_type} model of "
                f"{model.num_hidden_layers} layers needs it, fetch the checkpoint again"
            )
        file_shape, kind = found[name]
        if tuple(file_shape) != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {list(file_shape)}, but config.json asks for "
                f"{list(shape)}; weights and config do not belong together"
            )
        if kind not in kinds:
            raise CheckpointError(
                f"{source}: {name} is stored as {kind}; lutllm reads {', '.join(sorted(kinds))}"
            )
    for name in sorted(set(found) - set(wanted)):
        if not _ignorable(name):
            raise CheckpointError(
                f"{source}: unexpected tensor {name!r}; a {model.model_type} decoder does not "
                "have it, so this model computes something lutllm does not"
            )
    return wanted


def _ignorable(name: str) -> bool:
    """Tensors that change nothing: stored rotary tables, the copy of a tied embedding."""
    return name.endswith(".rotary_emb.inv_freq") or name == "lm_head.weight"
