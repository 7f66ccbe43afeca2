"""Configuration of a quantized linear layer and of a whole quantized model.

Letters, here and everywhere: T tokens, D in_features, M out_features, v vec_len, P = ceil(D / v)
positions, Ka and Kw activation and weight centroids per codebook, G group_size (output rows that
share one weight codebook), B = ceil(M / G) groups, Sa and Sw residual stages.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass, field
from typing import Any

from lutllm.errors import ConfigError

FORMAT_VERSION = 1
SCHEMES = ("co", "weight")
#: How far an activation is from a centroid: the sum of squares of the differences ("l2"), or the
#: largest of them ("chebyshev"), which needs no multiplication.
METRICS = ("l2", "chebyshev")
#: How embedding and output head are stored: in the type of the checkpoint; as int8 rows; or as int8
#: rows with the LUT linear HEAD_LINEAR, which finds the words whose rows are worth reading.
HEADS = ("source", "int8", "lut")
HEAD_LINEAR = "lm_head"
#: What keys and values may be kept as, and the numpy dtype.
KV_DTYPES = {"F32": "float32", "F16": "float16"}
MAX_HEAD_MARGIN = 1000.0

#: One further activation stage refines the grid of the stage before by this many bits.
STAGE_BITS = 3
#: Largest magnitude of a quantized activation in the units of a first-stage centroid (10 bits).
ACT_LIMIT = 511
#: Largest magnitude of a centroid's element, and of a quantized activation of scheme "weight".
CENTROID_LIMIT = 127
#: In scheme "weight", inputs up to this magnitude are zero.
TINY_INPUT = 1e-30
MAX_TABLE_BITS = 16
#: Most channels that one output of a rotation depends on.
MAX_ROTATION = 4096
#: Entries of weight stages after the first have at most this many bits: what those stages add is
#: several times smaller, and so is its rounding.
RESIDUAL_TABLE_BITS = 8


def _check_range(owner: str, name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"{owner}: {name} is {value!r}; it must be a whole number {low} to {high}"
        )


def reject_unknown(owner: str, values: dict[str, Any], known: set[str]) -> None:
    """Raise ConfigError when `values` has a key outside `known`."""
    extra = sorted(set(values) - known)
    if extra:
        raise ConfigError(f"{owner}: unknown field {extra[0]!r}; known: {', '.join(sorted(known))}")


@dataclass(frozen=True)
class LutConfig:
    """How one linear layer is cut, coded and tabulated.

    scheme          "co": activations and weights are coded, rows come from tables;
                    "weight": weights only, a row is computed from the activation itself.
    vec_len         v, channels per position
    act_centroids   Ka, per activation codebook and stage (scheme "co")
    weight_centroids Kw, per weight codebook and stage
    group_size      G, output rows per weight codebook
    codebook_positions  positions that share a weight codebook (scheme "weight", with entries that
                    hold every dot product); 1: each has its own
    act_stages      Sa, residual stages of the activation code (scheme "co")
    weight_stages   Sw, residual stages of the weight code
    table_bits      width of a signed table entry
    wide_stages     the first weight stages, with entries of table_bits; later ones have 8 at most
    block_positions positions that share one accumulator exponent
    metric          one of METRICS, by which activations find their centroid (scheme "co")
    token_scale     activations are coded relative to the largest of their token (scheme "co";
                    scheme "weight" does so whatever this says)
    rotation        channels of a block that is rotated before coding (`lutllm.rotation`), a power
                    of two; 0 = none
    """

    scheme: str = "co"
    vec_len: int = 2
    act_centroids: int = 64
    weight_centroids: int = 16
    group_size: int = 512
    codebook_positions: int = 1
    act_stages: int = 1
    weight_stages: int = 1
    table_bits: int = 8
    wide_stages: int = 1
    block_positions: int = 16
    metric: str = "l2"
    token_scale: bool = False
    rotation: int = 0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ConfigError(f"scheme is {self.scheme!r}; choose one of {', '.join(SCHEMES)}")
        if self.metric not in METRICS:
            raise ConfigError(f"metric is {self.metric!r}; choose one of {', '.join(METRICS)}")
        for name, low, high in (
            ("vec_len", 1, 8),
            ("act_centroids", 2, 256),
            ("weight_centroids", 2, 256),
            ("group_size", 1, 1 << 20),
            ("codebook_positions", 1, 1 << 20),
            ("act_stages", 1, 3),
            ("weight_stages", 1, 4),
            ("table_bits", 4, MAX_TABLE_BITS),
            ("wide_stages", 1, 4),
            ("block_positions", 1, 16),
        ):
            _check_range("quantization config", name, getattr(self, name), low, high)
        if self.scheme == "weight" and self.act_stages != 1:
            raise ConfigError(
                f"act_stages is {self.act_stages} in scheme 'weight', which does not code "
                "activations; set it to 1 or use scheme 'co'"
            )
        if self.scheme == "weight" and self.metric != "l2":
            raise ConfigError(
                f"metric is {self.metric!r} in scheme 'weight', which does not search; leave it at "
                "'l2' or use scheme 'co'"
            )
        self._check_sharing()
        self._check_scaling()

    def _check_sharing(self) -> None:
        if self.codebook_positions == 1:
            return
        if self.scheme != "weight" or not self.all_entries_exact:
            raise ConfigError(
                f"codebook_positions is {self.codebook_positions}; positions share codebooks in "
                "scheme 'weight' with table_bits and wide_stages for which entries hold every dot "
                "product; set those, or set it to 1"
            )

    def _check_scaling(self) -> None:
        if not isinstance(self.token_scale, bool):
            raise ConfigError(
                f"quantization config: token_scale is {self.token_scale!r}; it must be true or "
                "false"
            )
        size = self.rotation
        _check_range("quantization config", "rotation", size, 0, MAX_ROTATION)
        if size == 1 or size & (size - 1):
            raise ConfigError(
                f"quantization config: rotation is {size}; it must be 0 or a power of two from 2 "
                f"to {MAX_ROTATION}"
            )

    @property
    def scales_tokens(self) -> bool:
        """Every token has a scale of its own, which its results are multiplied with."""
        return self.scheme == "weight" or self.token_scale

    @property
    def act_limit(self) -> int:
        """Largest magnitude of a quantized activation."""
        largest = CENTROID_LIMIT if self.scales_tokens else ACT_LIMIT
        return largest << (STAGE_BITS * (self.act_stages - 1))

    @property
    def code_bits(self) -> int:
        """Bits of one packed weight code."""
        return max(1, (self.weight_centroids - 1).bit_length())

    def entry_bits(self, weight_stage: int) -> int:
        """Width of the table entries of a weight stage."""
        if weight_stage < self.wide_stages:
            return self.table_bits
        return min(self.table_bits, RESIDUAL_TABLE_BITS)

    def exact_entries(self, weight_stage: int) -> bool:
        """Whether table entries of a weight stage hold every dot product of integer vectors."""
        largest = CENTROID_LIMIT * CENTROID_LIMIT * self.vec_len
        return largest < 1 << (self.entry_bits(weight_stage) - 1)

    @property
    def all_entries_exact(self) -> bool:
        return all(self.exact_entries(stage) for stage in range(self.weight_stages))

    def with_table_bits(self, bits: int) -> LutConfig:
        """Entries of so many bits; where they do not hold every dot product, positions share no
        codebooks."""
        own = dataclasses.replace(self, table_bits=bits, codebook_positions=1)
        if not own.all_entries_exact:
            return own
        return dataclasses.replace(own, codebook_positions=self.codebook_positions)

    @property
    def index_bits_per_weight(self) -> float:
        return self.code_bits * self.weight_stages / self.vec_len

    def num_positions(self, in_features: int) -> int:
        return -(-in_features // self.vec_len)

    def num_groups(self, out_features: int) -> int:
        return -(-out_features // self.group_size)

    def num_codebooks(self, in_features: int) -> int:
        """Weight codebooks of a stage and group of rows."""
        return -(-self.num_positions(in_features) // self.codebook_positions)

    def num_blocks(self, in_features: int) -> int:
        return -(-self.num_positions(in_features) // self.block_positions)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LutConfig:
        reject_unknown("quantization config", values, {f.name for f in dataclasses.fields(cls)})
        return cls(**values)


@dataclass(frozen=True)
class QuantConfig:
    """The quantization of a model: a default for every linear and named exceptions.

    overrides maps a shell pattern over linear names ("*.mlp.down_proj") to the fields of LutConfig
    that differ there; later patterns win. head is one of HEADS, for embedding and output head;
    with "lut", logits at most `head_margin` below the largest are computed from int8 rows.
    """

    default: LutConfig = LutConfig()
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    seed: int = 0
    head: str = "source"
    head_margin: float = 0.0

    def __post_init__(self) -> None:
        _check_range("quantization config", "seed", self.seed, 0, 2**31 - 1)
        if self.head not in HEADS:
            raise ConfigError(f"head is {self.head!r}; choose one of {', '.join(HEADS)}")
        margin = self.head_margin
        if not isinstance(margin, int | float) or not 0 <= margin <= MAX_HEAD_MARGIN:
            raise ConfigError(
                f"quantization config: head_margin is {margin!r}; it must be 0 to {MAX_HEAD_MARGIN}"
            )
        for pattern in self.overrides:
            self.for_linear(pattern)

    @property
    def int8_rows(self) -> bool:
        """Embedding and head are int8 rows."""
        return self.head != "source"

    @property
    def lut_head(self) -> bool:
        """The LUT linear HEAD_LINEAR goes before the rows of the head."""
        return self.head == "lut"

    def for_linear(self, name: str) -> LutConfig:
        """The configuration of the linear `name`, overrides applied in order."""
        values = self.default.to_dict()
        for pattern, changes in self.overrides.items():
            if fnmatch.fnmatchcase(name, pattern) or name == pattern:
                reject_unknown(f"override {pattern!r}", changes, set(values))
                values.update(changes)
        return LutConfig.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": "lutllm",
            "format_version": FORMAT_VERSION,
            "default": self.default.to_dict(),
            "overrides": {k: dict(v) for k, v in self.overrides.items()},
            "seed": self.seed,
            "head": self.head,
            "head_margin": self.head_margin,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantConfig:
        values = dict(values)
        method = values.pop("quant_method", None)
        if method != "lutllm":
            raise ConfigError(f"quant_method is {method!r}, not 'lutllm': not a lutllm artifact")
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"artifact format version {version!r}; this lutllm reads version {FORMAT_VERSION}: "
                "quantize again or install the matching release"
            )
        reject_unknown(
            "quantization config", values, {"default", "overrides", "seed", "head", "head_margin"}
        )
        default = LutConfig.from_dict(values.get("default", {}))
        overrides, seed = values.get("overrides", {}), values.get("seed", 0)
        head, margin = values.get("head", "source"), values.get("head_margin", 0.0)
        return cls(default, overrides, seed, head, margin)
