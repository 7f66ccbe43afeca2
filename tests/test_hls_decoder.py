"""The float steps of a decoder layer, compiled with g++, against float32 numpy references."""

from __future__ import annotations

import dataclasses
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
    kv_ports: int
    vector_lanes: int = 1
    axi_bits: int = 256
    max_tokens: int = 12
    capacity: int = 313

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
            "KV_PORTS": self.kv_ports,
            "VECTOR_LANES": self.vector_lanes,
            "MAX_TOKENS": self.max_tokens,
            "CAPACITY": self.capacity,
        }
        lines = [f"    static constexpr int {k} = {v};" for k, v in fields.items()]
        return "\n".join(["#pragma once", "struct Config {", *lines, "};", ""])


SHAPES = {
    "ragged": Shape(70, 100, 6, 2, 24, 4, 3, vector_lanes=2, axi_bits=128),
    "grouped": Shape(128, 200, 8, 2, 64, 1, 8, vector_lanes=8),
    "wide heads": Shape(
        64, 72, 5, 1, 128, 5, 4, 4
    ),  # five queries in all, of a run of three tokens
    "one port": Shape(64, 72, 4, 4, 16, 3, 1),
    "one short head": Shape(64, 72, 1, 1, 16, 2, 5),  # less than an engine reads at least
}


@dataclass(frozen=True)
class Program:
    path: Path
    shape: Shape

    def pad(self, values: np.ndarray) -> np.ndarray:
        """Zeros behind the last axis, to whole beats."""
        return self._pad_to(values, self.shape.floats)

    def pad_words(self, values: np.ndarray) -> np.ndarray:
        """Zeros behind the last axis, to whole words."""
        return self._pad_to(values, self.shape.floats * self.shape.vector_lanes)

    @staticmethod
    def _pad_to(values: np.ndarray, size: int) -> np.ndarray:
        extra = -values.shape[-1] % size
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
    words = program.pad_words(x), program.pad_words(weight)
    found = program.run("norm", *words, tokens=5, number=1e-6)
    wanted = reference.rms_norm(x, weight, 1e-6)
    found = found.reshape(5, -1)
    np.testing.assert_allclose(found[:, :size], wanted, rtol=2e-6, atol=1e-7)
    assert not found[:, size:].any()  # padding stays zero


#: Rotary scaling of Llama 3: long wavelengths, short ones, and the ramp between.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_rotary(program: Program, rng: np.random.Generator, scaling: dict | None) -> None:
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
        rope_scaling=scaling,
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
    if scaling:  # it turns what is not scaled by other angles
        plain = rope_tables(dataclasses.replace(config, rope_scaling=None), 16)
        other = reference.rotate(x, *(table[7:11] for table in plain))
        assert np.abs(found[..., : shape.head_dim] - other).max() > 0.1


def test_swiglu(program: Program, rng: np.random.Generator) -> None:
    size = program.shape.intermediate
    gate, up = normal(rng, 3, size) * 20, normal(rng, 3, size)
    gate[0, :3] = [100, -100, 0]
    words = program.pad_words(gate), program.pad_words(up)
    found = program.run("swiglu", *words, tokens=3).reshape(3, -1)
    wanted = reference.silu(gate.astype(np.float64)) * up
    np.testing.assert_allclose(found[:, :size], wanted, rtol=1e-6, atol=1e-30)


def striped(cache: np.ndarray, ports: int) -> np.ndarray:
    """f32[key heads, positions, head_dim] -> f32[port, key heads, rows, head_dim]."""
    heads, _, size = cache.shape
    return cache.reshape(heads, -1, ports, size).transpose(2, 0, 1, 3)


