"""Rendered sources: readable, complete, within the board, free of what cannot be synthesized."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from codegen.lint import lint_kernel
from codegen.render import (
    LIBRARY,
    connections,
    design_sources,
    included_headers,
    library_headers,
)
from fpga.design import EngineConfig, EngineDesign
from fpga.device import load_device
from lutllm.config import LutConfig
from lutllm.errors import ConfigError
from tests.hls_tools import FOLDER, make_engine

GOLDEN = FOLDER / "lut_linear_config.h"


@pytest.fixture(scope="module")
def engine() -> EngineDesign:
    """One layer of Qwen2.5-0.5B's shape at the published setting, without its arrays."""
    from fpga.design import LayerKind

    shapes = [
        ("qkv_proj", 896, 1152, True),
        ("o_proj", 896, 896, False),
        ("gate_up_proj", 896, 9728, False),
        ("down_proj", 4864, 896, False),
    ]
    names = [tuple(f"model.layers.{i}.{name}" for i in range(24)) for name, *_ in shapes]
    rotation = {"o_proj": 512, "down_proj": 512}
    kinds = tuple(
        LayerKind(name, d, m, 1, 1, 8, 1, True, rotation.get(name, 0), bias, linears)
        for (name, d, m, bias), linears in zip(shapes, names, strict=True)
    )
    lut = LutConfig(token_scale=True, rotation=512)
    return EngineDesign("lut_linear", EngineConfig(), lut, kinds)


@pytest.fixture(scope="module")
def sources(engine: EngineDesign) -> dict[str, str]:
    return design_sources([engine], load_device("v80"), "a model", "ab" * 32)


def test_configuration_header_reads_as_agreed(sources: dict[str, str]) -> None:
    """The golden text. After an intended change: copy src/lut_linear_config.h over it."""
    assert sources["src/lut_linear_config.h"] == GOLDEN.read_text()


def test_kernels_are_self_contained(sources: dict[str, str]) -> None:
    text = sources["hls/lut_linear.cpp"]
    assert not re.search(r'#include "', text)
    assert set(re.findall(r"#include <([^>]+)>", text)) == {
        "ap_int.h",
        "hls_stream.h",
        "hls_burst_maxi.h",
    }
    for name in included_headers("lut_linear.h"):
        assert text.count(f"// ---- {name} ----") == 1


def test_no_lint_problems(sources: dict[str, str]) -> None:
    problems = []
    for name in library_headers():
        problems += lint_kernel(name, (LIBRARY / name).read_text())
    for path, text in sources.items():
        if path.startswith(("hls/", "src/")) and path.endswith((".h", ".cpp")):
            problems += lint_kernel(path, text)
    assert problems == []


def test_every_argument_has_an_interface(sources: dict[str, str]) -> None:
    text = sources["src/lut_linear.cpp"]
    top = text[text.index('extern "C" void lut_linear(') :]
    arguments = re.findall(r"(?:port_t|beat_t\*|int) (\w+)[,)]", top[: top.index("{")])
    ports = re.findall(r"#pragma HLS INTERFACE mode=\w+ port=(\w+)", top)
    assert len(arguments) == 16 + 4 + 3 + 5
    assert set(ports) == {*arguments, "return"}


def test_lines_stay_readable(sources: dict[str, str]) -> None:
    texts = {name: (LIBRARY / name).read_text() for name in library_headers()}
    texts |= {path: text for path, text in sources.items() if path.startswith("src/")}
    for name, text in texts.items():
        long = [line for line in text.split("\n") if len(line) > 110 and "#pragma" not in line]
        assert long == [], name


def test_ports_exist_and_are_used_once(sources: dict[str, str], engine: EngineDesign) -> None:
    lines = re.findall(r"^sp=lut_linear_0\.m_axi_(\w+):HBM(\d+)$", sources["system.cfg"], re.M)
    assert len(lines) == 16 + 4 + 3
    assert sorted(int(port) for _, port in lines) == list(range(23))
    total = sum(c.bytes for c in connections([engine], load_device("v80")))
    assert f"| {connections([engine], load_device('v80'))[0].bytes} |" in sources["README.md"]
    assert total < 23 * load_device("v80").region_bytes


def test_more_arguments_than_ports_share(engine: EngineDesign) -> None:
    many = EngineConfig(channels=64, centroid_ports=8)
    wide = EngineDesign("wide", many, engine.lut, engine.kinds)
    ports = [c.port for c in connections([wide], load_device("v80"))]
    assert len(ports) == 64 + 8 + 3
    assert ports[:64] == [f"HBM{i}" for i in range(64)]
    assert ports[64:] == [f"HBM{i}" for i in range(11)]


