"""The most accurate recipe within a budget of size, by what is recorded of the recipes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lutllm.accuracy import Record, records
from lutllm.checkpoint import Checkpoint
from lutllm.errors import ConfigError
from lutllm.recipes import RECIPES, recipe
from quant.pipeline import artifact_sizes


@dataclass(frozen=True)
class SizeBudget:
    """What an artifact may take; None = no limit, one must be given.

    max_bits  per weight of the linears, codebooks and scales included
    max_mb    of the whole artifact, in 10^6 bytes
    """

    max_bits: float | None = None
    max_mb: float | None = None

    def __post_init__(self) -> None:
        limits = {"max_bits": self.max_bits, "max_mb": self.max_mb}
        if all(limit is None for limit in limits.values()):
            raise ConfigError("recipe 'auto' needs a budget; give max_bits or max_mb")
        for name, limit in limits.items():
            if limit is not None and not limit > 0:
                raise ConfigError(f"{name} is {limit:g}; it must be above 0")

    def __str__(self) -> str:
        limits = [f"{self.max_bits:g} bits a weight"] if self.max_bits is not None else []
        limits += [f"{self.max_mb:g} MB"] if self.max_mb is not None else []
        return " and ".join(limits)

    def holds(self, bits: float, size: int) -> bool:
        """bits per weight, size in bytes."""
        enough_bits = self.max_bits is None or bits <= self.max_bits
        return enough_bits and (self.max_mb is None or size <= 1e6 * self.max_mb)


@dataclass(frozen=True)
class RecipeChoice:
    """A recipe, what an artifact made with it takes, and why it was chosen."""

    recipe: str
    bits_per_weight: float
    artifact_bytes: int
    recorded_ratio: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def choose_recipe(
    checkpoint: Checkpoint, budget: SizeBudget, head: str | None = None
) -> RecipeChoice:
    """The recipe of least recorded perplexity ratio whose artifact stays within the budget.

    head  of `QuantConfig`, in place of the recipe's
    Recipes without a recorded ratio are not considered, and named in the reason. ConfigError where
    none fits, with the size of the smallest.
    """
    record = records()[0]
    passed: list[str] = []
    for name in sorted(record.ratios, key=lambda name: record.ratios[name]):
        bits, size = _size(checkpoint, name, head)
        if budget.holds(bits, size):
            ratio = record.ratios[name]
            reasons = [f"the least perplexity within {budget}: {ratio:g} times float, "]
            reasons += [record.title, *(f"; {words}" for words in passed), _not_considered(record)]
            return RecipeChoice(name, bits, size, ratio, "".join(reasons))
        passed.append(_takes(name, bits, size))
    raise ConfigError(f"no recipe fits {budget}: {'; '.join(passed)}{_not_considered(record)}")


def _size(checkpoint: Checkpoint, name: str, head: str | None) -> tuple[float, int]:
    """Bits per weight and bytes of the artifact, without the tokenizer's files."""
    sizes = artifact_sizes(checkpoint, recipe(name).quant(head=head))
    bits = sizes["linear_bytes"] * 8 / sizes["linear_weights"]
    return bits, sizes["linear_bytes"] + sizes["float_bytes"]


def _takes(name: str, bits: float, size: int) -> str:
    return f"{name} takes {bits:.2f} bits and {size / 1e6:.3g} MB"


def _not_considered(record: Record) -> str:
    names = [name for name in RECIPES if name not in record.ratios]
    return f"; not considered, since not measured: {', '.join(names)}" if names else ""
