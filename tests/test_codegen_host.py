"""The board program, run on the C simulation of its kernel behind a stand-in for VRT."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from codegen.csim import find_compiler
from fpga.design import EngineConfig
from lutllm.config import LutConfig
from tests.hls_tools import FOLDER, export_linears, make_engine

BRIDGE = """
#include "../hls/lut_linear.cpp"
#include <vector>
void run_kernel(const std::vector<void*>& buffers, const std::vector<std::size_t>& beats,
                const std::vector<std::uint32_t>& n) {
    typedef const beat_t* in;
    lut_linear(port_t((in)buffers[0], beats[0]), port_t((in)buffers[1], beats[1]),
               (in)buffers[2], (in)buffers[3], (in)buffers[4], (beat_t*)buffers[5],
               n[0], n[1], n[2], n[3], n[4]);
}
"""


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A design with the host program built: 2 channels, 1 centroid port."""
    root = tmp_path_factory.mktemp("host")
    lut = LutConfig(act_centroids=16, group_size=32)
    config = EngineConfig(channels=2, centroid_ports=1, lanes_per_cycle=16, max_tokens=2)
    engine, linears = make_engine(lut, config, [(20, 40, True)])
    export_linears(root / "design", engine, linears, tokens=5)
    (root / "design/sim/bridge.cpp").write_text(BRIDGE)
    flags = ["-O1", "-w", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Isim", f"-I{FOLDER}"]
    sources = ["host/main.cpp", "sim/bridge.cpp"]
    subprocess.run(
        [find_compiler(), "-std=c++20", *flags, "-o", "host_program", *sources],
        cwd=root / "design",
        check=True,
    )
    return root / "design"


def test_host_program_finds_no_difference(design: Path) -> None:
    found = subprocess.run(
        ["./host_program", "0000:01:00.0", "design.vbin"],
        cwd=design,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.splitlines() == [
        "linear_0, tables: 0 differences in 5 tokens",
        "linear_0, row fetch: 0 differences in 5 tokens",
    ]
    assert found.returncode == 0


def test_host_program_counts_differences(design: Path) -> None:
    path = design / "golden/linear_0/acc.bin"
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    try:
        found = subprocess.run(
            ["./host_program", "bdf", "vbin"],
            cwd=design,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_bytes(good)
    assert "linear_0, tables: 1 differences in 5 tokens" in found.stdout
    assert found.returncode == 1


def test_host_program_names_a_missing_file(design: Path) -> None:
    found = subprocess.run(
        ["./host_program", "bdf", "vbin", "/nowhere"],
        cwd=design,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "/nowhere/golden/cases.txt: cannot be read" in found.stderr