def test_region_overflow_is_refused(engine: EngineDesign) -> None:
    few = EngineConfig(channels=1, centroid_ports=1, lanes_per_cycle=64)
    twice = tuple(dataclasses.replace(kind, names=2 * kind.names) for kind in engine.kinds)
    small = EngineDesign("small", few, engine.lut, twice)
    with pytest.raises(ConfigError, match=r"HBM0: \d+ bytes .* exceed the region of 536870912"):
        connections([small], load_device("v80"))


def test_lint_finds_what_it_should() -> None:
    text = """#include <vector>
void f(int* data, int n) {
#pragma HLS INTERFACE mode=m_axi port=dat offset=slave
#pragma HLS PIPLINE II=1
#pragma HLS UNROLL times=4
#pragma GCC unroll 4
    int* p = new int[n];
    for (int i = 0; i < n; i++) {
#pragma HLS PIPELINE II=1
        data[i] = 0;
    }
    while (n) n--;  // new, throw: in comments they do not matter
}
"""
    found = lint_kernel("f.cpp", text)
    expected = [
        "f.cpp:1: includes <vector>",
        "f.cpp:3: INTERFACE names dat",
        "f.cpp:4: unknown directive PIPLINE",
        "f.cpp:5: UNROLL has no option times",
        "f.cpp:6: unknown pragma GCC",
        "f.cpp:7: allocates memory",
        "f.cpp:12: loops without a bound",
        "f.cpp:8: a pipelined loop has no label",
    ]
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_templates_fail_on_unknown_names(tmp_path: Path) -> None:
    import jinja2

    from codegen.render import _environment

    with pytest.raises(jinja2.UndefinedError):
        _environment().from_string("{{ nothing }}").render()


def test_makefile_builds_every_engine(sources: dict[str, str]) -> None:
    assert "build/lut_linear_csim: sim/lut_linear_testbench.cpp" in sources["Makefile"]
    assert "KERNELS     lut_linear\n" in sources["CMakeLists.txt"]
    assert "syn.top=lut_linear\n" in sources["hls/lut_linear.cfg"]
    assert "clock=4ns\n" in sources["hls/lut_linear.cfg"]


def test_unrelated_linears_render_differently() -> None:
    lut = LutConfig(scheme="weight")
    online, _ = make_engine(lut, EngineConfig(channels=2, centroid_ports=1), [(32, 64, False)])
    text = design_sources([online], load_device("v80"), "m", "0" * 64)["src/lut_linear.cpp"]
    assert "online_channel<E>" in text
    assert "read_centroids" not in text


def test_block_diagram_is_well_formed(sources: dict[str, str]) -> None:
    from xml.etree import ElementTree

    root = ElementTree.fromstring(sources["lut_linear.svg"])
    texts = [node.text for node in root.iter() if node.tag.endswith("text")]
    for name in ("search", "lookup", "accumulate", "8 elements, 8 cycles a code"):
        assert name in texts
    assert "![lut_linear](lut_linear.svg)" in sources["README.md"]


@pytest.mark.parametrize(
    "header",
    [
        ";;",
        "int i = 0; ready; i++",
        "int i = 0; i != n; i++",
        "int i = 0; i < n; k++",
        "int rest = 0; b != 0; b = rest",
    ],
)
def test_lint_finds_loops_without_a_bound(header: str) -> None:
    text = f"void f(int n) {{\n    for ({header}) {{\n    }}\n}}\n"
    assert lint_kernel("f.cpp", text) == [f"f.cpp:2: loops without a bound: for ({header})"]


@pytest.mark.parametrize(
    "text",
    [
        "void f(int n) {\n    for (int i = 0; i < n * E::LANES; i += 2) {\n    }\n}\n",
        "void f(int n) {\n    for (int i = n - 1; i >= 0; i--) {\n    }\n}\n",
        "void f(int n) {\n    for (int s = 0; s + step < N; s += 2 * step) {\n    }\n}\n",
        "constexpr int f(int b) {\n    for (int r = 0; b != 0; b = r) {\n    }\n    return b;\n}\n",
        "void f(hls::stream<ap_uint<8> >& in) {\n    hls::stream<float, 4> out;\n}\n",
    ],
)
def test_lint_lets_counted_loops_and_deep_streams_pass(text: str) -> None:
    assert lint_kernel("f.cpp", text) == []


@pytest.mark.parametrize(
    ("stream", "said"),
    [("ap_uint<8>", "no depth"), ("pair<int, int>", "no depth"), ("float, 1", "a depth of 1")],
)
def test_lint_finds_streams_without_a_depth(stream: str, said: str) -> None:
    text = f"void f() {{\n    hls::stream<{stream}> out;\n}}\n"
    wanted = f"f.cpp:2: a stream with {said}: hls::stream<{stream}>"
    assert lint_kernel("f.cpp", text) == [wanted]
