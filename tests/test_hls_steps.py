"""The steps beside the engines of a decoder, without engines, against float32 numpy references.

Heads to attention: narrowed, normed, turned and dealt to ports. The ring from results to inputs:
dealt by projection, added to the residual of their part, normed, gated.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from codegen.csim import compile_testbench
from codegen.render import LIBRARY, library_headers
from fpga.schedule import TURNS
from lutllm.emulator import reference
from tests.hls_tools import FOLDER

LAYERS, CONTEXT, EPS = 2, 24, 1e-6


@dataclass(frozen=True)
class Shape:
    """Sizes of one configuration."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_ports: int
    vector_lanes: int
    qk_norm: bool
    max_tokens: int = 5
    floats: int = 4  # of a beat

    def beats(self, values: int) -> int:
        return -(-values // self.floats)

    @property
    def word(self) -> int:
        """Floats of a word."""
        return self.floats * self.vector_lanes

    @property
    def angle_beats(self) -> int:
        return 2 * self.beats(self.head_dim // 2)

    @property
    def norm_beats(self) -> int:
        return 2 * self.beats(self.hidden) + 2 * self.qk_norm * self.beats(self.head_dim)

    def header(self) -> str:
        sizes = {
            "AXI_BITS": 32 * self.floats,
            "HIDDEN_SIZE": self.hidden,
            "INTERMEDIATE_SIZE": self.intermediate,
            "HEADS": self.heads,
            "KV_HEADS": self.kv_heads,
            "HEAD_DIM": self.head_dim,
            "QUERY_TOKENS": 1,
            "KV_PORTS": self.kv_ports,
            "VECTOR_LANES": self.vector_lanes,
            "MAX_TOKENS": self.max_tokens,
            "LAYERS": LAYERS,
            "CONTEXT": CONTEXT,
            "NORM_BASE": CONTEXT * self.angle_beats,
            "NORM_BEATS": self.norm_beats,
            "VOCAB_SIZE": 8,
            "VOCAB_PORTS": 1,
            "HEAD_BITS": 8,
            "EMBED_BITS": 8,
            "SLICES": 0,
            "SLICE_WIDTH": 0,
        }
        lines = [f"    static constexpr int {k} = {v};" for k, v in sizes.items()]
        lines.append(f"    static constexpr bool QK_NORM = {str(self.qk_norm).lower()};")
        lines.append(f"    static constexpr float EPS = {EPS!r}f;")
        return "\n".join(["#pragma once", "struct Config {", *lines, "};", ""])


SHAPES = {
    "normed heads": Shape(20, 28, 4, 2, 8, kv_ports=3, vector_lanes=2, qk_norm=True),
    "plain heads": Shape(24, 40, 2, 2, 16, kv_ports=4, vector_lanes=4, qk_norm=False),
    "one key head, beats": Shape(9, 14, 3, 1, 12, kv_ports=1, vector_lanes=1, qk_norm=True),
}


@dataclass(frozen=True)
class Program:
    path: Path
    shape: Shape

    def pad(self, values: np.ndarray, size: int) -> np.ndarray:
        """Zeros behind the last axis, to a multiple of `size`."""
        extra = -values.shape[-1] % size
        return np.pad(values.astype("<f4"), [(0, 0)] * (values.ndim - 1) + [(0, extra)])

    def words(self, values: np.ndarray) -> np.ndarray:
        return self.pad(values, self.shape.word)

    def run(self, command: str, tokens: int, number: int, *inputs: np.ndarray) -> np.ndarray:
        data = b"".join(np.ascontiguousarray(x, "<f4").tobytes() for x in inputs)
        found = subprocess.run(
            [str(self.path), command, str(tokens), str(number)],
            input=data,
            capture_output=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr.decode()
        return np.frombuffer(found.stdout, "<f4")


@pytest.fixture(scope="module", params=SHAPES)
def program(request: pytest.FixtureRequest) -> Program:
    shape = SHAPES[request.param]
    sources = {f"sim/{p.name}": p.read_text() for p in (LIBRARY / "sim").glob("*.h")}
    sources |= {f"sim/{name}": (LIBRARY / name).read_text() for name in library_headers()}
    sources["sim/CONFIG.h"] = shape.header()
    sources["sim/step_units.cpp"] = (FOLDER / "step_units.cpp").read_text()
    return Program(compile_testbench(sources, "sim/step_units.cpp"), shape)


@pytest.mark.parametrize(("tokens", "first"), [(1, 0), (1, 7), (5, 0), (4, 10)])
def test_heads_are_normed_turned_and_dealt(program: Program, tokens: int, first: int) -> None:
    """Of layer 1, whose norms lie behind those of layer 0."""
    shape = program.shape
    rng = np.random.default_rng(tokens + first)
    q = rng.standard_normal((tokens, shape.heads, shape.head_dim), np.float32) * 3
    k, v = rng.standard_normal((2, tokens, shape.kv_heads, shape.head_dim), np.float32)
    angles = rng.uniform(0, 6, (CONTEXT, shape.head_dim // 2))
    cos, sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
    norms = 1 + rng.standard_normal((LAYERS, 2, shape.head_dim), np.float32)
    table = np.stack([program.pad(cos, shape.floats), program.pad(sin, shape.floats)], axis=1)
    layers = np.full((LAYERS, shape.norm_beats * shape.floats), 9, np.float32)
    if shape.qk_norm:
        layers[:, -2 * shape.head_dim :] = norms.reshape(LAYERS, -1)
    final = np.zeros(shape.beats(shape.hidden) * shape.floats)
    inputs = [program.words(x) for x in (q, k, v)]
    found = program.run("heads", tokens, first, *inputs, table, layers, final)

    if shape.qk_norm:
        q, k = (reference.rms_norm(x, norms[1, i], EPS) for i, x in enumerate((q, k)))
    here = slice(first, first + tokens)
    q, k = (reference.rotate(x, cos[here], sin[here]) for x in (q, k))
    ports = np.arange(first, first + tokens) % shape.kv_ports
    dealt = [x[ports == p].ravel() for x in (k, v) for p in range(shape.kv_ports)]
    wanted = np.concatenate([q.ravel(), *dealt])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 6, 9, 10])
def test_results_become_inputs(program: Program, tokens: int, head: bool) -> None:
    """Runs of one part and of two: results in the order of the turns, inputs in theirs."""
    shape, rng = program.shape, np.random.default_rng(tokens)
    halves = [tokens] if tokens <= shape.max_tokens else [-(-tokens // 2), tokens // 2]
    hidden = rng.standard_normal((tokens, shape.hidden), np.float32)
    norms = 1 + rng.standard_normal((2 * LAYERS + 1, shape.hidden), np.float32)
    parts = np.split(hidden.copy(), halves[:1])[: len(halves)]
    results: list[np.ndarray] = []
    queries, keys, values, gated = ([] for _ in range(4))
    normed = [reference.rms_norm(part, norms[0], EPS) for part in parts]
    qkv_heads = shape.heads + 2 * shape.kv_heads
    for at in range(LAYERS + 1):
        for turn in TURNS:
            layer = at - turn.back
            if turn.part >= len(parts) or not 0 <= layer < LAYERS:
                continue
            count = halves[turn.part]
            if turn.projection == "qkv_proj":
                y = rng.standard_normal((count, qkv_heads, shape.head_dim), np.float32)
                split = np.split(y, [shape.heads, shape.heads + shape.kv_heads], axis=1)
                for found, part in zip((queries, keys, values), split, strict=True):
                    found.append(program.words(part).ravel())
            elif turn.projection == "gate_up_proj":
                y = rng.standard_normal((count, 2, shape.intermediate), np.float32) * 4
                gated.append(program.words(reference.silu(y[:, 0]) * y[:, 1]).ravel())
            else:
                y = rng.standard_normal((count, shape.hidden), np.float32)
                parts[turn.part] += y
                norm = 2 * layer + (1 if turn.projection == "o_proj" else 2)
                passed = parts[turn.part]
                if norm == 2 * LAYERS:
                    passed = passed[-1:] if head and turn.part == len(parts) - 1 else passed[:0]
                normed.append(reference.rms_norm(passed, norms[norm], EPS))
            results.append(program.words(y).ravel())
    found = program.run(
        "ring", tokens, int(head), program.words(hidden), program.words(norms), *results
    )
    vectors = [program.words(x).ravel() for x in normed]
    wanted = np.concatenate([*queries, *keys, *values, *vectors, *gated])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)
    dealt = sum(part.size for part in (*queries, *keys, *values))
    np.testing.assert_array_equal(found[:dealt], wanted[:dealt])
