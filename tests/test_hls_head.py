"""The int8 head, arg-max and embedding fetch of the decoder against lutllm/int8_rows.py."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from codegen.csim import compile_testbench
from codegen.render import LIBRARY, library_headers
from lutllm import int8_rows
from tests.hls_tools import FOLDER


@dataclass(frozen=True)
class Shape:
    """Sizes of one configuration."""

    hidden: int
    words: int
    ports: int
    vector_lanes: int = 1
    axi_bits: int = 256

    @property
    def row_bytes(self) -> int:
        beat = self.axi_bits // 8
        return -(-(self.hidden + 4) // beat) * beat

    def header(self) -> str:
        sizes = {
            "AXI_BITS": self.axi_bits,
            "HIDDEN_SIZE": self.hidden,
            "INTERMEDIATE_SIZE": self.hidden,
            "HEADS": 1,
            "KV_HEADS": 1,
            "HEAD_DIM": self.axi_bits // 32,
            "QUERY_TOKENS": 1,
            "KV_PORTS": 1,
            "VECTOR_LANES": self.vector_lanes,
            "MIN_WORDS": 1,
            "MAX_TOKENS": 1,
            "LAYERS": 1,
            "CONTEXT": 8,
            "NORM_BASE": 0,
            "NORM_BEATS": 0,
            "VOCAB_SIZE": self.words,
            "VOCAB_PORTS": self.ports,
            "HEAD_BITS": 8,
            "EMBED_BITS": 8,
            "HEAD_LIMIT": int8_rows.hidden_limit(self.hidden),
            "SLICES": 0,
            "SLICE_WIDTH": 0,
        }
        lines = [f"    static constexpr int {k} = {v};" for k, v in sizes.items()]
        lines += [f"    static constexpr bool {k} = false;" for k in ("HEAD_BF16", "EMBED_BF16")]
        return "\n".join(["#pragma once", "struct Config {", *lines, "};", ""])


SHAPES = {
    "ragged": Shape(70, 301, 3, vector_lanes=2),
    "scale alone in its beat": Shape(64, 96, 8),
    "wide words": Shape(72, 45, 16, vector_lanes=8),
    "narrow port": Shape(28, 33, 1, axi_bits=128),
}


@dataclass(frozen=True)
class Program:
    path: Path
    shape: Shape

    def memory(self, weight: np.ndarray, scale: np.ndarray) -> list[bytes]:
        """What lies behind every port: word i is row i / n of port i mod n."""
        rows = np.zeros((len(weight), self.shape.row_bytes), np.uint8)
        rows[:, : weight.shape[1]] = weight.view(np.uint8)
        rows[:, -4:] = scale[:, None].view(np.uint8)
        port_rows = -(-self.shape.words // self.shape.ports)
        size = port_rows * self.shape.row_bytes
        parts = [rows[p :: self.shape.ports].tobytes() for p in range(self.shape.ports)]
        return [part.ljust(size, b"\0") for part in parts]

    def run(self, arguments: list[str], data: bytes) -> bytes:
        command = [str(self.path), *arguments]
        found = subprocess.run(command, input=data, capture_output=True, check=False)
        assert found.returncode == 0, found.stderr.decode()
        return found.stdout

    def head(self, x: np.ndarray, memory: list[bytes]) -> tuple[np.ndarray, int]:
        floats = self.shape.axi_bits // 32 * self.shape.vector_lanes
        padded = np.pad(x, (0, -len(x) % floats)).astype("<f4")
        out = self.run(["head"], padded.tobytes() + b"".join(memory))
        logits = np.frombuffer(out[:-4], "<f4")
        return logits[: self.shape.words], int.from_bytes(out[-4:], "little", signed=True)


@pytest.fixture(scope="module", params=SHAPES)
def program(request: pytest.FixtureRequest) -> Program:
    shape = SHAPES[request.param]
    sources = {f"sim/{p.name}": p.read_text() for p in (LIBRARY / "sim").glob("*.h")}
    sources |= {f"sim/{name}": (LIBRARY / name).read_text() for name in library_headers()}
    sources["sim/CONFIG.h"] = shape.header()
    sources["sim/head_units.cpp"] = (FOLDER / "head_units.cpp").read_text()
    return Program(compile_testbench(sources, "sim/head_units.cpp"), shape)


def random_rows(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return int8_rows.quantize_rows(rng.standard_normal((shape.words, shape.hidden), np.float32))


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e20, 0.0, 1e-31])
def test_logits_are_exact_and_the_largest_is_chosen(program: Program, size: float) -> None:
    """Of a vector of zeros, and one too small to be rounded, too."""
    shape = program.shape
    weight, scale = random_rows(shape)
    x = np.random.default_rng(1).standard_normal(shape.hidden) * size
    x = x.astype(np.float32)
    found, chosen = program.head(x, program.memory(weight, scale))
    wanted = int8_rows.logits(x[None], weight, scale)[0]
    np.testing.assert_array_equal(found, wanted)
    assert chosen == wanted.argmax()


@pytest.mark.parametrize("word", [0, 1, -1])
def test_lowest_of_equals_is_chosen(program: Program, word: int) -> None:
    """The same largest row at several places, behind ports of all kinds."""
    shape = program.shape
    weight, scale = random_rows(shape)
    first = word % shape.words
    x = np.ones(shape.hidden, np.float32)
    for place in {first, shape.words // 2, shape.words - 1}:
        weight[place], scale[place] = 127, 1.0
    _, chosen = program.head(x, program.memory(weight, scale))
    assert chosen == min(first, shape.words // 2)


def test_embedding_is_the_stored_row(program: Program) -> None:
    shape = program.shape
    weight, scale = random_rows(shape)
    values = int8_rows.dequantize_rows(weight, scale)
    port = min(1, shape.ports - 1)
    memory = program.memory(weight, scale)[port]
    for row in (0, 1, (shape.words - 1 - port) // shape.ports):
        found = np.frombuffer(program.run(["embed", str(row)], memory), "<f4")
        wanted = values[port + row * shape.ports]
        np.testing.assert_array_equal(found[: shape.hidden], wanted)
        assert not found[shape.hidden :].any()  # the scale is no value


def test_changed_scale_shows(program: Program) -> None:
    weight, scale = random_rows(program.shape)
    x = np.random.default_rng(2).standard_normal(program.shape.hidden).astype(np.float32)
    wanted, _ = program.head(x, program.memory(weight, scale))
    scale[5] *= np.float32(1.5)
    found, _ = program.head(x, program.memory(weight, scale))
    assert np.flatnonzero(found != wanted).tolist() == [5]
