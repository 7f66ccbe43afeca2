"""Heads and embedding fetch of the decoder, compiled with g++ for one shape, for their tests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codegen.csim import compile_testbench
from codegen.render import LIBRARY, library_headers
from fpga.decoder_design import STORED_BITS
from lutllm import int8_rows
from tests.hls_tools import FOLDER


@dataclass(frozen=True)
class Shape:
    """Sizes of one configuration.

    kind                 safetensors dtype of the stored rows
    slices, slice_width  of the LUT linear before the head; 0 slices: there is none
    margin               words whose coarse logit is so far below the largest have their row read
    """

    hidden: int
    words: int
    ports: int
    vector_lanes: int = 1
    axi_bits: int = 256
    kind: str = "I8"
    slices: int = 0
    slice_width: int = 0
    margin: float = 0.0

    @property
    def row_bytes(self) -> int:
        beat = self.axi_bits // 8
        size = self.hidden * STORED_BITS[self.kind] // 8 + (4 if self.kind == "I8" else 0)
        return -(-size // beat) * beat

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
            "MAX_TOKENS": 1,
            "LAYERS": 1,
            "CONTEXT": 8,
            "NORM_BASE": 0,
            "NORM_BEATS": 0,
            "VOCAB_SIZE": self.words,
            "VOCAB_PORTS": self.ports,
            "HEAD_BITS": STORED_BITS[self.kind],
            "EMBED_BITS": STORED_BITS[self.kind],
            "HEAD_LIMIT": int8_rows.hidden_limit(self.hidden),
            "SLICES": self.slices,
            "SLICE_WIDTH": self.slice_width,
        }
        lines = [f"    static constexpr int {k} = {v};" for k, v in sizes.items()]
        half = str(self.kind == "BF16").lower()
        lines += [f"    static constexpr bool {k} = {half};" for k in ("HEAD_BF16", "EMBED_BF16")]
        lines.append(f"    static constexpr float HEAD_MARGIN = {self.margin!r}f;")
        return "\n".join(["#pragma once", "struct Config {", *lines, "};", ""])


@dataclass(frozen=True)
class Program:
    """tests/hls/head_units.cpp for a shape."""

    path: Path
    shape: Shape

    @classmethod
    def build(cls, shape: Shape) -> Program:
        sources = {f"sim/{p.name}": p.read_text() for p in (LIBRARY / "sim").glob("*.h")}
        sources |= {f"sim/{name}": (LIBRARY / name).read_text() for name in library_headers()}
        sources["sim/CONFIG.h"] = shape.header()
        sources["sim/head_units.cpp"] = (FOLDER / "head_units.cpp").read_text()
        return cls(compile_testbench(sources, "sim/head_units.cpp"), shape)

    def memory(self, rows: np.ndarray, scale: np.ndarray | None = None) -> list[bytes]:
        """What lies behind every port: word i is row i / n of port i mod n.

        rows: stored values [V, H]; scale: f32[V] of int8 rows.
        """
        stored = np.zeros((len(rows), self.shape.row_bytes), np.uint8)
        raw = np.ascontiguousarray(rows).view(np.uint8)
        stored[:, : raw.shape[1]] = raw
        if scale is not None:
            stored[:, -4:] = scale[:, None].view(np.uint8)
        port_rows = -(-self.shape.words // self.shape.ports)
        size = port_rows * self.shape.row_bytes
        parts = [stored[p :: self.shape.ports].tobytes() for p in range(self.shape.ports)]
        return [part.ljust(size, b"\0") for part in parts]

    def run(self, arguments: list[str], data: bytes) -> bytes:
        command = [str(self.path), *arguments]
        found = subprocess.run(command, input=data, capture_output=True, check=False)
        assert found.returncode == 0, found.stderr.decode()
        return found.stdout

    def pad(self, x: np.ndarray) -> bytes:
        """f32[n] in whole words."""
        floats = self.shape.axi_bits // 32 * self.shape.vector_lanes
        return np.pad(x, (0, -len(x) % floats)).astype("<f4").tobytes()

    def head(self, x: np.ndarray, memory: list[bytes]) -> tuple[np.ndarray, int]:
        """Logits f32[V] of a vector f32[H], and the word chosen."""
        return self._logits(self.run(["head"], self.pad(x) + b"".join(memory)))

    def screen(
        self, x: np.ndarray, coarse: np.ndarray, memory: list[bytes]
    ) -> tuple[np.ndarray, int]:
        """The same behind coarse logits f32[slices * slice_width]."""
        return self._logits(self.run(["screen"], self.pad(x) + self.pad(coarse) + b"".join(memory)))

    def embed(self, row: int, memory: bytes) -> np.ndarray:
        """The row of that number behind a port, f32 in whole words."""
        return np.frombuffer(self.run(["embed", str(row)], memory), "<f4")

    def _logits(self, out: bytes) -> tuple[np.ndarray, int]:
        logits = np.frombuffer(out[:-4], "<f4")
        return logits[: self.shape.words], int.from_bytes(out[-4:], "little", signed=True)


def random_rows(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """int8 rows [V, H] and their scales."""
    rng = np.random.default_rng(0)
    return int8_rows.quantize_rows(rng.standard_normal((shape.words, shape.hidden), np.float32))
