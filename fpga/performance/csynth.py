"""An estimate beside a Vitis HLS synthesis report (csynth.xml): block by block, with the error."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpga.performance.resources import Resources
from lutllm.errors import ConfigError

#: Our name of a resource -> the report's, and how many of the report's make one of ours.
_TOOL_NAMES = {
    "lut": ("LUT", 1),
    "ff": ("FF", 1),
    "dsp": ("DSP", 1),
    "bram36": ("BRAM_18K", 2),
    "uram": ("URAM", 1),
}
#: A report is a few MB; this is no report.
MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Comparison:
    """One number of a block: estimated, reported, relative error (None where both are zero)."""

    block: str
    resource: str
    estimate: float
    tool: float

    @property
    def error(self) -> float | None:
        if self.tool == 0:
            return None if self.estimate == 0 else float("inf")
        return self.estimate / self.tool - 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "block": self.block,
            "resource": self.resource,
            "estimate": self.estimate,
            "tool": self.tool,
            "error": self.error,
        }


@dataclass(frozen=True)
class Report:
    """What we read of a report: the top's name, clock and resources; resources by block.

    blocks  sums over all instances of the functions asked for; a function with none is missing
    """

    top: str
    clock_mhz: float
    total: dict[str, float]
    blocks: dict[str, dict[str, float]]


def read_report(path: str | Path, functions: Iterable[str]) -> Report:
    """Read csynth.xml; ConfigError says what is wrong with the file."""
    path = Path(path)
    root = _parse(path)
    area = root.find("AreaEstimates/Resources")
    period = root.findtext("PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod")
    if root.tag != "profile" or area is None or period is None:
        raise ConfigError(
            f"{path}: not a Vitis HLS report (no AreaEstimates or no estimated clock); give the "
            "csynth.xml in <solution>/syn/report"
        )
    modules = {
        module.findtext("Name", ""): _resources(module.find("AreaEstimates/Resources"))
        for module in root.iterfind("ModuleInformation/Module")
    }
    blocks: dict[str, dict[str, float]] = {}
    for function, name in _instances(root, sorted(functions, key=len, reverse=True)):
        used = modules.get(name)
        if used is not None:
            found = blocks.setdefault(function, dict.fromkeys(_TOOL_NAMES, 0.0))
            for key, value in used.items():
                found[key] += value
    try:
        clock = 1000 / float(period)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{path}: the estimated clock period is {period!r}") from None
    top = root.findtext("UserAssignments/TopModelName", "")
    return Report(top, clock, _resources(area), blocks)


def _parse(path: Path) -> ET.Element:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES >> 20} MiB; not a synthesis report")
        text = path.read_bytes()
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise ConfigError(f"{path}: declares entities, which no synthesis report does")
        return ET.fromstring(text)
    except OSError as cause:
        raise ConfigError(f"{path}: cannot be read ({cause.strerror})") from None
    except ET.ParseError as cause:
        raise ConfigError(f"{path}: not valid XML ({cause})") from None


def _resources(node: ET.Element | None) -> dict[str, float]:
    out = {}
    for name, (tag, share) in _TOOL_NAMES.items():
        text = "" if node is None else node.findtext(tag, "")
        out[name] = float(text) / share if text.isdigit() else 0.0
    return out


def _instances(root: ET.Element, functions: list[str]) -> Iterator[tuple[str, str]]:
    """(function, module) of the outermost instances of the functions, whose areas add up."""
    hierarchy = root.find("RTLDesignHierarchy/TopModule")
    if hierarchy is None:  # no hierarchy in the report: one instance of every module
        for name in (node.text or "" for node in root.iterfind("ModuleInformation/Module/Name")):
            function = _function_of(name, functions)
            if function and "_Pipeline_" not in name:
                yield function, name
        return
    yield from _outermost(hierarchy, functions)


def _outermost(node: ET.Element, functions: list[str]) -> Iterator[tuple[str, str]]:
    for instance in node.iterfind("InstancesList/Instance"):
        name = instance.findtext("ModuleName", "")
        function = _function_of(name, functions)
        if function:
            yield function, name
        else:
            yield from _outermost(instance, functions)


def _function_of(module: str, functions: list[str]) -> str | None:
    """HLS names a module after its function, template arguments behind it."""
    return next((f for f in functions if module == f or module.startswith(f"{f}_")), None)


def compare(
    path: str | Path, blocks: Mapping[str, Resources], clock_mhz: float
) -> list[Comparison]:
    """Estimates of the rendered blocks beside the report; blocks it lacks are left out.

    The last rows are totals ("all" holds every block given, interfaces included) and the clock.
    """
    report = read_report(path, [name for name in blocks if name != "ports"])
    out = []
    for name, used in blocks.items():
        if name in report.blocks:
            out += _rows(name, used, report.blocks[name])
    for key in _TOOL_NAMES:
        estimate = sum(getattr(used, key).value for used in blocks.values())
        out.append(Comparison("all", key, round(estimate, 1), report.total[key]))
    out.append(Comparison("all", "clock_mhz", clock_mhz, round(report.clock_mhz, 1)))
    return out


def _rows(name: str, used: Resources, found: Mapping[str, float]) -> list[Comparison]:
    rows = [Comparison(name, k, round(getattr(used, k).value, 1), found[k]) for k in _TOOL_NAMES]
    return [row for row in rows if row.estimate or row.tool]
