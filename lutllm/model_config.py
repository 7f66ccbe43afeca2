"""The decoder architectures lutllm understands, read from a Hugging Face config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutllm.config import HEAD_LINEAR
from lutllm.errors import CheckpointError

#: model_type of an artifact: this and the model_type of its source.
PREFIX = "lutllm_"
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class LinearShape:
    """One LUT linear: its name, its sources in the checkpoint, D and M, and whether it adds
    a bias."""

    name: str
    sources: tuple[str, ...]
    in_features: int
    out_features: int
    has_bias: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a decoder-only transformer; field names are those of config.json."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
                raise CheckpointError(f"config.json: {name} is {value!r}; it must be above zero")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"config.json: head_dim {self.head_dim} is odd; rotary embedding needs pairs"
            )

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    def layer_linears(self, layer: int) -> tuple[LinearShape, ...]:
        """The four LUT linears of a decoder layer, in the order they run.

        Projections that read the same vector are one linear: they share the activation code.
        """
        attn, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        hidden, inter = self.hidden_size, self.intermediate_size
        return (
            LinearShape(
                f"{attn}.qkv_proj",
                tuple(f"{attn}.{x}_proj" for x in "qkv"),
                hidden,
                self.q_size + 2 * self.kv_size,
                self.qkv_bias,
            ),
            LinearShape(f"{attn}.o_proj", (f"{attn}.o_proj",), self.q_size, hidden),
            LinearShape(
                f"{mlp}.gate_up_proj",
                (f"{mlp}.gate_proj", f"{mlp}.up_proj"),
                hidden,
                2 * inter,
            ),
            LinearShape(f"{mlp}.down_proj", (f"{mlp}.down_proj",), inter, hidden),
        )

    def linears(self) -> tuple[LinearShape, ...]:
        """Every LUT linear of the decoder layers, layer by layer."""
        return tuple(s for i in range(self.num_hidden_layers) for s in self.layer_linears(i))

    def head_linear(self) -> LinearShape:
        """The LUT linear before an output head: of the embedding's rows where they are tied."""
        source = "model.embed_tokens" if self.tie_word_embeddings else "lm_head"
        return LinearShape(HEAD_LINEAR, (source,), self.hidden_size, self.vocab_size)

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> ModelConfig:
        """Read a Hugging Face config.json; CheckpointError names what is not supported.

        The config of an artifact reads as that of its source.
        """
        model_type = config.get("model_type")
        if isinstance(model_type, str):
            model_type = model_type.removeprefix(PREFIX)
        if model_type not in ARCHITECTURES:
            raise CheckpointError(
                f"model_type {model_type!r} is not supported; lutllm reads "
                f"{', '.join(sorted(ARCHITECTURES))} (dense decoders)"
            )
        _refuse_variants(config, model_type)
        rope_theta, rope_scaling = _read_rope(config)
        heads = _need(config, "num_attention_heads")
        hidden = _need(config, "hidden_size")
        return cls(
            model_type=model_type,
            hidden_size=hidden,
            intermediate_size=_need(config, "intermediate_size"),
            num_hidden_layers=_need(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab_size=_need(config, "vocab_size"),
            rms_norm_eps=float(_need(config, "rms_norm_eps")),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            max_position_embeddings=int(config.get("max_position_embeddings", 2048)),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type == "qwen3",
        )


def _need(config: dict[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(f"config.json lacks {key!r}; it is not a complete model config")
    return config[key]


def _refuse_variants(config: dict[str, Any], model_type: str) -> None:
    rules = (
        ("hidden_act", config.get("hidden_act", "silu") == "silu", "only 'silu' is supported"),
        ("use_sliding_window", not config.get("use_sliding_window"), "full attention only"),
        ("mlp_bias", not config.get("mlp_bias"), "an MLP bias is not supported"),
        (
            "attention_bias",
            model_type == "qwen2" or not config.get("attention_bias"),
            "an output-projection bias is not supported",
        ),
    )
    for key, ok, rule in rules:
        if not ok:
            raise CheckpointError(f"config.json: {key} is {config[key]!r}: {rule}")


def _read_rope(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Rotary base and scaling, from `rope_parameters` (newer) or `rope_theta` + `rope_scaling`."""
    params = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(params.pop("rope_theta", None) or config.get("rope_theta", 10000.0))
    kind = params.pop("rope_type", None) or params.pop("type", None) or "default"
    params.pop("type", None)
    if kind not in ROPE_TYPES:
        raise CheckpointError(
            f"config.json: rope type {kind!r} is not supported; lutllm has {', '.join(ROPE_TYPES)}"
        )
    return theta, ({"rope_type": kind, **params} if kind != "default" else None)
