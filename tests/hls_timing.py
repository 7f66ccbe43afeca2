"""Cycles counted by the C simulation: rendered sources with a clock in every process."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from codegen.csim import Case, compile_testbench
from codegen.manifest import Golden, read_design
from codegen.render import design_sources
from fpga.design import EngineDesign
from tests.hls_tools import FOLDER

_PIPELINE = re.compile(r"^(#pragma HLS PIPELINE II=(.+))$", re.MULTILINE)
_LOAD_TABLE = re.compile(r"(\n +)(load_table<E>\([^;]*\);)")
_SPAWN = "{ __VA_ARGS__; })"


@dataclass(frozen=True)
class Counts:
    """What one simulated call counted: per process busy cycles and last cycle; per stream."""

    busy: dict[str, int]
    end: dict[str, int]
    transactions: dict[str, int]

    @property
    def cycles(self) -> int:
        """From start to the last cycle of the last process."""
        return max(self.end.values())


def _replace(pattern: re.Pattern[str], change: str, text: str) -> str:
    text, count = pattern.subn(change, text)
    assert count, f"nothing matches {pattern.pattern!r}: the kernel library has changed"
    return text


def _with_clocks(kernel: str) -> str:
    kernel = _replace(_PIPELINE, r"\1\nhls::timing::tick(\2);", kernel)
    kernel = _replace(_LOAD_TABLE, r"\1{ hls::timing::Aside aside; \2 }", kernel)
    assert _SPAWN in kernel
    return kernel.replace(_SPAWN, "{ hls::timing::Process lutllm_clock; __VA_ARGS__; })")


def _untimed(header: str) -> str:
    """hls_stream.h with its class renamed, so that the timed one can build on it."""
    return re.sub(r"\bstream\b", "untimed_stream", header)


class TimedSimulation:
    """The testbench of one engine of a design folder, compiled with clocks."""

    def __init__(self, folder: Path, flags: tuple[str, ...] = ("-O0",)):
        self.design = read_design(folder)
        design = self.design
        sources = design_sources(design.engines, design.device, design.model, design.artifact_hash)
        self.engine: EngineDesign = design.engines[0]
        kernel = f"hls/{self.engine.name}.cpp"
        sources[kernel] = _with_clocks(sources[kernel])
        sources["sim/untimed_stream.h"] = _untimed(sources["sim/hls_stream.h"])
        sources["sim/hls_stream.h"] = (FOLDER / "timed_stream.h").read_text()
        self._program = compile_testbench(sources, f"sim/{self.engine.name}_testbench.cpp", flags)

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
        processes = re.findall(r"^process (\S+) (\d+) (\d+)$", found.stderr, re.MULTILINE)
        streams = re.findall(r"^(\S+): (\d+) transactions", found.stderr, re.MULTILINE)
        return Counts(
            {name: int(busy) for name, busy, _ in processes},
            {name: int(end) for name, _, end in processes},
            {name: int(count) for name, count in streams},
        )
