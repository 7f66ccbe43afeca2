"""Head and embedding of rows as a checkpoint stores them, F16, BF16 and F32, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.hls_heads import Program, Shape

SHAPES = {
    "F16": Shape(70, 301, 3, vector_lanes=2, kind="F16"),
    "BF16": Shape(72, 45, 16, vector_lanes=8, kind="BF16"),
    "F32": Shape(28, 96, 8, axi_bits=128, kind="F32"),
    "BF16, rows of many beats": Shape(320, 33, 1, vector_lanes=4, kind="BF16"),
    "F32, rows of one beat": Shape(8, 40, 4, kind="F32"),
}


@pytest.fixture(scope="module", params=SHAPES)
def program(request: pytest.FixtureRequest) -> Program:
    return Program.build(SHAPES[request.param])


def store(values: np.ndarray, kind: str) -> np.ndarray:
    """f32 values as a checkpoint holds them; of BF16 the bits, those behind cut off."""
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16 if kind == "F16" else np.float32)


def load(stored: np.ndarray, kind: str) -> np.ndarray:
    """Their float32 values."""
    if kind == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def random_rows(shape: Shape) -> np.ndarray:
    """Stored rows [V, H]: ordinary values, tiny ones that are subnormal in F16, zeros, extremes."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((shape.words, shape.hidden), np.float32)
    rows[1] *= np.float32(1e-6)
    rows[2] = 0
    rows[3, ::2], rows[3, 1::2] = 65504, -65504
    rows[4, 0], rows[4, 1] = 2**-24, -(2**-14)
    return store(rows, shape.kind)


def test_embedding_is_the_stored_row(program: Program) -> None:
    shape = program.shape
    stored = random_rows(shape)
    values = load(stored, shape.kind)
    memory = program.memory(stored)
    for word in (0, 1, 2, 3, 4, shape.words - 1):
        found = program.embed(word // shape.ports, memory[word % shape.ports])
        np.testing.assert_array_equal(found[: shape.hidden], values[word])
        assert not found[shape.hidden :].any()


def test_every_half_precision_value_is_read() -> None:
    """All finite values of F16, subnormal ones and both zeros included."""
    shape = Shape(64, 1024, 1, kind="F16")
    program = Program.build(shape)
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = np.where(np.isfinite(bits.view(np.float16)), bits, 0).reshape(shape.words, -1)
    memory = program.memory(finite.view(np.float16))[0]
    for row in range(0, shape.words, 31):  # every sign and exponent
        wanted = finite[row].view(np.float16).astype(np.float32)
        np.testing.assert_array_equal(
            program.embed(row, memory).view(np.uint32), wanted.view(np.uint32)
        )


def test_logits_are_products_and_the_largest_is_chosen(program: Program) -> None:
    shape = program.shape
    stored = random_rows(shape)
    x = np.random.default_rng(1).standard_normal(shape.hidden).astype(np.float32)
    found, chosen = program.head(x, program.memory(stored))
    values = load(stored, shape.kind).astype(np.float64)
    size = np.abs(values) @ np.abs(x)  # what an error of rounding is relative to
    assert (np.abs(found - values @ x) <= 1e-6 * size).all()
    assert chosen == found.argmax()


def test_equal_logits_give_the_lowest_word(program: Program) -> None:
    shape = program.shape
    rows = np.zeros((shape.words, shape.hidden), np.float32)
    rows[[7, 20, shape.words - 1], 3] = 1.5
    x = np.ones(shape.hidden, np.float32)
    found, chosen = program.head(x, program.memory(store(rows, shape.kind)))
    assert found[[7, 20, shape.words - 1]].tolist() == [1.5] * 3
    assert chosen == 7


def test_changed_value_shows_in_its_word(program: Program) -> None:
    shape = program.shape
    stored = random_rows(shape)
    x = np.random.default_rng(2).standard_normal(shape.hidden).astype(np.float32)
    wanted, _ = program.head(x, program.memory(stored))
    stored[5, -1] = store(np.full(1, 9, np.float32), shape.kind)[0]
    found, _ = program.head(x, program.memory(stored))
    assert np.flatnonzero(found != wanted).tolist() == [5]
