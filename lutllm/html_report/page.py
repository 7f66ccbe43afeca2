"""Facts put into the template: one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from lutllm.html_report import charts
from lutllm.html_report.facts import Facts
from lutllm.html_report.verdicts import RULES, LinearError
from lutllm.version import __version__

_TEMPLATES = Path(__file__).parent / "templates"
#: Linears listed by name under the heat map.
_WORST = 8
#: Between a number and its unit: a blank that does not break the line.
_JOIN = "\N{NO-BREAK SPACE}"


def render(artifacts: list[Facts]) -> str:
    """The page about `artifacts`: details of the first, all of them compared."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": human_bytes, "percent": percent, "measured": measured}
    environment.globals |= {"symbols": charts.SYMBOLS, "colours": charts.error_colours}
    first = artifacts[0]
    return environment.get_template("report.html.j2").render(
        version=__version__,
        facts=first,
        artifacts=artifacts,
        parts=list(zip(first.part_bytes.items(), charts.PALETTE, strict=False)),
        heat=heat_rows(first.errors),
        projections=list(dict.fromkeys(e.projection for e in first.errors)),
        worst=worst(first.errors),
        remedy=remedy(first),
        tally={word: sum(e.verdict == word for e in first.errors) for word in charts.SYMBOLS},
        rules=RULES,
        usage=usage_rows(first),
        distillation=distillation_plot(first),
        pareto=pareto_plot(artifacts),
    )


def heat_rows(errors: list[LinearError]) -> list[tuple[int, list[LinearError]]]:
    """Layer and its linears, in the order of the layers."""
    rows: dict[int, list[LinearError]] = {}
    for error in errors:
        rows.setdefault(error.layer, []).append(error)
    return sorted(rows.items())


def worst(errors: list[LinearError]) -> list[LinearError]:
    """Linears that are not good, and outliers, the largest error first."""
    found = [e for e in errors if e.verdict != "good" or e.outlier]
    return sorted(found, key=lambda e: -e.error)[:_WORST]


def remedy(facts: Facts) -> str | None:
    """The option that spends more bits on the worst linear, None where there is none to add."""
    found = worst(facts.errors)
    if not found:
        return None
    stages = facts.quant.for_linear(found[0].name).weight_stages
    return f"--override '{found[0].name}:weight_stages={stages + 1}'" if stages < 4 else None


def usage_rows(facts: Facts) -> list[dict[str, Any]]:
    """Usage by projection: the mean over layers, and the layer that uses the fewest."""
    rows = []
    for projection in dict.fromkeys(u.name.rsplit(".", 1)[-1] for u in facts.usage):
        found = [u for u in facts.usage if u.name.endswith(f".{projection}")]
        least = min(found, key=lambda u: u.effective)
        rows.append(
            {
                "projection": projection,
                "centroids": max(u.centroids for u in found),
                "effective": sum(u.effective for u in found) / len(found),
                "unused": sum(u.unused for u in found) / len(found),
                "least": least.effective,
                "least_name": least.name,
            }
        )
    return rows


def distillation_plot(facts: Facts) -> Any:
    """Divergence on held-out text against steps; None where there was no distillation."""
    if len(facts.distillation) < 2:
        return None
    points = [charts.Point(f"{value:.3f}", step, value) for step, value in facts.distillation]
    return charts.scatter(points, "steps", "divergence from the float model, nats")


def pareto_plot(artifacts: list[Facts]) -> Any:
    """Perplexity over that of the float model against bits; None for fewer than two points."""
    points = []
    for facts in artifacts:
        ratio, bits = facts.perplexity_ratio, facts.report.get("bits_per_weight")
        if ratio is not None and bits is not None:
            points.append(charts.Point(facts.name, bits, ratio))
    if len(points) < 2:
        return None
    return charts.scatter(points, "bits per weight, codebooks included", "perplexity ratio")


def human_bytes(count: float) -> str:
    """A size as people read it: "1.5 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g}{_JOIN}{unit}"
        count /= 1000
    return f"{count:.3g}{_JOIN}GB"


def percent(value: float) -> str:
    """A share: whole numbers from 10 % on, else two digits, and two decimals at most."""
    shown = 100 * value
    text = f"{shown:.0f}" if shown >= 10 else f"{shown:.2g}" if shown >= 0.1 else f"{shown:.2f}"
    return f"{text}{_JOIN}%"


def measured(value: float | None, stderr: float | None = None, digits: int = 2) -> str:
    """A number with its standard error, or that it was not measured."""
    if value is None:
        return "not measured"
    return f"{value:.{digits}f}" + ("" if stderr is None else f" ± {stderr:.{digits}f}")
