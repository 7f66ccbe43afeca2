"""The board program of the decoder, run on the C simulation of its kernel without VRT."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from codegen.csim import find_compiler
from codegen.export import export
from codegen.manifest import read_design
from codegen.render import decoder_connections
from fpga.decoder_design import DecoderConfig
from fpga.design import EngineConfig
from fpga.device import load_device
from lutllm import load
from lutllm.api import golden_run
from lutllm.config import LutConfig, QuantConfig
from tests.hls_tools import FOLDER
from tests.make_artifact import tiny_config, write_artifact, write_tokenizer

PROMPT = list(range(5, 16))
TOKENS = 7  # more than the two of one run


def bridge(design: Path) -> str:
    """`run_kernel` of tests/hls/vrt: the kernel called with buffers in the order of its ports."""
    decoder = read_design(design).decoder
    assert decoder is not None
    names = [c.argument for c in decoder_connections(decoder.design, load_device("v80"))]
    kinds = {"prompt": "const int*", "chosen": "int*", "logits": "beat_t*"}
    arguments = []
    for i, name in enumerate(names):
        if any(part in name for part in ("channel_", "vocab_", "_cache_")):
            beat = "beat_t" if "_cache_" in name else "const beat_t"
            arguments.append(f"port_t(({beat}*)buffers[{i}], beats[{i}])")
        else:
            arguments.append(f"({kinds.get(name, 'const beat_t*')})buffers[{i}]")
    return f"""
#include "../hls/decoder.cpp"
#include <vector>
void run_kernel(const std::vector<void*>& buffers, const std::vector<std::size_t>& beats,
                const std::vector<std::uint32_t>& n) {{
    decoder({", ".join(arguments)}, n[0], n[1], n[2]);
}}
"""


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A design with the host program built."""
    root = tmp_path_factory.mktemp("host")
    write_artifact(root / "art", tiny_config("qwen2"), QuantConfig(LutConfig(group_size=64)))
    write_tokenizer(root / "art", 301)
    export(
        root / "art",
        root / "design",
        engine=EngineConfig(channels=4, centroid_ports=2, lanes_per_cycle=32, max_tokens=2),
        golden={},
        decoder=DecoderConfig(vocab_ports=3, kv_ports=2, context=40),
        decoder_golden=golden_run(load(root / "art"), PROMPT, TOKENS),
    )
    (root / "design/sim/bridge.cpp").write_text(bridge(root / "design"))
    flags = ["-O1", "-w", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Isim", f"-I{FOLDER}"]
    subprocess.run(
        [
            *(find_compiler(), "-std=c++20", *flags),
            *("-o", "host_program", "host/decoder.cpp", "sim/bridge.cpp"),
        ],
        cwd=root / "design",
        check=True,
    )
    return root / "design"


def run(design: Path, *words: str, ids: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["./host_program", "0000:01:00.0", "decoder.vbin", *words],
        cwd=design,
        input=ids,
        capture_output=True,
        text=True,
        check=False,
    )


def test_golden_ids_come_out(design: Path) -> None:
    found = run(design)
    assert found.stdout == f"0 of {TOKENS} ids differ\n"
    assert found.returncode == 0


def test_ids_in_ids_out(design: Path) -> None:
    golden = np.fromfile(design / "golden/decoder/tokens.bin", "<i4")
    found = run(design, ".", "5", ids=" ".join(map(str, PROMPT)))
    assert [int(word) for word in found.stdout.split()] == golden[:5].tolist()
    assert found.returncode == 0


def test_differences_count(design: Path) -> None:
    path = design / "golden/decoder/tokens.bin"
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    try:
        found = run(design)
    finally:
        path.write_bytes(good)
    assert found.stdout == f"1 of {TOKENS} ids differ\n"
    assert found.returncode == 1


@pytest.mark.parametrize(
    ("words", "ids", "message"),
    [
        (["/nowhere"], "", "/nowhere/images/"),
        ([".", "5"], "", "at least one each"),
        ([".", "40"], "1 2", "at most 40 positions"),
        ([".", "5"], "301", "id 301 is outside of the vocabulary"),
    ],
)
def test_refusals(design: Path, words: list[str], ids: str, message: str) -> None:
    found = run(design, *words, ids=ids)
    assert found.returncode == 2
    assert message in found.stderr
