"""Error feedback, coordinate descent and refit against plain numpy definitions."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from lutllm.config import LutConfig
from quant.error_feedback import (
    CodedWeight,
    coordinate_descent,
    error_feedback,
    reconstruct,
    upper_inverse_factor,
    with_damping,
)
from quant.linear import best_row_gain, refit

ROWS, COLUMNS = 96, 24
CONFIGS = [
    LutConfig(scheme="weight", group_size=40),
    LutConfig(scheme="weight", group_size=96, weight_stages=2, weight_centroids=6),
    LutConfig(scheme="weight", group_size=50, weight_stages=3, weight_centroids=5),
    LutConfig(scheme="weight", group_size=64, vec_len=3, weight_centroids=12),
    LutConfig(scheme="weight", group_size=64, vec_len=1, weight_centroids=4),
]


def problem(seed: int = 0, columns: int = COLUMNS) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight matrix and the second moment of correlated inputs with a strong channel."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) + np.eye(columns)
    x = rng.standard_normal((400, columns)) @ mix
    x[:, 5] *= 6
    weight = rng.standard_normal((ROWS, columns))
    return torch.from_numpy(weight).float(), torch.from_numpy(x.T @ x / 400).float()


def objective(values: np.ndarray, weight: torch.Tensor, moment: torch.Tensor) -> float:
    gap = values.astype(np.float64) - weight.numpy()
    return float(np.einsum("ri,ij,rj->", gap, moment.numpy().astype(np.float64), gap))


def code(config: LutConfig, weight: torch.Tensor, moment: torch.Tensor) -> CodedWeight:
    columns = weight.shape[1]
    step = np.full((columns // config.vec_len, config.vec_len), 0.01, np.float32)
    return error_feedback(weight, moment, np.ones(len(weight), np.float32), step, config)


def test_upper_factor() -> None:
    _, moment = problem()
    damped = with_damping(moment, 0.01)
    upper = upper_inverse_factor(damped)
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(COLUMNS), atol=1e-3)


def plain_error_feedback(
    weight: np.ndarray, moment: np.ndarray, coded: CodedWeight, group_size: int
) -> np.ndarray:
    """Optimal brain surgeon on whole positions, with the inverse of what remains taken afresh.

    Uses the codebooks of `coded`; every code is chosen here. Returns the coded weights.
    """
    positions, vec_len = coded.step.shape
    rest = weight.astype(np.float64).copy()
    out = np.zeros_like(rest)
    for p in range(positions):
        a, b = p * vec_len, (p + 1) * vec_len
        inverse = np.linalg.inv(moment[a:, a:])
        metric = np.linalg.inv(inverse[:vec_len, :vec_len])
        for g in range(coded.integers.shape[1]):
            part = slice(g * group_size, (g + 1) * group_size)
            unit = coded.step[p] * 2.0 ** coded.exponents[p, g][:, None]
            books = coded.integers[p, g] * unit[:, None, :]
            sums = books[0]
            for book in books[1:]:
                sums = (sums[:, None] + book[None]).reshape(-1, vec_len)
            gaps = rest[part, None, a:b] - sums[None]
            chosen = np.einsum("rki,ij,rkj->rk", gaps, metric, gaps).argmin(1)
            out[part, a:b] = sums[chosen]
        error = (rest[:, a:b] - out[:, a:b]) @ metric
        rest[:, b:] -= error @ inverse[:vec_len, vec_len:]
    return out


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1], CONFIGS[3], CONFIGS[4]], ids=str)
def test_error_feedback_equals_the_definition(config: LutConfig) -> None:
    weight, moment = problem()
    coded = code(config, weight, moment)
    damped = with_damping(moment, 0.01).numpy().astype(np.float64)
    expected = plain_error_feedback(weight.numpy(), damped, coded, config.group_size)
    off = np.abs(expected - coded.values).max(axis=1) > 1e-4
    # A code may differ where float32 and float64 see a tie; it is carried along that row only.
    assert off.mean() < 0.05
    plain, fast = objective(expected, weight, moment), objective(coded.values, weight, moment)
    assert fast == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_integers_and_codes_are_the_values(config: LutConfig) -> None:
    weight, moment = problem()
    coded = code(config, weight, moment)
    assert np.abs(coded.integers.astype(int)).max() <= 127
    assert coded.codes.max() < config.weight_centroids
    assert np.array_equal(reconstruct(coded, config.group_size), coded.values)


def test_error_feedback_beats_independent_coding() -> None:
    weight, moment = problem()
    config = CONFIGS[0]
    fed = objective(code(config, weight, moment).values, weight, moment)
    alone = code(config, weight, torch.diag(moment.diagonal()))
    assert fed < 0.7 * objective(alone.values, weight, moment)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_coordinate_descent_never_grows_the_objective(config: LutConfig) -> None:
    weight, moment = problem(seed=3)
    row_weights = np.linspace(0.2, 3, ROWS).astype(np.float32)
    coded = code(config, weight, moment)
    scaled = weight * torch.from_numpy(np.sqrt(row_weights))[:, None]
    damped = with_damping(moment, 0.01)

    def weighted() -> float:
        values = coded.values * np.sqrt(row_weights)[:, None]
        return objective(values, scaled, damped)

    last = weighted()
    for _ in range(4):
        coordinate_descent(coded, weight, moment, row_weights, config)
        assert np.array_equal(reconstruct(coded, config.group_size), coded.values)
        now = weighted()
        assert now <= last * (1 + 1e-4)
        last = now


def test_coordinate_descent_improves_a_poor_start() -> None:
    weight, moment = problem(seed=4)
    config = CONFIGS[0]
    coded = code(config, weight, torch.diag(moment.diagonal()))
    before = objective(coded.values, weight, moment)
    for _ in range(3):
        coordinate_descent(coded, weight, moment, np.ones(ROWS, np.float32), config)
    assert objective(coded.values, weight, moment) < 0.8 * before


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1]], ids=str)
def test_threads_do_not_change_the_codes(config: LutConfig) -> None:
    weight, moment = problem()
    before = numba.get_num_threads()
    results = []
    for threads in (1, before):
        numba.set_num_threads(threads)
        coded = code(config, weight, moment)
        coordinate_descent(coded, weight, moment, np.ones(ROWS, np.float32), config)
        results.append((coded.codes.tobytes(), coded.integers.tobytes()))
    assert results[0] == results[1]


def test_more_blocks_of_positions_than_one() -> None:
    weight, moment = problem(columns=150)
    config = LutConfig(scheme="weight", group_size=64)
    coded = code(config, weight, moment)
    damped = with_damping(moment, 0.01).numpy().astype(np.float64)
    expected = plain_error_feedback(weight.numpy(), damped, coded, config.group_size)
    fast, plain = objective(coded.values, weight, moment), objective(expected, weight, moment)
    assert fast == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("size", [0.0, 0.5])
def test_refit_is_the_ridge_solution(size: float) -> None:
    """size: of what the outputs are to give beside those of the weight."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((12, 500))
    seen = exact + 0.3 * rng.standard_normal((12, 500))
    weight, beside = rng.standard_normal((7, 12)), size * rng.standard_normal((7, 500))
    moment, cross = seen @ seen.T / 500, exact @ seen.T / 500
    values = (weight, moment, cross, beside @ seen.T / 500)
    weight_f, moment_f, cross_f, extra = (torch.tensor(a, dtype=torch.float32) for a in values)
    found = refit(weight_f, moment_f, cross_f, 0.02, extra if size else None)
    ridge = 0.02 * np.diag(moment).mean()
    # Least squares with the pull towards W as extra rows.
    left = np.hstack([seen / np.sqrt(500), np.sqrt(ridge) * np.eye(12)])
    right = np.hstack([(weight @ exact + beside) / np.sqrt(500), np.sqrt(ridge) * weight])
    expected = np.linalg.lstsq(left.T, right.T, rcond=None)[0].T
    assert np.allclose(found.numpy(), expected, atol=1e-4)


def test_row_gain_is_the_minimum() -> None:
    weight, moment = problem()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    values = 0.8 * weight + 0.1 * noise
    gain = best_row_gain(values, weight, moment)[:, None]

    def error(factor: torch.Tensor) -> torch.Tensor:
        gap = factor * values - weight
        return ((gap @ moment) * gap).sum(1)

    assert (error(gain) <= error(gain * 1.01)).all()
    assert (error(gain) <= error(gain * 0.99)).all()
