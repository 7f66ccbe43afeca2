"""Named configurations, for the command line and for code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lutllm.config import HEAD_LINEAR, HEADS, LutConfig, QuantConfig
from lutllm.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """A configuration of every linear with named exceptions (`QuantConfig`), and what it is for.

    head  of `QuantConfig`; int8 rows cost next to no perplexity (docs/BENCHMARKS.md) and halve
          what the head reads
    """

    config: LutConfig
    purpose: str
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    head: str = "int8"

    def quant(self, seed: int = 0, head: str | None = None) -> QuantConfig:
        """The configuration; head: another one than the recipe's."""
        return with_head(QuantConfig(self.config, self.overrides, seed), head or self.head)


#: A linear of 2 index bits before the rows of a head. Groups are large: a vocabulary has rows
#: enough to fill them, and codebooks cost next to nothing then.
LUT_HEAD = LutConfig(scheme="weight", group_size=4096, block_positions=4, table_bits=16)
#: Measured: its logits are off by about 1, and words this far below the largest matter little
#: (docs/BENCHMARKS.md).
HEAD_MARGIN = 10.0


#: Heads to choose from: those of `QuantConfig`, and "engine", a "lut" whose linear is coded like
#: the layers, so that an FPGA runs it on the engine that it has.
HEAD_CHOICES = (*HEADS, "engine")


def with_head(config: QuantConfig, head: str) -> QuantConfig:
    """`config` with another head, one of HEAD_CHOICES.

    What no override says of its LUT linear is that of LUT_HEAD, with "engine" that of the layers,
    in one stage.
    """
    overrides = config.overrides
    coded = head in ("lut", "engine")
    if coded:
        like_layers = dataclasses.replace(config.default, act_stages=1, weight_stages=1)
        own = LUT_HEAD if head == "lut" else like_layers
        rest = {k: v for k, v in overrides.items() if k != HEAD_LINEAR}
        overrides = {HEAD_LINEAR: own.to_dict() | overrides.get(HEAD_LINEAR, {})} | rest
    return dataclasses.replace(
        config,
        head="lut" if coded else head,
        head_margin=HEAD_MARGIN if coded else 0.0,
        overrides=overrides,
    )


#: Of scheme "co". Four positions under one exponent: of sixteen, one with large values would leave
#: the others little resolution.
_BLOCK = 4
#: Rows that share a codebook where codebooks of several stages would take half a bit a weight and
#: more. Measured: what it saves costs a fraction of what indices of as many bits would bring.
_LARGE_GROUP = 1024
#: With three stages, so that codebooks of a small model stay below half a bit a weight.
_LARGEST_GROUP = 4096


def _by_weight(weight_stages: int, **changes: Any) -> LutConfig:
    """Weights coded alone. Entries of 16 bits hold every dot product, so that nothing is rounded
    behind the activations (`quant.exact`), and a CPU multiplies where that is faster.

    Rotated inputs leave less to lose in int8 and all positions much the same distribution, for
    which 16 of them share a codebook: a hundredth of a bit a weight. All have one exponent then,
    for however many positions it is stored.
    """
    return LutConfig(
        scheme="weight",
        weight_stages=weight_stages,
        table_bits=16,
        wide_stages=4,  # those that an option adds as well
        group_size=_LARGE_GROUP,
        codebook_positions=16,
        rotation=512,
        **changes,
    )


#: Activation codebooks of two stages do not follow tails, which inputs of these have. Measured:
#: with one stage the codebook of each position does better on what channels and tails differ in.
_ROTATED = {f"*.{name}": {"rotation": 512} for name in ("o_proj", "down_proj")}


def _coded_wide(weight_stages: int, group_size: int) -> LutConfig:
    """Activations coded as well. One width for all linears: with stored tables an engine on a board
    has entries of one width, and two widths would be two engines."""
    return LutConfig(
        block_positions=_BLOCK,
        group_size=group_size,
        token_scale=True,
        act_stages=2,
        weight_stages=weight_stages,
        table_bits=16,
        wide_stages=weight_stages,
    )


RECIPES = {
    "paper": Recipe(
        LutConfig(block_positions=_BLOCK, token_scale=True),
        "the published setting: activations and weights coded, 2 index bits",
    ),
    "tiny": Recipe(
        _by_weight(1),
        "weights coded, 2 index bits per weight, rows computed",
    ),
    "balanced": Recipe(
        _by_weight(2, weight_centroids=8),
        "weights coded in two stages of 8 centroids, of 16 in attention, some 3.2 index bits",
        {f"*.{name}": {"weight_centroids": 16} for name in ("qkv_proj", "o_proj")},
    ),
    "accurate": Recipe(
        _by_weight(2),
        "weights coded in two stages, 4 index bits",
    ),
    "lossless": Recipe(
        _by_weight(3),
        "weights coded in three stages, 6 index bits",
    ),
    "balanced-co": Recipe(
        LutConfig(
            block_positions=_BLOCK,
            token_scale=True,
            act_stages=2,
            weight_stages=2,
            weight_centroids=8,
        ),
        "as balanced, activations coded in two stages",
        _ROTATED,
    ),
    "accurate-co": Recipe(
        _coded_wide(2, _LARGE_GROUP), "as accurate, activations coded in two stages", _ROTATED
    ),
    "lossless-co": Recipe(
        _coded_wide(3, _LARGEST_GROUP), "as lossless, activations coded in two stages", _ROTATED
    ),
}
DEFAULT_RECIPE = "paper"
#: In place of a recipe: the most accurate one within a budget (`quant.recipe_choice`).
AUTO = "auto"


def recipe(name: str) -> Recipe:
    """The recipe `name`, or ConfigError with the names there are."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; choose one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
