"""A head behind a LUT linear against `lutllm.int8_rows.screen`: coarse logits in, the word out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lutllm import int8_rows
from tests.hls_heads import Program, Shape, random_rows

SHAPES = {
    "ragged": Shape(70, 301, 3, vector_lanes=2, slices=3, slice_width=112, margin=0.5),
    "one slice": Shape(64, 96, 8, slices=1, slice_width=96, margin=2.0),
    "wide words": Shape(72, 450, 16, vector_lanes=8, slices=4, slice_width=128, margin=0.25),
    "narrow port": Shape(28, 333, 1, axi_bits=128, slices=7, slice_width=48, margin=1.0),
}


@pytest.fixture(scope="module", params=SHAPES)
def program(request: pytest.FixtureRequest) -> Program:
    return Program.build(SHAPES[request.param])


@dataclasses.dataclass(frozen=True)
class Case:
    """Stored rows, a vector, the coarse logits of all slices, and the exact ones."""

    weight: np.ndarray
    scale: np.ndarray
    x: np.ndarray
    coarse: np.ndarray

    @classmethod
    def random(cls, shape: Shape, noise: float = 0.3) -> Case:
        weight, scale = random_rows(shape)
        rng = np.random.default_rng(1)
        x = rng.standard_normal(shape.hidden).astype(np.float32)
        exact = int8_rows.logits(x[None], weight, scale)[0]
        padded = np.full(shape.slices * shape.slice_width, 1e9, np.float32)  # must not count
        padded[: shape.words] = exact + noise * rng.standard_normal(shape.words)
        return cls(weight, scale, x, padded)

    @property
    def exact(self) -> np.ndarray:
        return int8_rows.logits(self.x[None], self.weight, self.scale)[0]

    def run(self, program: Program) -> tuple[np.ndarray, int]:
        return program.screen(self.x, self.coarse, program.memory(self.weight, self.scale))

    def check(self, program: Program) -> np.ndarray:
        """Logits and word are those of the definition; bool[V] the words near the largest."""
        shape = program.shape
        coarse = self.coarse[: shape.words]
        wanted = int8_rows.screen(coarse[None], self.exact[None], shape.margin)[0]
        found, chosen = self.run(program)
        np.testing.assert_array_equal(found, wanted)
        assert chosen == wanted.argmax()
        return coarse >= coarse.max() - np.float32(shape.margin)


def test_logits_of_near_words_are_exact(program: Program) -> None:
    near = Case.random(program.shape).check(program)
    assert 0 < near.sum() < len(near)


def test_every_word_near(program: Program) -> None:
    case = Case.random(program.shape)
    case.coarse[: program.shape.words] = 1.25
    assert case.check(program).all()


def test_one_word_near_in_the_last_slice(program: Program) -> None:
    case = Case.random(program.shape)
    case.coarse[program.shape.words - 1] = 1e6
    assert case.check(program).sum() == 1


def test_a_word_on_the_margin_is_near(program: Program) -> None:
    """The comparison is `coarse >= largest - margin` in float32, one step of a float decides."""
    case = Case.random(program.shape)
    top = np.float32(77.7)
    least = top - np.float32(program.shape.margin)
    case.coarse[0], case.coarse[9], case.coarse[20] = top, least, np.nextafter(least, np.float32(0))
    near = case.check(program)
    assert np.flatnonzero(near).tolist() == [0, 9]


def test_a_far_word_may_win(program: Program) -> None:
    """Where the exact logits of near words are below a coarse one; the lowest of equals."""
    shape = program.shape
    case = Case.random(shape)
    case.weight[7] = 0  # its exact logit is zero
    case.coarse[:] = -50
    case.coarse[7] = 100
    low = np.float32(100) - np.float32(shape.margin) - 1
    case.coarse[[3, 30]] = low
    assert np.flatnonzero(case.check(program)).tolist() == [7]
    assert case.run(program)[1] == 3


def test_lowest_of_equals_near_and_far(program: Program) -> None:
    """A near word whose exact logit equals the coarse one of a far word before it, and behind."""
    shape = program.shape
    case = Case.random(shape)
    case.coarse[:] = -1e6
    case.coarse[11] = 1e6  # the one near word
    for other, word in ((5, 5), (17, 11)):
        changed = dataclasses.replace(case, coarse=case.coarse.copy())
        changed.coarse[other] = changed.exact[11]
        changed.check(program)
        assert changed.run(program)[1] == word


def test_negative_and_tiny_logits(program: Program) -> None:
    case = Case.random(program.shape, noise=0.0)
    for factor in (-1, 1e-30, 0):
        changed = dataclasses.replace(case, x=(case.x * np.float32(factor)).astype(np.float32))
        changed = dataclasses.replace(changed, coarse=case.coarse.copy())
        changed.coarse[: program.shape.words] = changed.exact
        changed.check(program)


def test_a_changed_row_shows_only_where_it_is_read(program: Program) -> None:
    shape = program.shape
    case = Case.random(shape)
    coarse = case.coarse[: shape.words]
    near = coarse >= coarse.max() - np.float32(shape.margin)
    read, unread = np.flatnonzero(near)[0], np.flatnonzero(~near)[0]
    wanted, _ = case.run(program)
    for word in (read, unread):
        changed = dataclasses.replace(case, scale=case.scale.copy())
        changed.scale[word] *= np.float32(1.5)
        found, _ = changed.run(program)
        assert np.flatnonzero(found != wanted).tolist() == ([word] if word == read else [])
