"""The int8 head, arg-max and embedding fetch of the decoder against lutllm/int8_rows.py."""

from __future__ import annotations

import numpy as np
import pytest

from lutllm import int8_rows
from tests.hls_heads import Program, Shape, random_rows

SHAPES = {
    "ragged": Shape(70, 301, 3, vector_lanes=2),
    "scale alone in its beat": Shape(64, 96, 8),
    "wide words": Shape(72, 45, 16, vector_lanes=8),
    "narrow port": Shape(28, 33, 1, axi_bits=128),
}


@pytest.fixture(scope="module", params=SHAPES)
def program(request: pytest.FixtureRequest) -> Program:
    return Program.build(SHAPES[request.param])


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
        found = program.embed(row, memory)
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
