"""One linear from end to end: integer tables against the float equivalent, errors that fall."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lutllm.config import METRICS, LutConfig
from lutllm.intmath import lut_linear
from lutllm.lut_linear import accumulator_bound
from lutllm.model_config import LinearShape
from quant.activation import (
    InputCode,
    _fit_jointly,
    assign,
    fit_input,
    gather_slots,
    input_codes,
    round_input,
    sample_by_energy,
    sample_tokens,
    slot_order,
    take_centroids,
)
from quant.baseline import relative_error, round_to_nearest
from quant.kmeans import kmeans
from quant.linear import Effort, quantize_linear
from quant.rotated import orthogonal
from quant.tables import TableUse, choose_levels, code_frequency
from tests.quant_problem import COLUMNS, ROWS, TOKENS, data, run

#: One codebook for all positions.
SHARED = LutConfig(
    scheme="weight",
    group_size=100,
    codebook_positions=1 << 20,
    rotation=32,
    weight_stages=2,
    table_bits=16,
    wide_stages=2,
)
CONFIGS = [
    LutConfig(group_size=64),
    LutConfig(group_size=64, weight_stages=2),
    LutConfig(group_size=64, act_stages=2, weight_stages=2, act_centroids=32),
    LutConfig(group_size=50, vec_len=3, weight_centroids=64, act_centroids=100),
    LutConfig(group_size=64, token_scale=True, rotation=16, act_stages=2),
    LutConfig(scheme="weight", group_size=64),
    LutConfig(scheme="weight", group_size=64, rotation=32),
    LutConfig(scheme="weight", group_size=200, weight_stages=2, vec_len=4),
    LutConfig(scheme="weight", group_size=64, vec_len=1, weight_centroids=8),
    SHARED,
    dataclasses.replace(SHARED, codebook_positions=7, weight_stages=1),
]


def test_a_sample_meets_the_first_tokens_of_windows_as_often_as_they_are() -> None:
    """One in 512, where a step of four would meet them once in 128."""
    drawn = sample_tokens(1 << 16, 1 << 14, seed=3)
    assert len(drawn) == 1 << 14
    assert (np.diff(drawn) > 0).all()
    assert drawn[-1] < 1 << 16
    assert 12 <= (drawn % 512 == 0).sum() <= 52  # of 32 expected, four standard deviations
    np.testing.assert_array_equal(sample_tokens(7, 16, seed=3), np.arange(7))


def test_a_sample_by_energy_keeps_the_tokens_that_hold_it() -> None:
    rng = np.random.default_rng(0)
    energy = rng.random(1 << 15).astype(np.float32)
    energy[::512] = 1e5
    drawn, weights = sample_by_energy(energy, 1 << 12, seed=1)
    assert abs(len(drawn) - (1 << 12)) < 250  # four standard deviations
    assert np.isin(np.arange(0, 1 << 15, 512), drawn).all()
    np.testing.assert_array_equal(weights[drawn % 512 == 0], 1)
    # sums over the others, of numbers and of energy, are what they are over all
    others = drawn % 512 != 0
    mask = np.arange(1 << 15) % 512 != 0
    np.testing.assert_allclose(weights[others].sum(), mask.sum(), rtol=0.07)
    np.testing.assert_allclose(
        weights[others] @ energy[drawn[others]], energy[mask].sum(), rtol=0.07
    )
    everyone, alike = sample_by_energy(energy, 1 << 15, seed=1)
    np.testing.assert_array_equal(everyone, np.arange(1 << 15))
    np.testing.assert_array_equal(alike, 1)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_integer_tables_follow_the_float_equivalent(config: LutConfig) -> None:
    x, _ = data()
    result = run(config)
    floats = result.apply(x[:40])
    integers = torch.from_numpy(lut_linear(x[:40].numpy(), result.linear))
    assert relative_error(integers, floats) < 0.006


@pytest.mark.parametrize("positions", [7, 1 << 20])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_positions_share_codebooks(positions: int, sweeps: int) -> None:
    config = dataclasses.replace(SHARED, codebook_positions=positions)
    linear = run(config, sweeps=sweeps).linear
    assert linear.weight_codebook.shape[1] == config.num_codebooks(COLUMNS)
    every = linear.position_codebooks()
    for p in range(linear.num_positions):
        np.testing.assert_array_equal(every[:, p], linear.weight_codebook[:, p // positions])
    assert all(linear.exact(stage) for stage in range(config.weight_stages))
    # one unit a stage, so that integers mean the same in every position
    assert (linear.block_shift == linear.block_shift[:, :, :1]).all()
    assert len(np.unique(linear.input_scale[linear.input_perm >= 0])) > 1


def test_shared_codebooks_cost_little_where_inputs_are_rotated() -> None:
    """Channels of tails: rotated they are alike, and a 32nd of the centroids will do."""
    rng = np.random.default_rng(6)
    x = torch.tensor(rng.standard_normal((1500, 64))).float()
    weight = torch.tensor(rng.standard_t(3, (700, 64))).float()
    shape = LinearShape("layer", ("layer",), 64, 700)

    def error(**changes: int) -> float:
        config = dataclasses.replace(SHARED, group_size=700, **changes)
        result = quantize_linear(shape, weight, None, x, x, config, Effort(sweeps=0), seed=0)
        return relative_error(result.apply(x), x @ weight.t())

    own, shared = error(codebook_positions=1, rotation=64), error(rotation=64)
    assert shared < 1.4 * own
    assert error(rotation=0) > 1.3 * shared


def test_sweeps_with_shared_codebooks_help() -> None:
    errors = [output_error(SHARED, sweeps=n) for n in (0, 2)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("outlier", [1.0, 300.0])
def test_tables_survive_outlier_channels(outlier: float) -> None:
    """One scale for all positions would leave 9 dB here; block exponents must keep 22 dB."""
    x, _ = data(outlier)
    result = run(CONFIGS[1], outlier)
    integers = torch.from_numpy(lut_linear(x[:40].numpy(), result.linear))
    assert relative_error(integers, result.apply(x[:40])) < 0.006


def test_accumulators_stay_in_32_bits() -> None:
    result = run(CONFIGS[1], outlier=1e6)
    linear = result.linear
    assert accumulator_bound(linear.config, linear.num_positions, linear.block_shift) < 1 << 31


def output_error(config: LutConfig, **options: int) -> float:
    x, weight = data()
    return relative_error(run(config, **options).apply(x), x @ weight.t())


def test_error_falls_with_centroids_stages_and_sweeps() -> None:
    by_centroids = [
        output_error(LutConfig(scheme="weight", group_size=64, weight_centroids=k))
        for k in (4, 16, 64)
    ]
    assert by_centroids[0] > 2 * by_centroids[1] > 4 * by_centroids[2]
    one, two = (
        output_error(LutConfig(group_size=64, act_centroids=64, weight_stages=s)) for s in (1, 2)
    )
    assert two < 0.6 * one
    swept = [output_error(LutConfig(scheme="weight", group_size=64), sweeps=n) for n in (0, 2)]
    assert swept[1] < swept[0]


def test_better_than_rounding_to_nearest() -> None:
    x, weight = data()
    rounded = relative_error(x @ round_to_nearest(weight, 2).t(), x @ weight.t())
    assert output_error(LutConfig(scheme="weight", group_size=130)) < 0.5 * rounded


def test_round_to_nearest_keeps_the_ends() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.2]]).repeat(1, 20)
    assert torch.allclose(round_to_nearest(weight, 8), weight, atol=0.01)
    two_bits = round_to_nearest(weight, 2)
    step = 3.2 / 3
    assert torch.allclose(two_bits, torch.round(weight / step) * step)


def test_slot_order_deals_strong_beside_weak() -> None:
    importance = np.array([5.0, 9.0, 1.0, 7.0, 3.0])
    perm = slot_order(importance, 2).reshape(-1, 2)
    assert perm.tolist() == [[1, -1], [3, 2], [0, 4]]
    single = slot_order(importance, 1)
    assert single.tolist() == [1, 3, 0, 4, 2]


@pytest.mark.parametrize("vec_len", [1, 2, 3, 5])
def test_slot_order_is_a_permutation(vec_len: int) -> None:
    perm = slot_order(np.random.default_rng(0).random(23), vec_len)
    assert len(perm) == -(-23 // vec_len) * vec_len
    assert sorted(perm[perm >= 0]) == list(range(23))


def test_heavy_tails_want_token_scales_and_rotation() -> None:
    """Tokens of very different size, and in each a few channels far above the others."""
    rng = np.random.default_rng(4)
    x = torch.tensor(rng.standard_t(2, (2000, 64)) * rng.lognormal(0, 1, (2000, 1))).float()
    weight = torch.tensor(rng.standard_normal((48, 64))).float()
    shape = LinearShape("layer", ("layer",), 64, 48)

    def error(**changes: object) -> float:
        config = LutConfig(group_size=48, act_stages=2, weight_stages=3, **changes)
        result = quantize_linear(shape, weight, None, x, x, config, Effort(sweeps=0), seed=0)
        y = torch.from_numpy(lut_linear(x.numpy(), result.linear))
        return relative_error(y, x @ weight.t())

    plain, scaled = error(), error(token_scale=True)
    both = error(token_scale=True, rotation=64)
    assert scaled < 0.8 * plain
    assert both < 0.6 * scaled


@pytest.mark.parametrize("chebyshev", [False, True])
def test_joint_fit_of_stages_never_does_worse(chebyshev: bool) -> None:
    rng = np.random.default_rng(5)
    points = rng.standard_normal((6, 2, 400)).astype(np.float32)
    weights = rng.random(400).astype(np.float32)
    stages = [kmeans(points, 8, 5, 0, weights, chebyshev)]
    rest = points - take_centroids(stages[0], assign(points, stages[0], chebyshev))
    stages.append(kmeans(rest, 8, 5, 1, weights, chebyshev))

    def error() -> float:
        left = points
        for centroids in stages:
            left = left - take_centroids(centroids, assign(left, centroids, chebyshev))
        return float((np.square(left).sum(axis=(0, 1)) * weights).sum())

    before = error()
    _fit_jointly(points, weights, stages, chebyshev)
    assert error() < (before if chebyshev else 0.97 * before)


@pytest.mark.parametrize("token_scale", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_calibration_codes_are_the_artifact_codes(metric: str, token_scale: bool) -> None:
    """The search in calibration finds the codes that the integer definition finds."""
    from lutllm.intmath import quantize_activation, search

    x, weight = data()
    config = LutConfig(group_size=64, metric=metric, token_scale=token_scale)
    result = run(config)
    code = fit_input(x, weight, config, seed=0)
    x_int, _ = quantize_activation(x.numpy(), result.linear)
    assert np.array_equal(code.codebook, result.linear.act_codebook)
    expected = search(x_int, result.linear.act_codebook, metric)[:, 0]
    assert np.array_equal(input_codes(x, code, config).codes[0].T, expected)


def test_a_huge_token_does_not_choose_the_scales_of_channels() -> None:
    """A hundred times as large and of two channels, rotated: it leaves half of them zero."""
    x, weight = data()
    x[0] = 0
    x[0, :2] = 100 * x.abs().max()
    config = LutConfig(scheme="weight", group_size=64, rotation=16)
    x, weight = orthogonal(x, config.rotation), orthogonal(weight, config.rotation)

    def error(code: InputCode) -> float:
        """Of the other tokens, rounded to int8."""
        exact = gather_slots(x[1:], code.perm, code.column_norm)
        return relative_error(round_input(x[1:], code), exact)

    alone = error(fit_input(x[1:], weight, config, 0))
    assert error(fit_input(x, weight, config, 0)) < 1.1 * alone


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[4]], ids=str)
def test_tokens_count_by_their_weight(config: LutConfig) -> None:
    """Two kinds of tokens in different channels: the kind that counts more is coded better."""
    x, weight = data()
    half = TOKENS // 2
    x[:half, ::2] *= 0.05
    x[half:, 1::2] *= 0.05
    shape = LinearShape("layer", ("layer",), COLUMNS, ROWS)

    def error(weights: torch.Tensor | None) -> float:
        result = quantize_linear(shape, weight, None, x, x, config, Effort(), 0, weights)
        return relative_error(result.output()[:half], x[:half] @ weight.t())

    favoured = torch.cat([torch.full((half,), 1.99), torch.full((TOKENS - half,), 0.01)])
    assert error(favoured) < 0.9 * error(None)
    assert error(torch.ones(TOKENS)) == error(None)


def test_dead_channels_and_constant_inputs() -> None:
    x, weight = data()
    x[:, 3] = 0
    weight[:, 4] = 0
    x[:, 6] = 2.5
    shape = LinearShape("layer", ("layer",), COLUMNS, ROWS)
    for config in (CONFIGS[0], CONFIGS[4]):
        result = quantize_linear(shape, weight, None, x, x, config, Effort(), seed=0)
        out = lut_linear(x[:20].numpy(), result.linear)
        assert np.isfinite(out).all()
        assert relative_error(torch.from_numpy(out), x[:20] @ weight.t()) < 0.2


def test_levels_trade_range_for_resolution() -> None:
    """With one rare huge vector the level drops below the one that holds every entry."""
    config = LutConfig(block_positions=1)
    rng = np.random.default_rng(0)
    vectors = rng.integers(-20, 21, (64, 1, 2)).astype(np.float32)
    vectors[0] = 127
    integers = rng.integers(-60, 61, (1, 1, 1, 16, 2)).astype(np.int8)
    integers[..., 0, :] = 127
    share = np.full((1, 1, 1, 16), 1 / 16, np.float32)
    worth = np.zeros((1, 1, 1), np.int64)
    frequency = np.full((64, 1), 1 / 63, np.float32)
    even = choose_levels(TableUse(vectors, frequency), integers, share, worth, config)
    frequency[0] = 1e-9
    rare = choose_levels(TableUse(vectors, frequency), integers, share, worth, config)
    assert rare[0, 0] < even[0, 0]


def test_code_frequency() -> None:
    codes = np.array([[[0, 1, 1, 2, 2]]], np.uint8)
    share = code_frequency(codes, 4, 3)
    assert np.allclose(share[0, 0, 0], [1 / 3, 2 / 3, 0, 0])
    assert np.allclose(share[0, 1, 0], [0, 0, 1, 0])


def test_positions_never_seen_keep_a_valid_shift() -> None:
    """A position that is zero in the sample has a level its codebook can be shifted to."""
    config = LutConfig(block_positions=1)
    integers = np.full((2, 1, 1, 16, 2), 50, np.int8)
    vectors = np.zeros((8, 2, 2), np.float32)
    vectors[:, 0] = 100
    share = np.full((2, 1, 1, 16), 1 / 16, np.float32)
    worth = np.array([0, 3], np.int64).reshape(2, 1, 1)
    use = TableUse(vectors, np.full((8, 2), 1 / 8, np.float32))
    level = choose_levels(use, integers, share, worth, config)
    assert level[0, 1] >= 4
