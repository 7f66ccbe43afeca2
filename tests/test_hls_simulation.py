"""The simulation headers: integers of any width, bounded streams, deadlocks told by name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from codegen.csim import compile_testbench
from codegen.render import LIBRARY
from tests.hls_tools import FOLDER


@pytest.fixture(scope="module")
def shim() -> Path:
    sources = {f"sim/{path.name}": path.read_text() for path in (LIBRARY / "sim").glob("*.h")}
    sources["sim/dataflow.h"] = (LIBRARY / "dataflow.h").read_text()
    sources["sim/shim.cpp"] = (FOLDER / "shim.cpp").read_text()
    return compile_testbench(sources, "sim/shim.cpp")


def test_integers_streams_and_bursts(shim: Path) -> None:
    found = subprocess.run([shim], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("deadlock", "DEADLOCK: 1 processes blocked\n  consumer waits for read of numbers\n"),
        ("leftover", "LEFTOVER: stream numbers ends with 1 elements that no process read\n"),
        ("outside", "stream alone: read blocks outside of a process\n"),
        ("burst", "BURST: burst of 2 beats at 3 of a memory of 4 beats\n"),
        ("response", "BURST: a response is awaited before its burst is written\n"),
    ],
)
def test_misuse_ends_with_status_3(shim: Path, mode: str, message: str) -> None:
    found = subprocess.run([shim, mode], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (3, message)
