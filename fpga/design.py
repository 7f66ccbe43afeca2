"""The LUT linear engine as data: what is chosen, what follows, where every number lies in memory.

`EngineConfig` holds the choices. `EngineDesign` joins them with the quantization of the layers the
engine runs; it renders the C++ configuration struct and is what memory images and performance
models are computed from. Sizes here mirror `fpga/hls/engine.h`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lutllm.config import METRICS, LutConfig, reject_unknown
from lutllm.errors import ConfigError

ROW_MODES = ("auto", "table", "online")
#: Cycles between writing a buffer and reading it back, in every engine (engine.h MIN_DISTANCE).
MIN_DISTANCE = 4
GATHER_INDEX_BITS = 16
#: Ports that the parameters of an engine may be spread over.
PARAMETER_PORTS = (1, 2, 4, 8, 16)
#: Widest word a kernel may have: the largest AP_INT_MAX_W of Vitis HLS.
MAX_WORD_BITS = 4096
FLOAT_BITS = 32


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two_at_least(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def bits_for(count: int) -> int:
    """Bits that tell `count` values apart, at least one."""
    return max(1, (count - 1).bit_length())


@dataclass(frozen=True)
class Packing:
    """How words of `bits` bits lie in memory beats of `axi_bits` (engine.h `Packing`)."""

    bits: int
    axi_bits: int

    @property
    def slot_bytes(self) -> int:
        """Bytes from one word to the next."""
        if self.bits > self.axi_bits:
            return ceil_div(self.bits, self.axi_bits) * self.axi_bits // 8
        return max(8, power_of_two_at_least(self.bits)) // 8

    @property
    def per_beat(self) -> int:
        return max(1, self.axi_bits // 8 // self.slot_bytes)

    @property
    def beats_per_word(self) -> int:
        return ceil_div(self.bits, self.axi_bits)

    def beats(self, words: int) -> int:
        if self.bits > self.axi_bits:
            return words * self.beats_per_word
        return ceil_div(words, self.per_beat)


@dataclass(frozen=True)
class EngineConfig:
    """The choices that shape an engine.

    channels         memory channels, each with its own port, search, rows and look-up
    centroid_ports   ports that feed activation centroids, shared evenly by the channels
    parameter_ports  ports that scales, exponents and gather indices are spread over: a beat of each
                     in a cycle, so that none of them keeps the channel behind the same memory port
                     waiting
    search_segments  parallel chains of a search
    search_chain     processing elements per chain
    lanes_per_cycle  outputs that a channel looks up in a cycle (rounded down to divide group_size)
    axi_bits         width of a memory beat
    gather_lanes     activations gathered in a cycle
    max_tokens       tokens of one run; a decoder prefills twice as many at once, in two parts
    max_outputs      outputs the accumulators hold; 0 = those of the widest linear
    rows             "table": streamed, or fetched for the code found; "online": computed from the
                     codebook; "auto": table where activations are coded, online elsewhere
    read_ahead       bursts under way per channel
    beat_fifo        beats that a channel's streams hold
    index_fifo       words of indices, for lanes_per_cycle outputs each, that a channel holds ahead
                     of its look-ups: what it reads while the engine waits for activations
    """

    channels: int = 16
    centroid_ports: int = 4
    parameter_ports: int = 1
    search_segments: int = 4
    search_chain: int = 2
    lanes_per_cycle: int = 128
    axi_bits: int = 256
    gather_lanes: int = 8
    max_tokens: int = 32
    max_outputs: int = 0
    rows: str = "auto"
    read_ahead: int = 4
    beat_fifo: int = 32
    index_fifo: int = 32

    def __post_init__(self) -> None:
        for name, low, high in (
            ("channels", 1, 64),
            ("centroid_ports", 1, 64),
            ("search_segments", 1, 64),
            ("search_chain", 1, 256),
            ("lanes_per_cycle", 1, 4096),
            ("axi_bits", 64, 512),
            ("gather_lanes", 1, 64),
            ("max_tokens", 1, 1024),
            ("max_outputs", 0, 1 << 20),
            ("read_ahead", 1, 16),
            ("beat_fifo", 2, 1024),
            ("index_fifo", 4, 4096),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(
                    f"engine config: {name} is {value!r}; it must be a whole number {low} to {high}"
                )
        if self.rows not in ROW_MODES:
            raise ConfigError(
                f"engine config: rows is {self.rows!r}; choose one of {', '.join(ROW_MODES)}"
            )
        if self.parameter_ports not in PARAMETER_PORTS:
            raise ConfigError(
                f"engine config: parameter_ports is {self.parameter_ports!r}; choose 1, 2, 4, 8 or "
                "16"
            )
        if self.axi_bits & (self.axi_bits - 1):
            raise ConfigError(
                f"engine config: axi_bits is {self.axi_bits}; choose 64, 128, 256 or 512"
            )
        if self.channels % self.centroid_ports:
            raise ConfigError(
                f"engine config: {self.channels} channels do not share {self.centroid_ports} "
                "centroid_ports evenly; choose a divisor"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EngineConfig:
        reject_unknown("engine config", values, {f.name for f in dataclasses.fields(cls)})
        return cls(**values)


@dataclass(frozen=True)
class LayerKind:
    """Linears of one shape that an engine runs; `names[slot]` is the linear in slot `slot`."""

    name: str
    in_features: int
    out_features: int
    act_stages: int
    weight_stages: int
    table_bits: int
    wide_stages: int
    token_scale: bool
    rotation: int
    bias: bool
    names: tuple[str, ...]

    @property
    def struct_name(self) -> str:
        """The name of its C++ struct: qkv_proj -> QkvProj."""
        return "".join(part.capitalize() for part in self.name.split("_"))

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "names": list(self.names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerKind:
        reject_unknown("layer kind", values, {f.name for f in dataclasses.fields(cls)})
        return cls(**{**values, "names": tuple(values["names"])})


@dataclass(frozen=True)
class EngineDesign:
    """An engine for linears that share everything in `lut` but stages and, where rows are computed,
    size of weight codebooks and width of entries: `lut` has the most that any of its kinds has.
    """

    name: str
    config: EngineConfig
    lut: LutConfig
    kinds: tuple[LayerKind, ...]

    def __post_init__(self) -> None:
        if self.lut.scheme == "weight" and self.config.rows == "table":
            raise ConfigError(
                f"engine {self.name!r}: rows 'table' needs coded activations, but the scheme is "
                "'weight'; use rows 'online' or 'auto'"
            )
        self._check_words()
        for kind in self.kinds:
            if kind.in_features >= (1 << GATHER_INDEX_BITS) - self.floats:
                raise ConfigError(
                    f"engine {self.name!r}: {kind.name} has {kind.in_features} inputs; a gather "
                    f"index has {GATHER_INDEX_BITS} bits"
                )
            limit = self.config.max_outputs
            if limit and kind.out_features > limit:
                raise ConfigError(
                    f"engine {self.name!r}: {kind.name} has {kind.out_features} outputs, "
                    f"max_outputs is {limit}; raise it or set it to 0"
                )

    def _check_words(self) -> None:
        words = [
            ("lanes_per_cycle x code bits", self.index_packing, "lower lanes_per_cycle"),
            ("weight_centroids x table_bits", self.row_packing, "quantize with fewer centroids"),
            ("parameter_ports x axi_bits", self.parameter_packing, "lower parameter_ports"),
        ]
        if self.search:
            words.append(
                (
                    "centroids that a port feeds in a cycle",
                    self.centroid_packing,
                    "lower search_segments or search_chain, or raise centroid_ports",
                )
            )
        if self.online_rows:
            words.append(
                (
                    "weight_centroids x vec_len x 8",
                    self.codebook_packing,
                    "use rows 'table', or quantize with fewer centroids",
                )
            )
        for what, packing, fix in words:
            if packing.bits > MAX_WORD_BITS:
                raise ConfigError(
                    f"engine {self.name!r}: {what} is a word of {packing.bits} bits; a kernel's "
                    f"words have at most {MAX_WORD_BITS}: {fix}"
                )

    # Structure -------------------------------------------------------------------------------

    @property
    def search(self) -> bool:
        """Activations are coded."""
        return self.lut.scheme == "co"

    @property
    def token_scale(self) -> bool:
        """Tokens of some kind have scales of their own."""
        return any(kind.token_scale for kind in self.kinds)

    @property
    def online_rows(self) -> bool:
        return self.config.rows == "online" or not self.search

    @property
    def floats(self) -> int:
        """float32 values in a beat."""
        return self.config.axi_bits // FLOAT_BITS

    @property
    def beat_bytes(self) -> int:
        return self.config.axi_bits // 8

    @property
    def chain_channels(self) -> int:
        """Channels that add up one block: the divisor of `channels` that wastes the fewest slots.

        A block takes ceil(block_positions / chain_channels) rounds; of equals the longest chain.
        """
        block = self.lut.block_positions
        fits = [n for n in range(1, block + 1) if self.config.channels % n == 0]
        return min(fits, key=lambda n: (ceil_div(block, n) * n, -n))

    @property
    def chains(self) -> int:
        return self.config.channels // self.chain_channels

    @property
    def rounds_per_block(self) -> int:
        return ceil_div(self.lut.block_positions, self.chain_channels)

    @property
    def lanes(self) -> int:
        """Outputs per cycle: the largest divisor of group_size within lanes_per_cycle."""
        group = self.lut.group_size
        return max(n for n in range(1, self.config.lanes_per_cycle + 1) if group % n == 0)

    @property
    def subs_per_group(self) -> int:
        return self.lut.group_size // self.lanes

    @property
    def out_beats(self) -> int:
        """Result beats of a sub-block."""
        return ceil_div(self.lanes, self.floats)

    @property
    def pes(self) -> int:
        return self.config.search_segments * self.config.search_chain

    @property
    def search_passes(self) -> int:
        """Cycles per code."""
        return ceil_div(self.lut.act_centroids, self.pes)

    @property
    def centroid_share(self) -> int:
        return self.config.channels // self.config.centroid_ports

    @property
    def centroid_ports(self) -> int:
        return self.config.centroid_ports if self.search else 0

    @property
    def gather_steps(self) -> int:
        return ceil_div(self.config.channels * self.lut.vec_len, self.config.gather_lanes)

    # Sizes of a kind -------------------------------------------------------------------------

    def blocks(self, kind: LayerKind) -> int:
        return self.lut.num_blocks(kind.in_features)

    def rounds(self, kind: LayerKind) -> int:
        """Positions per channel."""
        return ceil_div(self.blocks(kind), self.chains) * self.rounds_per_block

    def passes(self, kind: LayerKind) -> int:
        return self.rounds(kind) * kind.act_stages * kind.weight_stages

    def subs(self, kind: LayerKind) -> int:
        """Sub-blocks of outputs, padded so that a buffer is not reread at once."""
        return max(ceil_div(kind.out_features, self.lanes), MIN_DISTANCE)

    def groups(self, kind: LayerKind) -> int:
        return ceil_div(self.subs(kind), self.subs_per_group)

    def in_beats(self, kind: LayerKind) -> int:
        return max(ceil_div(kind.in_features, self.floats), MIN_DISTANCE)

    def position_map(self, kind: LayerKind) -> np.ndarray:
        """i64[rounds, channels]: the position each channel holds in each round, -1 = padding."""
        rounds = np.arange(self.rounds(kind))[:, None]
        channels = np.arange(self.config.channels)[None, :]
        block = rounds // self.rounds_per_block * self.chains + channels // self.chain_channels
        offset = (
            rounds % self.rounds_per_block * self.chain_channels + channels % self.chain_channels
        )
        position = block * self.lut.block_positions + offset
        used = (offset < self.lut.block_positions) & (
            position < self.lut.num_positions(kind.in_features)
        )
        return np.where(used, position, -1)

    # Memory ----------------------------------------------------------------------------------

    def packing(self, bits: int) -> Packing:
        return Packing(bits, self.config.axi_bits)

    @property
    def index_packing(self) -> Packing:
        return self.packing(self.lanes * bits_for(self.lut.weight_centroids))

    @property
    def row_packing(self) -> Packing:
        return self.packing(self.lut.weight_centroids * self.lut.table_bits)

    @property
    def codebook_packing(self) -> Packing:
        return self.packing(self.lut.weight_centroids * self.lut.vec_len * 8)

    @property
    def shift_packing(self) -> Packing:
        return self.packing(8)

    @property
    def block_shift_packing(self) -> Packing:
        return self.packing(8 * self.chains)

    @property
    def centroid_packing(self) -> Packing:
        return self.packing(self.centroid_share * self.pes * self.lut.vec_len * 8)

    @property
    def parameter_packing(self) -> Packing:
        """A beat of every parameter port."""
        return self.packing(self.config.parameter_ports * self.config.axi_bits)

    @property
    def gather_packing(self) -> Packing:
        return self.packing(GATHER_INDEX_BITS * self.config.gather_lanes)

    def index_beats(self, kind: LayerKind) -> int:
        return self.index_packing.beats(self.subs(kind))

    def row_beats(self, kind: LayerKind) -> int:
        return self.row_packing.beats(self.groups(kind))

    def record_beats(self, kind: LayerKind) -> int:
        """Beats of one (round, weight stage) in a channel: indices, then what rows come from."""
        groups = self.groups(kind)
        if self.online_rows:
            rows = kind.act_stages * self.shift_packing.beats(groups)
            rows += self.codebook_packing.beats(groups)
        else:
            rows = kind.act_stages * self.lut.act_centroids * self.row_beats(kind)
        return self.index_beats(kind) + rows

    def channel_beats(self, kind: LayerKind) -> int:
        """Beats of one linear in the memory of each channel."""
        return self.rounds(kind) * kind.weight_stages * self.record_beats(kind)

    def centroid_beats(self, kind: LayerKind) -> int:
        """Beats of one linear in the memory of each centroid port."""
        if not self.search:
            return 0
        return self.centroid_packing.beats(self.rounds(kind) * kind.act_stages * self.search_passes)

    def parameter_rows(self, beats: int) -> int:
        """Rows, a beat of every parameter port each, that hold so many beats."""
        return ceil_div(beats, self.config.parameter_ports)

    def shift_beats(self, kind: LayerKind) -> int:
        return self.block_shift_packing.beats(self.passes(kind))

    def gather_beats(self, kind: LayerKind) -> int:
        return self.gather_packing.beats(self.rounds(kind) * self.gather_steps)

    def output_rows(self, kind: LayerKind) -> int:
        """Rows of output scales, or of biases: those of a sub-block start on a row."""
        return self.subs(kind) * self.parameter_rows(self.out_beats)

    def parameter_beats(self, kind: LayerKind) -> int:
        """Beats of one linear in the memory of each parameter port: input scales, block exponents,
        gather indices, output scales, biases; each starts on a row."""
        beats = (self.in_beats(kind), self.shift_beats(kind), self.gather_beats(kind))
        outputs = self.output_rows(kind) * (2 if kind.bias else 1)
        return sum(self.parameter_rows(n) for n in beats) + outputs

    def bases(self, beats_of_kind: Any) -> list[int]:
        """First beat of each kind when kinds follow one another, slot by slot."""
        out, at = [], 0
        for kind in self.kinds:
            out.append(at)
            at += len(kind.names) * beats_of_kind(kind)
        return [*out, at]

    def image_beats(self) -> dict[str, int]:
        """Beats of the three kinds of memory image."""
        return {
            "channel": self.bases(self.channel_beats)[-1],
            "centroids": self.bases(self.centroid_beats)[-1],
            "parameters": self.bases(self.parameter_beats)[-1],
        }

    def run_beats(self) -> dict[str, int]:
        """Beats of the largest input x and output y (with accumulators) of a run."""
        tokens = self.config.max_tokens
        deep = max((self.in_beats(kind) for kind in self.kinds), default=0)
        wide = max((self.subs(kind) * self.out_beats for kind in self.kinds), default=0)
        return {"x": tokens * deep, "y": 2 * tokens * wide}

    @cached_property
    def slots(self) -> dict[str, tuple[int, int]]:
        """Linear name -> (kind index, slot)."""
        return {
            name: (k, slot)
            for k, kind in enumerate(self.kinds)
            for slot, name in enumerate(kind.names)
        }

    # Rendering -------------------------------------------------------------------------------

    def constants(self, vector_lanes: int = 1) -> list[tuple[str, str, Any, str]]:
        """(C++ type, name, value, explanation) of every constant of the configuration struct.

        vector_lanes: beats of activations that come and go in a cycle.
        """
        config, lut = self.config, self.lut
        widest = max((self.subs(k) for k in self.kinds), default=MIN_DISTANCE)
        max_subs = max(widest, ceil_div(config.max_outputs, self.lanes))
        rows: list[tuple[str, str, Any, str]] = [
            ("bool", "SEARCH", self.search, "activations are coded by a search"),
            (
                "int",
                "METRIC",
                METRICS.index(lut.metric),
                "of the search: 0 squared distance, 1 largest difference",
            ),
            ("bool", "ONLINE_ROWS", self.online_rows, "rows are computed, not read"),
            ("int", "VEC_LEN", lut.vec_len, "channels per position"),
            ("int", "ACT_CENTROIDS", lut.act_centroids, "per activation codebook"),
            ("int", "WEIGHT_CENTROIDS", lut.weight_centroids, "per weight codebook"),
            ("int", "GROUP_SIZE", lut.group_size, "outputs per weight codebook"),
            ("int", "TABLE_BITS", lut.table_bits, "bits of the widest table entry"),
            ("int", "BLOCK_POSITIONS", lut.block_positions, "positions under one exponent"),
            (
                "bool",
                "TOKEN_SCALE",
                self.token_scale,
                "tokens may have scales",
            ),
            ("int", "ROTATION", lut.rotation, "floats of the longest rotation, 0 = none"),
            ("int", "MAX_ACT_STAGES", lut.act_stages, "residual stages of an activation code"),
            ("int", "MAX_WEIGHT_STAGES", lut.weight_stages, "residual stages of a weight code"),
            ("int", "CHANNELS", config.channels, "memory channels, one position each a round"),
            ("int", "CHAIN_CHANNELS", self.chain_channels, "channels that add up one block"),
            ("int", "SEARCH_SEGMENTS", config.search_segments, "parallel chains of a search"),
            ("int", "SEARCH_CHAIN", config.search_chain, "processing elements per chain"),
            ("int", "CENTROID_PORTS", config.centroid_ports, "memory ports for centroids"),
            (
                "int",
                "PARAMETER_PORTS",
                config.parameter_ports,
                "memory ports for scales and the like",
            ),
            ("int", "LANES", self.lanes, "outputs per channel and cycle"),
            ("int", "AXI_BITS", config.axi_bits, "bits of a memory beat"),
            ("int", "VECTOR_LANES", vector_lanes, "beats of activations in a cycle"),
            ("int", "GATHER_LANES", config.gather_lanes, "activations gathered per cycle"),
            ("int", "MAX_TOKENS", config.max_tokens, "tokens of one run"),
            ("int", "MAX_SUBS", max_subs, "sub-blocks of LANES outputs"),
            (
                "int",
                "MAX_IN_BEATS",
                max((self.in_beats(k) for k in self.kinds), default=MIN_DISTANCE),
                "float32 input beats of a token",
            ),
            (
                "int",
                "MAX_PASSES",
                max((self.passes(k) for k in self.kinds), default=1),
                "rounds x stages",
            ),
            (
                "int",
                "ROW_INTERVAL",
                max(self.codebook_packing.beats_per_word, min(4, self.subs_per_group)),
                "cycles to compute a row",
            ),
            ("int", "READ_AHEAD", config.read_ahead, "memory bursts under way per channel"),
            ("int", "BEAT_FIFO", config.beat_fifo, "beats a stream holds"),
            ("int", "INDEX_FIFO", config.index_fifo, "words of indices held ahead of look-ups"),
            ("int", "MIN_DISTANCE", MIN_DISTANCE, "cycles before a buffer is reread"),
        ]
        return [
            (kind, name, str(value).lower() if kind == "bool" else value, text)
            for kind, name, value, text in rows
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "config": self.config.to_dict(),
            "lut": self.lut.to_dict(),
            "kinds": [kind.to_dict() for kind in self.kinds],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EngineDesign:
        reject_unknown("engine", values, {"name", "config", "lut", "kinds"})
        return cls(
            name=values["name"],
            config=EngineConfig.from_dict(values["config"]),
            lut=LutConfig.from_dict(values["lut"]),
            kinds=tuple(LayerKind.from_dict(kind) for kind in values["kinds"]),
        )