def empty_cache(shape: Shape) -> np.ndarray:
    """Room for CAPACITY positions behind whole rows of ports; what is not written is no number."""
    rows = -(-shape.capacity // shape.kv_ports)
    return np.full((shape.kv_heads, rows * shape.kv_ports, shape.head_dim), np.nan, np.float32)


def run_attention(
    program: Program, caches: list[np.ndarray], q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Attention of the last queries over caches that hold the positions before, as stored."""
    past = len(k) - len(q)
    return program.run(
        "attention",
        *caches,
        q,
        k[past:],
        v[past:],
        tokens=len(q),
        first=past,
        number=program.shape.head_dim**-0.5,
    )


def attend(program: Program, past: int, tokens: int, seed: int, spread: float = 1.0) -> None:
    """A run of `tokens` after `past` positions, results and caches against numpy."""
    shape = program.shape
    rng = np.random.default_rng(seed)
    q = normal(rng, past + tokens, shape.heads, shape.head_dim) * spread
    k, v = (normal(rng, past + tokens, shape.kv_heads, shape.head_dim) for _ in "kv")
    wanted = reference.attention(*(a.astype(np.float64) for a in (q, k, v)))[past:]
    caches = []
    for rows in (k, v):
        cache = empty_cache(shape)
        cache[:, :past] = rows[:past].swapaxes(0, 1)
        caches.append(striped(cache, shape.kv_ports))
    found = run_attention(program, caches, q[past:], k, v)
    padded = -(-shape.head_dim // shape.floats) * shape.floats
    word = shape.vector_lanes * shape.floats
    stride = -(-shape.heads * padded // word) * word
    x = found[: tokens * stride].reshape(tokens, stride)
    assert not x[:, shape.heads * padded :].any()
    y = x[:, : shape.heads * padded].reshape(tokens, shape.heads, padded)[..., : shape.head_dim]
    np.testing.assert_allclose(y.reshape(tokens, -1), wanted, rtol=2e-5, atol=2e-6)
    stored = found[tokens * stride :].reshape(2, *caches[0].shape[:-1], padded)
    for cache, rows in zip(stored[..., : shape.head_dim], (k, v), strict=True):
        full = empty_cache(shape)
        full[:, : past + tokens] = rows.swapaxes(0, 1)
        np.testing.assert_array_equal(cache, striped(full, shape.kv_ports))


@pytest.mark.parametrize(
    ("past", "tokens"), [(0, 1), (1, 1), (17, 1), (0, 12), (5, 7), (28, 12), (300, 3), (311, 1)]
)
def test_attention(program: Program, past: int, tokens: int) -> None:
    attend(program, past, tokens, seed=past + tokens)


def test_attention_with_extreme_scores(program: Program) -> None:
    """Scores of several hundred: a softmax without its maximum would overflow."""
    attend(program, 9, 4, seed=3, spread=math.sqrt(program.shape.head_dim) * 60)


def test_growing_scores_leave_nothing_of_what_came_before(program: Program) -> None:
    """Every stripe has a larger maximum than all before: the last key has all the weight."""
    shape = program.shape
    positions = 40
    q = np.ones((1, shape.heads, shape.head_dim), np.float32)
    size = 100 * np.arange(positions, dtype=np.float32)[:, None, None]
    k = np.broadcast_to(size, (positions, shape.kv_heads, shape.head_dim))
    v = normal(np.random.default_rng(5), positions, shape.kv_heads, shape.head_dim)
    caches = []
    for rows in (k, v):
        cache = empty_cache(shape)
        cache[:, : positions - 1] = rows[:-1].swapaxes(0, 1)
        caches.append(striped(cache, shape.kv_ports))
    found = run_attention(program, caches, q, k, v)
    padded = -(-shape.head_dim // shape.floats) * shape.floats
    y = found[: shape.heads * padded].reshape(shape.heads, padded)[:, : shape.head_dim]
    wanted = np.repeat(v[-1], shape.heads // shape.kv_heads, axis=0)
    np.testing.assert_allclose(y, wanted, rtol=1e-6)


def test_values_behind_the_wrong_port_show(program: Program) -> None:
    """Values one port further than their keys: weights meet values of other positions."""
    shape = program.shape
    if shape.kv_ports == 1:
        pytest.skip("there is no other port")
    past = 4 * shape.kv_ports - 1
    rng = np.random.default_rng(7)
    q = normal(rng, 1, shape.heads, shape.head_dim)
    k, v = (normal(rng, past + 1, shape.kv_heads, shape.head_dim) for _ in "kv")
    caches = []
    for rows in (k, v):
        cache = empty_cache(shape)
        cache[:, : past + 1] = rows.swapaxes(0, 1)
        caches.append(striped(cache, shape.kv_ports))
    right = run_attention(program, caches, q, k, v)
    shifted = [caches[0], np.roll(caches[1], 1, axis=0)]
    count = shape.heads * shape.head_dim
    wrong = run_attention(program, shifted, q, k, v)
    assert np.abs(wrong[:count] - right[:count]).max() > 0.1


def test_cache_overflow_is_caught(program: Program) -> None:
    """Two tokens where the caches have room for one more."""
    shape = program.shape
    caches = [striped(np.nan_to_num(empty_cache(shape)), shape.kv_ports)] * 2
    positions = caches[0].shape[0] * caches[0].shape[2] + 1
    rows = np.ones((positions, shape.kv_heads, shape.head_dim), np.float32)
    q = np.ones((2, shape.heads, shape.head_dim), np.float32)
    with pytest.raises(AssertionError, match="BURST: key_cache/port_0/burst of"):
        run_attention(program, caches, q, rows, rows)
