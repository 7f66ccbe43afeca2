"""Cycles counted by the C simulation: sources with a clock in every process."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.csim import Case, compile_testbench
from codegen.manifest import Golden, read_design
from codegen.render import design_sources
from fpga.design import EngineDesign
from tests.hls_tools import FOLDER

_PIPELINE = re.compile(r"^(#pragma HLS PIPELINE II=(.+))$", re.MULTILINE)
#: Calls that fill one of two buffers while the other is served (DATAFLOW inside a loop).
_LOAD = re.compile(r"(\n +)((?:load_table<E>|load_head<D>)\([^;]*\);)")
_SPAWN = "[&] { __VA_ARGS__; })"
_CLOCK = (
    "[&, lutllm_start = hls::timing::now()] "
    "{ hls::timing::Process lutllm_clock(lutllm_start); __VA_ARGS__; })"
)
_MAIN = "int main(int argc, char** argv) {"


@dataclass(frozen=True)
class Counts:
    """What one run counted: per process busy cycles, first and last cycle; per stream transactions.

    Of a process that ran several times, first and last cycle are those of the last time.
    report: what the testbench itself says of the run.
    """

    busy: dict[str, int]
    start: dict[str, int]
    end: dict[str, int]
    transactions: dict[str, int]
    report: dict[str, Any]

    @classmethod
    def parse(cls, text: str, report: str = "{}") -> Counts:
        """text: what timed_stream.h and `--streams` print on standard error; report: one line."""
        processes = re.findall(r"^process (\S+) (\d+) (\d+) (\d+)$", text, re.MULTILINE)
        streams = re.findall(r"^(\S+): (\d+) transactions", text, re.MULTILINE)
        return cls(
            {name: int(busy) for name, busy, _, _ in processes},
            {name: int(start) for name, _, start, _ in processes},
            {name: int(end) for name, _, _, end in processes},
            {name: int(count) for name, count in streams},
            json.loads(report),
        )

    @property
    def cycles(self) -> int:
        """From start to end."""
        return self.end["total"]


def add_clocks(sources: dict[str, str]) -> dict[str, str]:
    """Sources (path -> text) in which every pipelined loop ticks and every process has a clock."""
    out = {}
    for path, text in sources.items():
        text = _PIPELINE.sub(r"\1\nhls::timing::tick(\2);", text)
        text = _LOAD.sub(r"\1{ hls::timing::Aside aside; \2 }", text)
        text = text.replace(_SPAWN, _CLOCK)
        out[path] = text.replace(_MAIN, f"{_MAIN}\n    hls::timing::Total total;")
    everything = "".join(out.values())
    for mark in (_CLOCK, "timing::tick", "timing::Total"):
        assert mark in everything, f"no place for {mark}: the kernel library has changed"
    assert "Aside aside" in everything or "load_table" not in everything
    header = out["sim/hls_stream.h"]
    out["sim/untimed_stream.h"] = re.sub(r"\bstream\b", "untimed_stream", header)
    out["sim/hls_stream.h"] = (FOLDER / "timed_stream.h").read_text()
    return out


class TimedSimulation:
    """The testbench of the first engine of a design folder, compiled with clocks."""

    def __init__(self, folder: Path, flags: Sequence[str] = ("-O0",)):
        self.design = read_design(folder)
        design = self.design
        self.engine: EngineDesign = design.engines[0]
        sources = design_sources(design.engines, design.device, design.model, design.artifact_hash)
        main = f"sim/{self.engine.name}_testbench.cpp"
        self._program = compile_testbench(add_clocks(sources), main, flags)

    def run(self, name: str, tokens: int, mode: str) -> Counts:
        """One call of linear `name`."""
        case = Case(self.engine.name, Golden(name, tokens, self.engine.name), tokens, mode)
        path = self.design.path
        found = subprocess.run(
            [str(self._program), str(path / "images"), str(path / "golden"), "--streams"],
            input=case.line(self.design),
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return Counts.parse(found.stderr, found.stdout)
