"""Entries that are dot products: centroids of common units, and what they cost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import quant.linear
from lutllm import intmath
from lutllm.config import LutConfig
from quant.baseline import relative_error
from quant.codebook import FREE, code_group, normal_template
from quant.error_feedback import CodedWeight, reconstruct
from quant.exact import common_exponents, has_exact_entries, round_to, rounding_error
from tests.quant_problem import data, run

EXACT = LutConfig(
    scheme="weight",
    group_size=64,
    weight_stages=2,
    table_bits=16,
    wide_stages=2,
    block_positions=4,
)


def random_coded(config: LutConfig, positions: int = 10, rows: int = 130) -> CodedWeight:
    """Codebooks of many exponents, one of them of zeros with an exponent that means nothing."""
    rng = np.random.default_rng(0)
    coded = CodedWeight.empty(config, rows, rng.uniform(0.5, 2, (positions, config.vec_len)))
    coded.integers[:] = rng.integers(-127, 128, coded.integers.shape)
    coded.exponents[:] = rng.integers(-6, -2, coded.exponents.shape)
    coded.codes[:] = rng.integers(0, config.weight_centroids, coded.codes.shape)
    coded.integers[3, 1, 0], coded.exponents[3, 1, 0] = 0, 9
    coded.values[:] = reconstruct(coded, config.group_size)
    return coded


def test_a_block_has_the_largest_exponent_of_its_codebooks() -> None:
    coded = random_coded(EXACT)
    found = common_exponents(coded, EXACT)
    used = (coded.integers != 0).any(axis=(3, 4))
    for first in (0, 4, 8):
        part = slice(first, first + 4)
        for s in range(2):
            largest = coded.exponents[part, :, s][used[part, :, s]].max()
            assert (found[part, s] == largest).all()


def test_rounding_moves_a_centroid_by_half_a_unit_at_most() -> None:
    coded = random_coded(EXACT)
    before = coded.values.copy()
    exponents = common_exponents(coded, EXACT)
    expected = rounding_error(coded, exponents, np.square(coded.step))
    round_to(coded, exponents, EXACT)
    assert coded.shared
    assert (coded.exponents == exponents[:, None]).all()
    np.testing.assert_array_equal(coded.values, reconstruct(coded, EXACT.group_size))
    unit = np.exp2(exponents.astype(float)).sum(axis=1)
    moved = np.abs(coded.values - before).reshape(len(before), len(unit), -1)
    assert (moved <= 0.5001 * unit[:, None] * coded.step).all()
    assert np.square(moved).sum(axis=(1, 2)).mean() == pytest.approx(expected, rel=0.15)
    again = common_exponents(coded, EXACT)
    np.testing.assert_array_equal(again, exponents)
    integers = coded.integers.copy()
    round_to(coded, again, EXACT)
    np.testing.assert_array_equal(coded.integers, integers)


def test_sums_stay_inside_32_bits() -> None:
    """Blocks far below the largest get a coarser unit than their own."""
    coded = random_coded(EXACT)
    coded.exponents[:4] = 12
    found = common_exponents(coded, EXACT)
    assert (found[:4] == 12).all()
    assert found[4:].min() > -6


@pytest.mark.parametrize("fixed", [-3, 1])
def test_given_exponents_are_kept(fixed: int) -> None:
    """Even where the best centroid lies beyond 127 units."""
    rng = np.random.default_rng(0)
    targets = 40 * rng.standard_normal((2, 200)).astype(np.float32)
    one, eye = np.ones(200, np.float32), np.eye(2, dtype=np.float32)
    integers, exponents = np.zeros((1, 8, 2), np.int8), np.zeros(1, np.int32)
    codes, coded = np.zeros((1, 200), np.int32), np.empty_like(targets)
    given = np.array([fixed], np.int32)
    work = (integers, exponents, codes, coded)
    step = np.ones(2, np.float32)
    code_group(
        targets, one, eye, eye, step, given, normal_template(given.size, 8, 2), 5, False, *work
    )
    assert exponents[0] == fixed
    assert (np.abs(integers).max() == 127) == (fixed == -3)
    np.testing.assert_array_equal(coded, integers[0, codes[0]].T * np.float32(2.0**fixed))
    assert FREE not in exponents


@pytest.mark.parametrize("changes", [{}, {"weight_stages": 1, "wide_stages": 1}])
def test_tables_of_a_linear_are_products(changes: dict[str, int]) -> None:
    config = dataclasses.replace(EXACT, **changes)
    result = run(config)
    linear = result.linear
    assert not linear.table_shift.any()
    assert all(linear.exact(s) for s in range(config.weight_stages))
    x, _ = data()
    x_int, token_scale = intmath.quantize_activation(x[:20].numpy(), linear)
    weight = np.zeros((linear.num_positions, config.vec_len, linear.out_features), np.int64)
    group = np.arange(linear.out_features) // config.group_size
    block = np.arange(linear.num_positions) // config.block_positions
    for s, codes in enumerate(linear.unpack_weight_codes()):
        for p in range(linear.num_positions):
            chosen = linear.weight_codebook[s, p, group, codes[p]].astype(np.int64)
            weight[p] += chosen.T << int(linear.block_shift[0, s, block[p]])
    sums = np.einsum("tpv,pvm->tm", x_int.astype(np.int64), weight)
    np.testing.assert_array_equal(intmath.accumulate(x[:20].numpy(), linear)[0], sums)
    y = torch.from_numpy(intmath.dequantize(sums, token_scale, linear))
    assert relative_error(y, result.apply(x[:20])) < 1e-10


def test_products_cost_next_to_nothing() -> None:
    """Against entries of 15 bits, which have to be rounded and centroids have not."""
    x, weight = data()
    errors = []
    for bits in (15, 16):
        config = dataclasses.replace(EXACT, table_bits=bits, block_positions=1)
        result = run(config, sweeps=3)
        assert result.linear.exact(0) == (bits == 16)
        y = torch.from_numpy(intmath.lut_linear(x[:100].numpy(), result.linear))
        errors.append(relative_error(y, x[:100] @ weight.t()))
    assert errors[1] < 1.02 * errors[0]


def test_a_linear_whose_units_lie_too_far_apart_rounds_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Channels of 400 times the magnitude leave the others of their block too few bits."""
    x, weight = data(outlier=400)
    errors = []
    for most in (quant.linear.MOST_ADDED, np.inf):
        monkeypatch.setattr(quant.linear, "MOST_ADDED", most)
        result = run(dataclasses.replace(EXACT, block_positions=16), outlier=400)
        assert (result.linear.table_shift == 0).all() == np.isinf(most)
        y = torch.from_numpy(intmath.lut_linear(x[:100].numpy(), result.linear))
        errors.append(relative_error(y, x[:100] @ weight.t()))
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize(
    "changes",
    [{"table_bits": 15}, {"wide_stages": 1}, {"vec_len": 4}, {"scheme": "co", "act_stages": 2}],
)
def test_entries_that_cannot_be_products(changes: dict[str, object]) -> None:
    assert has_exact_entries(EXACT)
    assert not has_exact_entries(dataclasses.replace(EXACT, **changes))
