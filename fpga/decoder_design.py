"""The decoder kernel as data: sizes, constants, and what lies where behind its memory ports.

The kernel runs the whole model: the LUT linear engines in turn for every projection of every
layer, and the float steps of `fpga/hls/decoder_steps.h` between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpga.design import FLOAT_BITS, EngineDesign, LayerKind, ceil_div
from fpga.head_slices import is_slice, slice_name
from lutllm.config import HEAD_LINEAR, reject_unknown
from lutllm.errors import ConfigError
from lutllm.int8_rows import hidden_limit
from lutllm.model_config import ModelConfig

#: Bits of a stored value of embedding and head, by its safetensors dtype.
STORED_BITS = {"F32": 32, "F16": 16, "BF16": 16, "I8": 8}
#: Bits of the scale in the last bytes of an int8 row.
SCALE_BITS = 32
#: The projections of a layer in the order they run.
PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
MAX_CONTEXT = 4096
#: Beats that a word of the vectors on chip may have (rms_norm.h sums up to so many side by side).
VECTOR_LANES = (1, 2, 4, 8)


@dataclass(frozen=True)
class DecoderConfig:
    """The choices beside the engine's.

    context       positions the caches hold; 0 = those of the model, at most MAX_CONTEXT
    vector_lanes  beats of activations that move in a cycle between the steps: in and out of the
                  engines, through residual, norms and gating
    vocab_ports   memory ports that the rows of head and embedding are spread over; as many as the
                  device has use all its bandwidth, on places that engines use at other times
    kv_ports      memory ports that the keys of the cache are spread over, and again the values
    query_tokens  tokens whose queries share every key that attention reads

    Attention multiplies kv_ports * query_tokens times the query heads of a key head at once: ports
    speed up decode and prefill alike, query tokens only prefill.
    """

    context: int = 0
    vector_lanes: int = 4
    vocab_ports: int = 8
    kv_ports: int = 8
    query_tokens: int = 1

    def __post_init__(self) -> None:
        limits = (
            ("context", 0, 1 << 20),
            ("vocab_ports", 1, 64),
            ("kv_ports", 1, 32),
            ("query_tokens", 1, 64),
        )
        for name, low, high in limits:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(
                    f"decoder config: {name} is {value!r}; it must be a whole number {low} to "
                    f"{high}"
                )
        if self.vector_lanes not in VECTOR_LANES:
            raise ConfigError(
                f"decoder config: vector_lanes is {self.vector_lanes!r}; choose 1, 2, 4 or 8"
            )


@dataclass(frozen=True)
class DecoderDesign:
    """A whole model on the board.

    embed_kind, head_kind  safetensors dtypes of the stored rows; equal when `model` ties them
    engines                in the order of the design; together they run every linear, and where the
                           head is screened the slices of the LUT linear before it
    head_margin            words whose coarse logit is so far below the largest have their row read
    """

    config: DecoderConfig
    model: ModelConfig
    embed_kind: str
    head_kind: str
    engines: tuple[EngineDesign, ...]
    name: str = "decoder"
    head_margin: float = 0.0

    def __post_init__(self) -> None:
        model = self.model
        if not self.engines:
            raise ConfigError("decoder: no engine runs its linears")
        for kind in (self.embed_kind, self.head_kind):
            if kind not in STORED_BITS:
                raise ConfigError(f"decoder: rows of {kind!r}; choose {', '.join(STORED_BITS)}")
        if self.config.context > model.max_position_embeddings:
            raise ConfigError(
                f"decoder: context is {self.config.context}; the model has "
                f"{model.max_position_embeddings} positions: lower it"
            )
        if model.head_dim % self.floats:
            raise ConfigError(
                f"decoder: head_dim {model.head_dim} is not a multiple of the {self.floats} floats "
                f"of a beat; lower axi_bits to {32 * (model.head_dim & -model.head_dim)}"
            )
        if len({engine.config for engine in self.engines}) > 1:
            raise ConfigError("decoder: its engines differ in their configuration; give all one")
        for shape in model.linears():
            if shape.name not in self._owners():
                raise ConfigError(f"decoder: no engine runs {shape.name}; export all layers")
        if self.screened:
            self._check_slices()

    def _check_slices(self) -> None:
        owners = self._owners()
        names = [slice_name(i) for i in range(self.slices)]
        if len({owners.get(name, -1) for name in names}) > 1 or -1 in map(owners.get, names):
            raise ConfigError(
                f"decoder: the {self.slices} slices of {HEAD_LINEAR} are not on one engine; plan "
                "them with fpga.head_slices"
            )
        engine, kind, slot = self.slice_place
        wanted = [(kind, slot + i) for i in range(self.slices)]  # the kernel counts slots up
        if self.head_calls(engine) != wanted:
            raise ConfigError(
                f"decoder: the slices of {HEAD_LINEAR} are not linears of one kind in a row; plan "
                "them with fpga.head_slices"
            )
        if self.slices * self.slice_width < self.model.vocab_size:
            raise ConfigError(
                f"decoder: {self.slices} slices of {self.slice_width} words do not hold a "
                f"vocabulary of {self.model.vocab_size}; plan them with fpga.head_slices"
            )
        if self.head_kind != "I8":
            raise ConfigError(
                f"decoder: the head is screened, but its rows are {self.head_kind}; they must be I8"
            )

    def _owners(self) -> dict[str, int]:
        return {name: i for i, engine in enumerate(self.engines) for name in engine.slots}

    # Sizes in beats ----------------------------------------------------------------------------

    @property
    def axi_bits(self) -> int:
        return self.engines[0].config.axi_bits

    @property
    def beat_bytes(self) -> int:
        return self.axi_bits // 8

    @property
    def floats(self) -> int:
        return self.axi_bits // FLOAT_BITS

    @property
    def max_tokens(self) -> int:
        return self.engines[0].config.max_tokens

    @property
    def context(self) -> int:
        return self.config.context or min(self.model.max_position_embeddings, MAX_CONTEXT)

    def beats(self, values: int, bits: int = FLOAT_BITS) -> int:
        """Beats of a vector that starts on a beat."""
        return ceil_div(values * bits, self.axi_bits)

    def words(self, values: int) -> int:
        """Words of vector_lanes beats of a float32 vector on chip."""
        return ceil_div(values, self.floats * self.config.vector_lanes)

    @property
    def head_beats(self) -> int:
        """Beats of one attention head."""
        return self.beats(self.model.head_dim)

    @property
    def angle_beats(self) -> int:
        """Beats of the cosines and sines of one position."""
        return 2 * self.beats(self.model.head_dim // 2)

    @property
    def norm_beats(self) -> int:
        """Beats of the norms of one layer: input, post attention, and those of q and k."""
        heads = 2 * self.head_beats if self.model.qk_norm else 0
        return 2 * self.beats(self.model.hidden_size) + heads

    @property
    def norm_base(self) -> int:
        """First beat of the norms of layer 0 behind port `constants`."""
        return self.context * self.angle_beats

    @property
    def final_norm_base(self) -> int:
        return self.norm_base + self.model.num_hidden_layers * self.norm_beats

    @property
    def constant_beats(self) -> int:
        return self.final_norm_base + self.beats(self.model.hidden_size)

    @property
    def vocab_rows(self) -> int:
        """Rows of head or embedding behind each port; word i is row i / ports of port i % ports."""
        return ceil_div(self.model.vocab_size, self.config.vocab_ports)

    def row_beats(self, kind: str) -> int:
        """Beats of a stored row, with the scale that int8 rows end in."""
        bits = self.model.hidden_size * STORED_BITS[kind] + (SCALE_BITS if kind == "I8" else 0)
        return ceil_div(bits, self.axi_bits)

    @property
    def embed_base(self) -> int:
        """First beat of the embedding behind a vocabulary port, after the head's unless tied."""
        if self.model.tie_word_embeddings:
            return 0
        return self.vocab_rows * self.row_beats(self.head_kind)

    @property
    def vocab_beats(self) -> int:
        return self.embed_base + self.vocab_rows * self.row_beats(self.embed_kind)

    @property
    def cache_rows(self) -> int:
        """Rows of a key head behind each port; position i is row i / ports of port i % ports."""
        return ceil_div(self.context, self.config.kv_ports)

    @property
    def cache_beats(self) -> int:
        """Beats of the keys, or of the values, of all layers behind each port."""
        model = self.model
        heads = model.num_hidden_layers * model.num_key_value_heads
        return heads * self.cache_rows * self.head_beats

    @property
    def cache_names(self) -> list[str]:
        return [
            f"{kind}_cache_{p}" for kind in ("key", "value") for p in range(self.config.kv_ports)
        ]

    @property
    def vocab_names(self) -> list[str]:
        return [f"vocab_{p}" for p in range(self.config.vocab_ports)]

    def image_beats(self) -> dict[str, int]:
        """Image name -> beats."""
        names = dict.fromkeys(self.vocab_names, self.vocab_beats)
        return {**names, "constants": self.constant_beats}

    def run_beats(self) -> dict[str, int]:
        """Memory that a run reads or writes beside the images, by argument."""
        logits = self.beats(self.model.vocab_size)
        words = self.beats(self.context)
        return {
            **dict.fromkeys(self.cache_names, self.cache_beats),
            "prompt": words,
            "chosen": words,
            "logits": self.max_tokens * logits,
        }

    # The LUT linear before the head ------------------------------------------------------------

    @property
    def slices(self) -> int:
        """Slices of the LUT linear before the head; 0 without one."""
        return sum(is_slice(name) for engine in self.engines for name in engine.slots)

    @property
    def screened(self) -> bool:
        """A LUT linear says which rows of the head are read."""
        return self.slices > 0

    @property
    def slice_width(self) -> int:
        """Words of a slice."""
        return self.slice_kind.out_features if self.screened else 0

    @property
    def slice_kind(self) -> LayerKind:
        engine, kind, _ = self.slice_place
        return self.engines[engine].kinds[kind]

    @property
    def slice_place(self) -> tuple[int, int, int]:
        """(engine, kind, slot) of the first slice."""
        engine = self._owners()[slice_name(0)]
        return (engine, *self.engines[engine].slots[slice_name(0)])

    # The schedule ------------------------------------------------------------------------------

    def places(self) -> list[list[tuple[int, int, int]]]:
        """(engine, kind, slot) by projection and layer."""
        owners = self._owners()
        out: list[list[tuple[int, int, int]]] = [[] for _ in PROJECTIONS]
        for layer in range(self.model.num_hidden_layers):
            for p, shape in enumerate(self.model.layer_linears(layer)):
                engine = owners[shape.name]
                out[p].append((engine, *self.engines[engine].slots[shape.name]))
        return out

    def head_calls(self, engine: int) -> list[tuple[int, int]]:
        """(kind, slot) of what it runs for the head, after all layers."""
        slots = self.engines[engine].slots
        return [slots[name] for name in map(slice_name, range(self.slices)) if name in slots]

    # Rendering ---------------------------------------------------------------------------------

    def constants(self) -> list[tuple[str, str, Any, str]]:
        """(C++ type, name, value, explanation) of the configuration struct."""
        model, config = self.model, self.config
        rows: list[tuple[str, str, Any, str]] = [
            ("int", "AXI_BITS", self.axi_bits, "bits of a memory beat"),
            ("int", "MAX_TOKENS", self.max_tokens, "tokens of a part"),
            ("int", "VECTOR_LANES", config.vector_lanes, "beats of a word of vectors on chip"),
            ("int", "LAYERS", model.num_hidden_layers, ""),
            ("int", "HIDDEN_SIZE", model.hidden_size, ""),
            ("int", "INTERMEDIATE_SIZE", model.intermediate_size, ""),
            ("int", "HEADS", model.num_attention_heads, "of queries"),
            ("int", "KV_HEADS", model.num_key_value_heads, "of keys and values"),
            ("int", "HEAD_DIM", model.head_dim, ""),
            ("int", "QUERY_TOKENS", config.query_tokens, "tokens that share the keys read"),
            ("int", "KV_PORTS", config.kv_ports, "ports that hold keys, and again values"),
            ("bool", "QK_NORM", str(model.qk_norm).lower(), "queries and keys are normalised"),
            ("int", "VOCAB_SIZE", model.vocab_size, "words"),
            ("int", "VOCAB_PORTS", config.vocab_ports, "ports that hold rows of head, embedding"),
            ("int", "CONTEXT", self.context, "positions"),
            ("int", "HEAD_BITS", STORED_BITS[self.head_kind], "of a stored value of the head"),
            ("bool", "HEAD_BF16", str(self.head_kind == "BF16").lower(), "not float16"),
            ("bool", "SCREENED", str(self.screened).lower(), "a LUT linear before the head"),
            (
                "float",
                "HEAD_MARGIN",
                f"{float(self.head_margin)!r}f",
                "rows read below the largest",
            ),
            ("int", "SLICES", self.slices, "of that linear"),
            ("int", "SLICE_WIDTH", self.slice_width, "words of a slice"),
            ("int", "HEAD_LIMIT", hidden_limit(model.hidden_size), "largest integer of int8 heads"),
            ("int", "EMBED_BITS", STORED_BITS[self.embed_kind], "of one of the embedding"),
            ("bool", "EMBED_BF16", str(self.embed_kind == "BF16").lower(), "not float16"),
            ("int", "EMBED_BASE", self.embed_base, "first beat of the embedding"),
            ("int", "NORM_BASE", self.norm_base, "first beat of layer 0, after the angles"),
            ("int", "NORM_BEATS", self.norm_beats, "from one layer's norms to the next"),
            ("float", "EPS", f"{model.rms_norm_eps!r}f", "of the norms"),
            ("float", "SCORE_SCALE", f"{model.head_dim**-0.5!r}f", "of attention"),
        ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        return {
            "config": dataclasses.asdict(self.config),
            "model": dataclasses.asdict(self.model),
            "embed_kind": self.embed_kind,
            "head_kind": self.head_kind,
            "head_margin": self.head_margin,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], engines: Sequence[EngineDesign]) -> DecoderDesign:
        known = {"config", "model", "embed_kind", "head_kind", "head_margin"}
        reject_unknown("decoder", values, known)
        return cls(
            config=DecoderConfig(**values["config"]),
            model=ModelConfig(**values["model"]),
            embed_kind=values["embed_kind"],
            head_kind=values["head_kind"],
            engines=tuple(engines),
            head_margin=float(values["head_margin"]),
        )
