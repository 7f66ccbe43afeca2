"""Generated engines of many configurations, compiled and compared with `lutllm.intmath`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from codegen.csim import compile_testbench, run_csim
from codegen.manifest import read_design
from codegen.render import design_sources
from fpga.design import EngineConfig
from lutllm.config import LutConfig
from tests.hls_tools import Shape, export_linears, make_engine

RAGGED: list[Shape] = [(70, 130, True)]
TOKENS = 7  # more than one run of max_tokens

MATRIX: dict[str, tuple[LutConfig, EngineConfig, list[Shape]]] = {
    "published setting": (
        LutConfig(),
        EngineConfig(max_tokens=5),
        [(70, 130, True), (256, 1200, False)],
    ),
    "residual stages on both sides": (
        LutConfig(act_stages=2, weight_stages=2, group_size=64),
        EngineConfig(channels=8, max_tokens=4, lanes_per_cycle=32),
        [(70, 130, True), (33, 64, False)],
    ),
    "weight scheme, ragged vectors": (
        LutConfig(scheme="weight", vec_len=3, weight_centroids=40, weight_stages=2, group_size=64),
        EngineConfig(channels=8, max_tokens=4),
        [(200, 130, True), (96, 700, False)],
    ),
    "codes with rows on line": (
        LutConfig(act_stages=2, group_size=128),
        EngineConfig(channels=4, centroid_ports=1, rows="online", max_tokens=4),
        RAGGED,
    ),
    "chebyshev": (
        LutConfig(metric="chebyshev"),
        EngineConfig(max_tokens=5),
        [(70, 130, True), (256, 1200, False)],
    ),
    "chebyshev, two activation stages, rows on line": (
        LutConfig(metric="chebyshev", act_stages=2, vec_len=4, act_centroids=20, group_size=64),
        EngineConfig(
            channels=8,
            rows="online",
            search_segments=3,
            search_chain=1,
            lanes_per_cycle=32,
            max_tokens=4,
        ),
        RAGGED,
    ),
    "16-bit entries, two stages": (
        LutConfig(
            scheme="weight",
            weight_stages=3,
            group_size=64,
            table_bits=16,
            wide_stages=2,
            block_positions=4,
        ),
        EngineConfig(channels=8, max_tokens=4),
        RAGGED,
    ),
    "token scales, rotated": (
        LutConfig(token_scale=True, rotation=128, group_size=64, act_stages=2, weight_stages=2),
        EngineConfig(channels=8, max_tokens=4, lanes_per_cycle=32),
        [(330, 130, True), (33, 64, False)],
    ),
    "rotated, no token scales, short runs": (
        LutConfig(rotation=8, group_size=64),
        EngineConfig(channels=8, max_tokens=4, lanes_per_cycle=32),
        RAGGED,
    ),
    "12-bit tables": (
        LutConfig(group_size=64, act_centroids=16, table_bits=12, block_positions=4),
        EngineConfig(channels=8, lanes_per_cycle=32, max_tokens=4),
        [(130, 200, True)],
    ),
    "4-bit tables, blocks of 12": (
        LutConfig(table_bits=4, group_size=96, block_positions=12),
        EngineConfig(channels=12, lanes_per_cycle=48, max_tokens=4),
        [(130, 200, True)],
    ),
    "two chains, blocks of 5": (
        LutConfig(
            table_bits=6, weight_centroids=24, act_centroids=9, group_size=96, block_positions=5
        ),
        EngineConfig(channels=10, centroid_ports=2, axi_bits=128, lanes_per_cycle=96, max_tokens=4),
        [(130, 200, True)],
    ),
    "256 centroids of 8": (
        LutConfig(weight_centroids=256, act_centroids=256, vec_len=8, group_size=32),
        EngineConfig(
            channels=4,
            centroid_ports=1,
            axi_bits=128,
            lanes_per_cycle=8,
            search_segments=8,
            search_chain=2,
        ),
        [(200, 70, True)],
    ),
    "smallest engine": (
        LutConfig(vec_len=1, act_centroids=2, weight_centroids=2, group_size=7, block_positions=1),
        EngineConfig(
            channels=1,
            centroid_ports=1,
            axi_bits=64,
            lanes_per_cycle=7,
            search_segments=1,
            search_chain=1,
            gather_lanes=1,
            read_ahead=1,
            beat_fifo=2,
        ),
        [(9, 30, True)],
    ),
    "64 channels": (
        LutConfig(),
        EngineConfig(
            channels=64, centroid_ports=32, parameter_ports=8, max_tokens=4, index_fifo=512
        ),
        [(70, 130, True), (300, 512, False)],
    ),
    "56 channels, rows on line": (
        LutConfig(scheme="weight"),
        EngineConfig(
            channels=56, centroid_ports=1, parameter_ports=16, lanes_per_cycle=64, max_tokens=4
        ),
        RAGGED,
    ),
    "48 channels, vectors of 4": (
        LutConfig(vec_len=4, act_centroids=128, weight_centroids=64, group_size=128),
        EngineConfig(channels=48, centroid_ports=48, lanes_per_cycle=64, search_chain=8),
        [(390, 200, True)],
    ),
    "32 channels, 4-bit tables, one segment": (
        LutConfig(table_bits=4, act_centroids=32, group_size=64),
        EngineConfig(
            channels=32, centroid_ports=8, lanes_per_cycle=32, search_segments=1, search_chain=32
        ),
        RAGGED,
    ),
    "24 channels, stages of 8 centroids, 16-bit entries": (
        LutConfig(
            scheme="weight", weight_stages=2, weight_centroids=8, group_size=96, table_bits=16
        ),
        EngineConfig(
            channels=24, parameter_ports=4, lanes_per_cycle=48, max_tokens=4, index_fifo=64
        ),
        RAGGED,
    ),
    "16 channels, single values": (
        LutConfig(vec_len=1, act_centroids=16, weight_centroids=8, group_size=64),
        EngineConfig(lanes_per_cycle=64, search_segments=8, search_chain=1, max_tokens=4),
        [(70, 130, False)],
    ),
    "8 channels, 4-bit tables, two activation stages": (
        LutConfig(act_stages=2, table_bits=4, group_size=64, block_positions=4),
        EngineConfig(channels=8, lanes_per_cycle=16, max_tokens=4, gather_lanes=3),
        RAGGED,
    ),
    "512 lanes": (
        LutConfig(block_positions=8),
        EngineConfig(channels=8, centroid_ports=8, lanes_per_cycle=512, max_tokens=4),
        [(70, 700, True)],
    ),
    "beats of 128 bits": (
        LutConfig(group_size=128, block_positions=8),
        EngineConfig(channels=8, axi_bits=128, max_tokens=4, gather_lanes=16),
        RAGGED,
    ),
    "three components, nothing a power of two": (
        LutConfig(vec_len=3, act_centroids=27, weight_centroids=12, group_size=36),
        EngineConfig(
            channels=9,
            centroid_ports=3,
            axi_bits=64,
            lanes_per_cycle=12,
            search_segments=3,
            search_chain=3,
        ),
        [(100, 70, True)],
    ),
    "nothing read ahead": (
        LutConfig(group_size=64, act_stages=2),
        EngineConfig(
            channels=8, lanes_per_cycle=16, read_ahead=1, beat_fifo=2, index_fifo=4, max_tokens=4
        ),
        RAGGED,
    ),
    "whole linears read ahead": (
        LutConfig(group_size=64, weight_stages=2),
        EngineConfig(channels=8, lanes_per_cycle=16, index_fifo=1024, max_tokens=4),
        RAGGED,
    ),
    "whole codebooks read ahead": (
        LutConfig(scheme="weight", group_size=64, weight_stages=3),
        EngineConfig(channels=8, lanes_per_cycle=16, index_fifo=1024, max_tokens=4),
        RAGGED,
    ),
    "entries without rounding": (
        LutConfig(
            scheme="weight",
            group_size=64,
            weight_stages=2,
            table_bits=16,
            wide_stages=2,
            block_positions=1,
        ),
        EngineConfig(channels=8, lanes_per_cycle=16, max_tokens=4),
        RAGGED,
    ),
    "four stages, codebooks of all positions": (
        LutConfig(
            scheme="weight",
            codebook_positions=1 << 20,
            rotation=64,
            group_size=96,
            weight_stages=4,
            table_bits=16,
            wide_stages=4,
            block_positions=1,
        ),
        EngineConfig(channels=8, lanes_per_cycle=16, max_tokens=4),
        [(130, 200, True)],
    ),
    "one group, one token a run": (
        LutConfig(group_size=256, act_centroids=8, weight_centroids=4),
        EngineConfig(channels=8, centroid_ports=1, max_tokens=1),
        [(64, 256, False)],
    ),
}


def export(root: Path, name: str) -> Path:
    lut, config, shapes = MATRIX[name]
    exact = name == "entries without rounding"
    engine, linears = make_engine(lut, config, shapes, exact=exact)
    assert all(linear.exact(s) == exact for linear in linears for s in range(lut.weight_stages))
    export_linears(root, engine, linears, TOKENS)
    return root


@pytest.mark.parametrize("name", MATRIX)
def test_engine_is_exact(tmp_path: Path, name: str) -> None:
    design = export(tmp_path / "design", name)
    found = run_csim(design, tokens=(1, TOKENS))
    assert found["integer_mismatches"] == 0
    assert found["first_divergence"] is None
    assert found["max_abs_error"] == 0
    assert found["tokens_equal"] == found["tokens_compared"] > 0


def open_ap_types() -> str | None:
    """The folder of ap_int.h that LUTLLM_AP_TYPES names, else that of the package hls4ml."""
    package = importlib.util.find_spec("hls4ml")
    if package is None or package.origin is None:
        return os.environ.get("LUTLLM_AP_TYPES")
    inside = Path(package.origin).parent / "templates/vivado/ap_types"
    return os.environ.get("LUTLLM_AP_TYPES", str(inside))


#: All where LUTLLM_AP_TYPES is set; else a few, since these headers take long to compile.
OPEN_TYPES = list(MATRIX) if "LUTLLM_AP_TYPES" in os.environ else list(MATRIX)[::8]


@pytest.mark.skipif(open_ap_types() is None, reason="needs hls4ml or LUTLLM_AP_TYPES")
@pytest.mark.parametrize("name", OPEN_TYPES)
def test_engine_is_exact_with_open_ap_types(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sources with the open ap_types headers instead of our ap_int.h."""
    design = export(tmp_path / "design", name)
    open_headers = open_ap_types()
    assert open_headers is not None

    def compile_with_open_headers(sources: dict[str, str], main: str) -> Path:
        kept = {path: text for path, text in sources.items() if path != "sim/ap_int.h"}
        flags = ["-idirafter", open_headers, "-Wno-deprecated-declarations"]
        return compile_testbench(kept, main, flags)

    monkeypatch.setattr("codegen.csim.compile_testbench", compile_with_open_headers)
    found = run_csim(design)
    assert found["integer_mismatches"] == 0
    assert found["first_divergence"] is None


def test_sequential_simulation_needs_no_coroutines(tmp_path: Path) -> None:
    """Plain calls over unbounded streams, as the C simulation of Vitis HLS runs them."""
    root = export(tmp_path / "design", "smallest engine")
    design = read_design(root)
    sources = design_sources(design.engines, design.device, design.model, design.artifact_hash)
    program = compile_testbench(sources, "sim/lut_linear_testbench.cpp", ["-DLUTLLM_SEQUENTIAL"])
    import subprocess

    case = f"linear_0 0 0 9 30 {TOKENS} 0\n"
    out = subprocess.run(
        [str(program), str(root / "images"), str(root / "golden")],
        input=case,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"integer_mismatches": 0' in out.stdout
