"""Additive codebooks: codes of all stages against an exhaustive search, fits against bounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quant.codebook import (
    FREE,
    _assign_stages,
    code_group,
    fit_stages,
    normal_template,
    weighted_error,
)


def normal(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, count)).astype(np.float32)


def fitted(points: np.ndarray, stages: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids f32[S, K, v] and codes i32[S, n] of a fit from nothing."""
    centroids = np.empty((stages, count, len(points)), np.float32)
    codes = np.empty((stages, points.shape[1]), np.int32)
    weights = np.ones(points.shape[1], np.float32)
    fit_stages(points, weights, normal_template(stages, count, 2), 10, False, centroids, codes)
    _assign_stages(points, centroids, codes, True, np.empty(points.shape[1], np.float32))
    return centroids, codes


def rest(points: np.ndarray, centroids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    chosen = np.take_along_axis(centroids, codes[..., None].astype(np.int64), axis=1)
    return points - chosen.sum(0).T


@pytest.mark.parametrize(("stages", "count"), [(1, 16), (2, 8), (2, 16), (3, 5), (3, 16)])
def test_codes_are_the_nearest_of_all_sums(stages: int, count: int) -> None:
    points = normal(200)
    centroids, codes = fitted(points, stages, count)
    sums = centroids[0]
    for stage in centroids[1:]:
        sums = (sums[:, None] + stage).reshape(-1, 2)
    nearest = np.square(points.T[:, None] - sums).sum(2).min(1)
    found = np.square(rest(points, centroids, codes)).sum(0)
    np.testing.assert_allclose(found, nearest, rtol=1e-3, atol=1e-9)


def test_more_sums_than_the_limit_are_searched_stage_by_stage() -> None:
    points = normal(500)
    one = np.square(rest(points, *fitted(points, 1, 17))).mean()
    three = np.square(rest(points, *fitted(points, 3, 17))).mean()
    assert three < one / 50


@pytest.mark.parametrize(
    ("stages", "count", "decibels"),
    # a Lloyd-Max quantizer of 3, of 4 bits a coordinate has 14.6 and 20.2 dB on normal values
    # and of 8 bits, of even spacing, 40.6
    [(2, 8, 14.6), (2, 16, 20.2), (3, 16, 30.5), (4, 16, 38.5)],
)
def test_a_fit_is_as_good_as_scalar_quantizers_of_as_many_bits(
    stages: int, count: int, decibels: float
) -> None:
    points = normal(2000)
    left = np.square(rest(points, *fitted(points, stages, count))).sum()
    assert 10 * np.log10(np.square(points).sum() / left) > decibels


def test_codebooks_that_are_given_need_no_codes() -> None:
    """Of so many sums codes are searched stage by stage; what they held before does not matter."""
    targets, one, eye = normal(400), np.ones(400, np.float32), np.eye(2, dtype=np.float32)
    integers, exponents = np.zeros((4, 16, 2), np.int8), np.zeros(4, np.int32)
    coded, step = np.empty_like(targets), np.full(2, 0.02, np.float32)
    free, template = np.full(4, FREE, np.int32), normal_template(4, 16, 2)

    def code(iterations: int, codes: np.ndarray) -> float:
        work = (integers, exponents, codes, coded)
        return code_group(targets, one, eye, eye, step, free, template, iterations, False, *work)

    code(5, np.zeros((4, 400), np.int32))
    book = integers.copy()
    codes = np.full((4, 400), 1 << 28, np.int32)
    error = code(0, codes)
    assert set(np.unique(codes)) <= set(range(16))
    assert error < np.square(targets).sum() / 1000
    np.testing.assert_array_equal(integers, book)
    assert code(0, np.zeros((4, 400), np.int32)) == error


@pytest.mark.parametrize(("count", "vec_len", "levels"), [(16, 2, 256), (64, 3, 256), (9, 1, 6561)])
def test_a_number_system_has_every_level_once(count: int, vec_len: int, levels: int) -> None:
    template = normal_template(4, count, vec_len)
    assert template.shape == (4, count, vec_len)
    axis = [np.unique(stage[:, 0]) for stage in template]
    found = np.sort(sum(np.meshgrid(*axis)).ravel())
    assert len(found) == levels
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=2e-3)
    assert found[0] == pytest.approx(-found[-1], rel=1e-4)


@pytest.mark.parametrize(("stages", "count"), [(2, 8), (3, 8)])
def test_a_warm_start_improves_on_what_it_had(stages: int, count: int) -> None:
    """Except for the rounding to integers, which the caller answers by keeping the old codes."""
    targets = normal(300)
    weights = np.linspace(0.5, 2, 300).astype(np.float32)
    matrix = np.array([[1, 0], [0.4, 0.8]], np.float32)
    integers = np.zeros((stages, count, 2), np.int8)
    exponents, codes = np.zeros(stages, np.int32), np.zeros((stages, 300), np.int32)
    coded, step = np.empty_like(targets), np.ones(2, np.float32)
    errors = []
    for warm in (False, True, True, True):
        errors.append(
            code_group(
                targets,
                weights,
                matrix,
                np.linalg.inv(matrix),
                step,
                np.full(stages, FREE, np.int32),
                normal_template(stages, count, 2),
                3,
                warm,
                integers,
                exponents,
                codes,
                coded,
            )
        )
        assert errors[-1] == pytest.approx(weighted_error(targets, coded, weights, matrix))
    assert errors[-1] < errors[0]
    assert all(later < 1.01 * earlier for earlier, later in itertools.pairwise(errors))
