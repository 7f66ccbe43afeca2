"""Is the error of a linear good, to be watched or bad: by its size, its baseline and its peers."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

#: Share of the output's energy that is error. Below NEGLIGIBLE nothing else is asked; from LARGE on
#: the linear is watched, from HALF on it is bad.
NEGLIGIBLE, LARGE, HALF = 0.01, 0.25, 0.5
#: Share of the round-to-nearest error that must be undercut to be good.
MARGIN = 0.8
#: An outlier has so many times the median error of the same projection in other layers.
OUTLIER = 3.0

RULES = (
    f"bad: at least {HALF:.0%} of the output's energy, or no better than round-to-nearest",
    f"watch: at least {LARGE:.0%}, or above {MARGIN:.0%} of the round-to-nearest error, or "
    f"{OUTLIER:g} times the median of the same projection",
    f"good: everything else, and all below {NEGLIGIBLE:.0%}",
)


@dataclass(frozen=True)
class LinearError:
    """Error of one linear beside round-to-nearest of its weights at like bits.

    error, rtn: |difference|^2 / |float output|^2.
    """

    name: str
    layer: int
    projection: str
    error: float
    rtn: float
    rtn_bits: int
    outlier: bool
    verdict: str


def linear_errors(layers: list[dict[str, Any]]) -> list[LinearError]:
    """`layers` of report.json with a verdict on each linear."""
    found = [
        (record["layer"], linear["name"].rsplit(".", 1)[-1], linear)
        for record in layers
        for linear in record["linears"]
    ]
    by_projection: dict[str, list[float]] = {}
    for _, projection, linear in found:
        by_projection.setdefault(projection, []).append(linear["relative_error"])
    out = []
    for layer, projection, linear in found:
        error, rtn = linear["relative_error"], linear["rtn_relative_error"]
        outlier = is_outlier(error, by_projection[projection])
        bits = linear["rtn_bits"]
        word = verdict(error, rtn, outlier)
        out.append(LinearError(linear["name"], layer, projection, error, rtn, bits, outlier, word))
    return out


def is_outlier(error: float, peers: list[float]) -> bool:
    """peers: the errors of the same projection in all layers; three are too few to tell."""
    return len(peers) > 3 and error >= max(NEGLIGIBLE, OUTLIER * median(peers))


def verdict(error: float, rtn: float, outlier: bool) -> str:
    if error < NEGLIGIBLE:
        return "good"
    if error >= HALF or error >= rtn:
        return "bad"
    if error >= LARGE or error > MARGIN * rtn or outlier:
        return "watch"
    return "good"
