"""Perplexity ratios of quantizations: recorded ones, and those that artifacts and tables state.

A ratio is the perplexity of a quantized model over that of its float model on the same text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from lutllm.artifact import read_json
from lutllm.config import QuantConfig
from lutllm.errors import ConfigError
from lutllm.recipes import RECIPES, recipe

_RECORDED = Path(__file__).with_name("recorded_accuracy.json")
#: Keys that a report of `lutllm quantize` has and a table of ratios has not.
_REPORT_KEYS = {"quantization", "artifact_hash"}


@dataclass(frozen=True)
class Ratios:
    """Ratios by name of a quantization, and where they come from, in words."""

    values: dict[str, float]
    source: str

    def unknown(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self.values]


@dataclass(frozen=True)
class Record:
    """What was measured on one model and text; ratios by recipe."""

    model: str
    text: str
    ratios: dict[str, float]

    @property
    def title(self) -> str:
        return (
            f"recorded with {self.model} on {self.text} (docs/ACCURACY.md); for another model an "
            "order, not a forecast"
        )


def records() -> list[Record]:
    """All that is recorded; the first has the most recipes."""
    return [Record(**values) for values in read_json(_RECORDED, ConfigError)["records"]]


def recorded_ratios(quants: Mapping[str, QuantConfig]) -> Ratios:
    """The first record's ratio of every quantization that is one of its recipes."""
    record = records()[0]
    measured = [(recipe(name).quant(), ratio) for name, ratio in record.ratios.items()]
    values = {n: ratio for n, q in quants.items() for own, ratio in measured if _same(q, own)}
    return Ratios(values, record.title)


def read_ratios(sources: Sequence[str | Path], quants: Mapping[str, QuantConfig]) -> Ratios:
    """Ratios of `quants` from artifacts, reports, JSON tables {recipe: ratio}, recorded models.

    An artifact's ratio belongs to the quantization it was made with. ConfigError where a source
    has no usable ratio, names what is none, or contradicts another.
    """
    values: dict[str, float] = {}
    for source in sources:
        for name, ratio in _read(source, quants).items():
            if values.setdefault(name, ratio) != ratio:
                raise ConfigError(
                    f"{source}: {name} has the ratio {ratio:.4g} here and {values[name]:.4g} in "
                    "another source of accuracy; give one"
                )
    words = ", ".join(str(source) for source in sources)
    return Ratios({name: values[name] for name in quants if name in values}, words)


def measured_ratio(report: Mapping[str, Any]) -> float | None:
    """The ratio a report.json states; None where the perplexities were not measured."""
    before, after = (report.get(f"perplexity_{when}") for when in ("before", "after"))
    return after / before if _is_ratio(before) and _is_ratio(after) else None


def _is_ratio(value: Any) -> TypeGuard[float]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _same(a: QuantConfig, b: QuantConfig) -> bool:
    """The same choices; the seed is none of them."""
    return dataclasses.replace(a, seed=0) == dataclasses.replace(b, seed=0)


def _read(source: str | Path, quants: Mapping[str, QuantConfig]) -> dict[str, float]:
    path = Path(source)
    if not path.exists():
        for record in records():
            if record.model == str(source):
                return record.ratios
        known = ", ".join(record.model for record in records())
        raise ConfigError(
            f"{source}: no such file or folder; give an artifact, its report.json, a JSON table "
            f"{{recipe: ratio}}, or one of the recorded models {known}"
        )
    path = path / "report.json" if path.is_dir() else path
    content = read_json(path, ConfigError)
    if _REPORT_KEYS & set(content):
        return _from_report(path, content, quants)
    return _from_table(path, content, quants)


def _from_report(
    path: Path, report: dict[str, Any], quants: Mapping[str, QuantConfig]
) -> dict[str, float]:
    ratio = measured_ratio(report)
    if ratio is None:
        raise ConfigError(
            f"{path}: has no perplexities before and after; `lutllm quantize` measures them unless "
            "--eval-tokens is 0"
        )
    try:
        made_with = QuantConfig.from_dict(report["quantization"])
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as cause:
        raise ConfigError(f"{path}: its quantization cannot be read ({cause})") from None
    names = [name for name, quant in quants.items() if _same(quant, made_with)]
    if not names:
        raise ConfigError(
            f"{path}: made with another quantization than {', '.join(quants)}; add its recipe to "
            "the search, or leave it out"
        )
    return dict.fromkeys(names, ratio)


def _from_table(
    path: Path, table: dict[str, Any], quants: Mapping[str, QuantConfig]
) -> dict[str, float]:
    if not table:
        raise ConfigError(f"{path}: holds no ratio; write {{recipe: ratio}}")
    for name, ratio in table.items():
        if name not in RECIPES and name not in quants:
            raise ConfigError(f"{path}: {name!r} is no recipe; choose from {', '.join([*RECIPES])}")
        if not _is_ratio(ratio):
            raise ConfigError(
                f"{path}: the ratio of {name} is {ratio!r}; it must be a number above 0"
            )
    return table
