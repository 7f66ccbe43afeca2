"""Images of an exploration; matplotlib is imported here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fpga.performance.explore import Candidate, Exploration
from lutllm.errors import ResourceError

#: (x, y) of the panels: name on the axis, value of a candidate.
_PANELS = (
    (("decode, ms per token", "decode_ms"), ("prefill, ms", "prefill_ms")),
    (("decode, ms per token", "decode_ms"), ("joule per token", "joule_per_token")),
    (("decode, ms per token", "decode_ms"), ("share of the scarcest resource", "size")),
)
#: One more where the ratio of some candidate is known; the others are not in it.
_ACCURACY = (("decode, ms per token", "decode_ms"), ("perplexity ratio", "ratio"))


def plot_front(found: Exploration, path: Path) -> None:
    """Candidates, front and choice, in panels; the suffix of `path` names the format."""
    try:
        import matplotlib
    except ImportError:
        raise ResourceError(
            "a plot needs matplotlib, which is not installed; pip install 'lutllm[report]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    panels = (*_PANELS, _ACCURACY) if any(c.ratio for c in found.candidates) else _PANELS
    size = (5 * len(panels), 4.5)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, constrained_layout=True)
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel, found)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter(ticker.FormatStrFormatter("%g"))
            side.set_minor_formatter(ticker.NullFormatter())
    axes[0].legend()
    try:
        figure.savefig(path, metadata=_no_date(path))
    except ValueError as cause:
        raise ResourceError(f"{path}: {cause}") from None
    finally:
        pyplot.close(figure)


def _draw(axis: Any, panel: Any, found: Exploration) -> None:
    (x_name, x_key), (y_name, y_key) = panel

    def points(candidates: list[Candidate]) -> tuple[list[float], list[float]]:
        pairs = [(getattr(c, x_key), getattr(c, y_key)) for c in candidates]
        known = [(x, y) for x, y in pairs if y is not None]
        return [x for x, _ in known], [y for _, y in known]

    axis.scatter(*points(found.candidates), s=8, color="0.75", label="fits")
    axis.scatter(*points(found.front), s=18, color="tab:blue", marker="s", label="Pareto front")
    if found.chosen:
        axis.scatter(*points([found.chosen]), s=120, color="tab:red", marker="*", label="chosen")
    axis.set(xlabel=x_name, ylabel=y_name, xscale="log", yscale="log")
    axis.grid(visible=True, which="both", alpha=0.3)


def _no_date(path: Path) -> dict[str, Any]:
    """Metadata that makes the same plot the same bytes."""
    return {"Date": None} if path.suffix == ".svg" else {}
