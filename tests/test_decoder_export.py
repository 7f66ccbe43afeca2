"""What an exported decoder says of itself: places, ports, diagrams, refusals, lint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from codegen.csim_decoder import run_decoder
from codegen.decoder_images import plan_decoder
from codegen.explain import explain
from codegen.export import export
from codegen.lint import lint_kernel
from codegen.manifest import MANIFEST, read_design
from codegen.plan import select_linears
from codegen.render import decoder_connections
from fpga.decoder_design import DecoderConfig, DecoderDesign
from fpga.design import EngineConfig
from fpga.device import load_device
from fpga.engine_plan import plan_engines
from lutllm.artifact import EMBEDDING, HEAD, Artifact
from lutllm.errors import ConfigError
from tests.decoder_designs import (
    ENGINE,
    MODELS,
    TOKENS,
    greedy,
    modify,
)


def test_manifest_says_where_tensors_lie(designs: Callable[[str], tuple[Path, Path]]) -> None:
    root, source = designs("online")
    entry = json.loads((root / MANIFEST).read_text())["decoder"]
    artifact = Artifact.open(source)
    assert set(entry["tensors"]) == {*artifact.float_tensors(), "rotary"}
    covered: dict[str, list[tuple[int, int]]] = {}
    for name, place in entry["tensors"].items():
        digest = hashlib.sha256()
        for path in place["files"]:
            start, end = place["offset"], place["offset"] + place["bytes"]
            digest.update((root / path).read_bytes()[start:end])
            covered.setdefault(path, []).append((start, end))
        assert digest.hexdigest() == place["sha256"], name
    for path, parts in covered.items():
        ends = [0, *(end for _, end in sorted(parts))]
        assert [start for start, _ in sorted(parts)] == ends[:-1]
        assert ends[-1] == (root / path).stat().st_size
    rows = np.frombuffer((root / "images/decoder/vocab_2.bin").read_bytes(), "<f4")
    head = artifact.float32("lm_head.weight")
    np.testing.assert_array_equal(rows[:72], head[2])
    np.testing.assert_array_equal(rows[72:144], head[5])


def test_int8_rows_carry_their_scales(designs: Callable[[str], tuple[Path, Path]]) -> None:
    root, source = designs("int8 untied")
    entry = json.loads((root / MANIFEST).read_text())["decoder"]
    artifact = Artifact.open(source)
    for name in (EMBEDDING, HEAD):
        place = entry["tensors"][name]
        raw = np.fromfile(root / "images/decoder/vocab_1.bin", np.int8)
        rows = raw[place["offset"] : place["offset"] + place["bytes"]].reshape(-1, 96)
        words = np.arange(1, 301, 3)  # behind port 1 of 3
        np.testing.assert_array_equal(rows[: len(words), :72], artifact.stored(name)[1][words])
        assert not rows[:, 72:92].any()
        scales = np.ascontiguousarray(rows[: len(words), 92:]).view("<f4")[:, 0]
        np.testing.assert_array_equal(scales, artifact.row_scales(name)[words])


def test_second_export_has_the_same_bytes(
    designs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    root, source = designs("coded")
    record = read_design(root).decoder
    assert record is not None
    prompt = np.fromfile(root / "golden/decoder/prompt.bin", "<i4").tolist()
    config, golden = record.design.config, greedy(Artifact.open(source), prompt, TOKENS)
    for _ in range(2):
        export(
            source, tmp_path / "d", engine=ENGINE, golden={}, decoder=config, decoder_golden=golden
        )
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            assert (tmp_path / "d" / path.relative_to(root)).read_bytes() == path.read_bytes()


def planned(source: Path, config: DecoderConfig, engine: EngineConfig = ENGINE) -> DecoderDesign:
    artifact = Artifact.open(source)
    engines = plan_engines(artifact.model, artifact.quant, select_linears(artifact, None), engine)
    return plan_decoder(artifact, engines, config)


def test_refusals(designs: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    source = designs("coded")[1]
    with pytest.raises(ConfigError, match="context is 701; the model has 700 positions"):
        planned(source, DecoderConfig(context=701))
    with pytest.raises(ConfigError, match="vocab_ports is 0"):
        DecoderConfig(vocab_ports=0)
    with pytest.raises(ConfigError, match="vector_lanes is 3; choose 1, 2, 4 or 8"):
        DecoderConfig(vector_lanes=3)
    with pytest.raises(ConfigError, match="kv_ports is 33; it must be a whole number 1 to 32"):
        DecoderConfig(kv_ports=33)
    with pytest.raises(
        ConfigError, match=r"head_dim 24 is not a multiple .* lower axi_bits to 256"
    ):
        planned(source, DecoderConfig(), dataclasses.replace(ENGINE, axi_bits=512))
    small = dataclasses.replace(load_device("v80"), region_bytes=200_000)
    online = planned(designs("online")[1], DecoderConfig(context=700, kv_ports=1))
    with pytest.raises(ConfigError, match=r"decoder\.key_cache_0 .* exceed the region of 200000"):
        decoder_connections(online, small)
    spread = planned(designs("online")[1], DecoderConfig(context=700, kv_ports=2))
    assert decoder_connections(spread, small)
    export(source, tmp_path / "part", engine=ENGINE, layers=1)
    with pytest.raises(ConfigError, match="has no decoder; export all layers"):
        run_decoder(tmp_path / "part")


def test_ports_are_balanced_and_exist(designs: Callable[[str], tuple[Path, Path]]) -> None:
    for name in MODELS:
        root = designs(name)[0]
        record = read_design(root).decoder
        assert record is not None
        found = decoder_connections(record.design, load_device("v80"))
        # as many places as there are ports, one use each before any has two
        assert len({c.port for c in found}) == min(len(found), load_device("v80").memory_ports)
        text = (root / "src/decoder.cpp").read_text()
        for connection in found:
            assert f"port={connection.argument} offset=slave" in text
            assert (
                f"sp=decoder_0.m_axi_{connection.argument}:{connection.port}"
                in (root / "decoder_system.cfg").read_text()
            )
        sizes = {(root / f).stat().st_size for f in record_files(root) if "vocab" in f}
        assert len(sizes) == 1


def record_files(root: Path) -> list[str]:
    manifest = json.loads((root / MANIFEST).read_text())
    return [entry["path"] for entry in manifest["files"]]


def test_explanation_names_diagrams_and_ports(
    designs: Callable[[str], tuple[Path, Path]],
) -> None:
    root = designs("mixed")[0]
    lines = explain(root)
    assert lines[0] == f"block diagram of decoder: {root / 'decoder.svg'}"
    text = "\n".join(lines)
    sizes = {path.name: path.stat().st_size for path in (root / "images/decoder").iterdir()}
    assert f"vocab_0 {sizes['vocab_0.bin']:,}" in text
    assert text.count("memory of ") == 2
    assert "down_proj B of the layer before   attention of A" in text


@pytest.mark.parametrize("name", ["mixed", "screened"])
def test_block_diagram_shows_the_schedule(
    designs: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    root = ElementTree.fromstring((designs(name)[0] / "decoder.svg").read_text())
    texts = [node.text for node in root.iter() if node.tag.endswith("text")]
    ring = {"embed", "residual", "norm", "rotary, attention", "SwiGLU", "inputs", "results", "head"}
    assert ring <= set(texts)
    turns = [text for text in texts if text and "_proj" in text and "beside" not in text]
    assert turns == [
        *("qkv_proj A", "down_proj B, last layer", "o_proj A", "qkv_proj B"),
        *("gate_up_proj A", "o_proj B", "down_proj A", "gate_up_proj B"),
    ]
    beside = [text for text in texts if text and "beside" in text]
    assert beside[1].endswith("beside attention A")
    assert beside[4].endswith("beside attention B")
    assert name != "mixed" or "lut_linear_1; " in beside[2]  # what o_proj runs on


def test_no_lint_problems(designs: Callable[[str], tuple[Path, Path]]) -> None:
    for name in MODELS:
        root = designs(name)[0]
        for path in ("src/decoder.cpp", "src/decoder_config.h", "hls/decoder.cpp"):
            assert lint_kernel(path, (root / path).read_text()) == []
        lines = (root / "src/decoder.cpp").read_text().split("\n")
        assert [s for s in lines if len(s) > 110 and "#pragma" not in s] == []


#: Where the clang-tidy of the extra `dev` lies, beside this Python; then any other.
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def make_lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "lint"],
        cwd=root,
        env={**os.environ, "PATH": TOOLS},
        capture_output=True,
        text=True,
        check=False,
    )


needs_clang_tidy = pytest.mark.skipif(
    shutil.which("clang-tidy", path=TOOLS) is None, reason="needs clang-tidy"
)


@needs_clang_tidy
@pytest.mark.parametrize("name", ["mixed", "screened apart"])
def test_clang_tidy_finds_nothing(designs: Callable[[str], tuple[Path, Path]], name: str) -> None:
    found = make_lint(designs(name)[0])
    assert found.returncode == 0, found.stdout


@needs_clang_tidy
def test_clang_tidy_finds_a_fault(copy: Path) -> None:
    """An integer division where a float is wanted: the rules of a design are in force."""
    modify(copy, "int chosen = 0;", "int chosen = 0; const float half = D::HIDDEN_SIZE / 2;")
    assert make_lint(copy).returncode != 0
