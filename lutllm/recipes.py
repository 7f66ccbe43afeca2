"""Named configurations, for the command line and for code."""

from __future__ import annotations

from dataclasses import dataclass

from lutllm.config import LutConfig
from lutllm.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """A configuration of every linear, and what it is for."""

    config: LutConfig
    purpose: str


#: Four positions under one exponent: of sixteen, one with large values would leave the others
#: little resolution.
_BLOCK = 4

RECIPES = {
    "paper": Recipe(
        LutConfig(block_positions=_BLOCK),
        "the published setting: activations and weights coded, 2 index bits",
    ),
    "tiny": Recipe(
        LutConfig(scheme="weight", block_positions=_BLOCK),
        "weights coded, 2 index bits per weight, rows computed",
    ),
    "balanced": Recipe(
        LutConfig(scheme="weight", block_positions=_BLOCK, weight_centroids=64),
        "weights coded, 3 index bits",
    ),
    "accurate": Recipe(
        LutConfig(scheme="weight", block_positions=_BLOCK, weight_stages=2),
        "weights coded in two stages, 4 index bits",
    ),
    "lossless": Recipe(
        LutConfig(scheme="weight", block_positions=_BLOCK, weight_centroids=32, weight_stages=2),
        "weights coded in two stages, 5 index bits",
    ),
}
DEFAULT_RECIPE = "paper"


def recipe(name: str) -> Recipe:
    """The recipe `name`, or ConfigError with the names there are."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; choose one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
