"""The float steps of a decoder layer, compiled with g++, against float32 numpy references."""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from codegen.csim import compile_testbench
from codegen.render import LIBRARY, library_headers
from lutllm.emulator import reference
from lutllm.model_config import ModelConfig
from lutllm.rope import rope_tables
from tests.hls_tools import FOLDER


@dataclass(frozen=True)
class Shape:
    """Sizes of one configuration."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    query_tokens: int
    axi_bits: int = 256
    max_tokens: int = 12
    capacity: int = 40

    @property
    def floats(self) -> int:
        return self.axi_bits // 32

    def header(self) -> str:
        fields = {
            "AXI_BITS": self.axi_bits,
            "HIDDEN_SIZE": self.hidden,
            "INTERMEDIATE_SIZE": self.intermediate,
            "HEADS": self.heads,
            "KV_HEADS": self.kv_heads,
            "HEAD_DIM": self.head_dim,
            "QUERY_TOKENS": self.query_tokens,
            "MAX_TOKENS": self.max_tokens,
            "CAPACITY": self.capacity,
        }
        lines = [f"    static constexpr int {k} = {v};" for k, v in fields.items()]
        return "\n".join(["#pragma once", "struct Config {", *lines, "};", ""])


SHAPES = {
    "ragged": Shape(70, 100, 6, 2, 24, 4, axi_bits=128),
    "grouped": Shape(128, 200, 8, 2, 64, 1),
}


@dataclass(frozen=True)
class Program:
    path: Path
    shape: Shape

    def pad(self, values: np.ndarray) -> np.ndarray:
        """Zeros behind the last axis, to whole beats."""
        extra = -values.shape[-1] % self.shape.floats
        return np.pad(values.astype(np.float32), [(0, 0)] * (values.ndim - 1) + [(0, extra)])

    def run(
        self, command: str, *inputs: np.ndarray, tokens: int, first: int = 0, number: float = 0.0
    ) -> np.ndarray:
        data = b"".join(np.ascontiguousarray(self.pad(x)).tobytes() for x in inputs)
        words = [command, str(tokens), str(first), repr(float(number))]
        found = subprocess.run(
            [str(self.path), *words], input=data, capture_output=True, check=False
        )
        assert found.returncode == 0, found.stderr.decode()
        return np.frombuffer(found.stdout, np.float32)


@pytest.fixture(scope="module", params=SHAPES)
def program(request: pytest.FixtureRequest) -> Program:
    shape = SHAPES[request.param]
    sources = {f"sim/{p.name}": p.read_text() for p in (LIBRARY / "sim").glob("*.h")}
    sources |= {f"sim/{name}": (LIBRARY / name).read_text() for name in library_headers()}
    sources["sim/CONFIG.h"] = shape.header()
    sources["sim/decoder_units.cpp"] = (FOLDER / "decoder_units.cpp").read_text()
    return Program(compile_testbench(sources, "sim/decoder_units.cpp"), shape)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def test_exponential(program: Program, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.uniform(-87, 87, 4000), rng.uniform(-1, 1, 4000), [0, -0.0]])
    x = np.pad(x, (0, -len(x) % program.shape.floats)).astype(np.float32)
    found = program.run("exp", x, tokens=len(x) // program.shape.floats)
    wanted = np.exp(x.astype(np.float64))
    assert (np.abs(found - wanted) <= 2.1 * np.spacing(wanted.astype(np.float32))).all()
    assert found[8000] == found[8001] == 1.0
    ends = program.run("exp", np.full(program.shape.floats, -1e30, np.float32), tokens=1)
    assert 0 < ends[0] < 1e-37


def test_rms_norm(program: Program, rng: np.random.Generator) -> None:
    size = program.shape.hidden
    x, weight = normal(rng, 5, size) * 30, 1 + normal(rng, size)
    x[1] = 0
    found = program.run("norm", x, weight, tokens=5, number=1e-6)
    wanted = reference.rms_norm(x, weight, 1e-6)
    found = found.reshape(5, -1)
    np.testing.assert_allclose(found[:, :size], wanted, rtol=2e-6, atol=1e-7)
    assert not found[:, size:].any()  # padding stays zero


def test_rotary(program: Program, rng: np.random.Generator) -> None:
    shape = program.shape
    config = ModelConfig(
        model_type="llama",
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=8,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        qkv_bias=False,
        qk_norm=False,
    )
    cos, sin = (table[7:11] for table in rope_tables(config, 16))
    x = normal(rng, 4, shape.heads, shape.head_dim)
    angles = np.stack([program.pad(cos), program.pad(sin)], axis=1)
    found = program.run("rotate", x, angles, tokens=4).reshape(4, shape.heads, -1)
    wanted = reference.rotate(x, cos, sin)
    np.testing.assert_allclose(found[..., : shape.head_dim], wanted, rtol=1e-6, atol=1e-6)
    assert not found[..., shape.head_dim :].any()


def test_swiglu(program: Program, rng: np.random.Generator) -> None:
    size = program.shape.intermediate
    gate, up = normal(rng, 3, size) * 20, normal(rng, 3, size)
    gate[0, :3] = [100, -100, 0]
    found = program.run("swiglu", np.stack([gate, up], axis=1), tokens=3).reshape(3, -1)
    wanted = reference.silu(gate.astype(np.float64)) * up
    np.testing.assert_allclose(found[:, :size], wanted, rtol=1e-6, atol=1e-30)


def attend(program: Program, past: int, tokens: int, seed: int, spread: float = 1.0) -> None:
    """A run of `tokens` after `past` positions, results and caches against numpy."""
    shape = program.shape
    rng = np.random.default_rng(seed)
    q = normal(rng, past + tokens, shape.heads, shape.head_dim) * spread
    k, v = (normal(rng, past + tokens, shape.kv_heads, shape.head_dim) for _ in "kv")
    wanted = reference.attention(*(a.astype(np.float64) for a in (q, k, v)))[past:]
    caches = []
    for rows in (k, v):
        cache = np.full((shape.kv_heads, shape.capacity, shape.head_dim), 1e6, np.float32)
        cache[:, :past] = rows[:past].swapaxes(0, 1)
        caches.append(cache)
    found = program.run(
        "attention",
        *caches,
        q[past:],
        k[past:],
        v[past:],
        tokens=tokens,
        first=past,
        number=shape.head_dim**-0.5,
    )
    padded = -(-shape.head_dim // shape.floats) * shape.floats
    count = tokens * shape.heads * padded
    y = found[:count].reshape(tokens, shape.heads, padded)[..., : shape.head_dim]
    np.testing.assert_allclose(y.reshape(tokens, -1), wanted, rtol=2e-5, atol=2e-6)
    stored = found[count:].reshape(2, shape.kv_heads, shape.capacity, padded)
    for cache, rows in zip(stored, (k, v), strict=True):
        kept = cache[:, : past + tokens, : shape.head_dim].swapaxes(0, 1)
        np.testing.assert_array_equal(kept, rows)
        assert (cache[:, past + tokens :, : shape.head_dim] == 1e6).all()


@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (17, 1), (0, 12), (5, 7), (28, 12)])
def test_attention(program: Program, past: int, tokens: int) -> None:
    attend(program, past, tokens, seed=past + tokens)


def test_attention_with_extreme_scores(program: Program) -> None:
    """Scores of several hundred: a softmax without its maximum would overflow."""
    attend(program, 9, 4, seed=3, spread=math.sqrt(program.shape.head_dim) * 60)


def test_cache_overflow_is_caught(program: Program) -> None:
    with pytest.raises(AssertionError, match="BURST: attention/key_cache/burst of"):
        attend_beyond(program)


def attend_beyond(program: Program) -> None:
    shape = program.shape
    ones = np.ones((shape.kv_heads, shape.capacity, shape.head_dim), np.float32)
    rows = np.ones((2, shape.kv_heads, shape.head_dim), np.float32)
    q = np.ones((2, shape.heads, shape.head_dim), np.float32)
    last = shape.capacity - 1
    program.run("attention", ones, ones, q, rows, rows, tokens=2, first=last, number=1.0)
