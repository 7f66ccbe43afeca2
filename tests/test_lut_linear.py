"""Packed codes, validation of a LUT linear, and its integer arithmetic against a dense product."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutllm import intmath
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import ArtifactError, ConfigError
from lutllm.lut_linear import LutLinear, accumulator_bound, pack_codes, unpack_codes
from tests.helpers import random_input, random_linear


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_packed_codes_come_back(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (2, 3, count), dtype=np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (2, 3, -(-count * bits // 8))
    assert np.array_equal(unpack_codes(packed, bits, count), codes)


def test_packing_is_least_significant_bit_first() -> None:
    assert pack_codes(np.array([3, 12, 5], np.uint8), 4).tolist() == [0xC3, 0x05]
    # 6 bits: 63 fills bits 0-5, 1 sets bit 6.
    assert pack_codes(np.array([63, 1], np.uint8), 6).tolist() == [0x7F, 0x00]
    assert pack_codes(np.array([1, 0, 1, 1], np.uint8), 1).tolist() == [0b1101]


@settings(max_examples=80, deadline=None)
@given(dot=st.integers(-(1 << 18), 1 << 18), shift=st.integers(1, 15), bits=st.integers(4, 16))
def test_table_entry_rounds_halves_outward_and_saturates(dot: int, shift: int, bits: int) -> None:
    entry = int(intmath.table_entry(np.int32(dot), np.int32(shift), bits))
    limit = 1 << (bits - 1)
    rounded = int(np.sign(dot) * np.floor(abs(dot) / 2**shift + 0.5))
    assert entry == max(-limit, min(limit - 1, rounded))


def test_residual_stages_have_narrow_entries() -> None:
    linear = random_linear(LutConfig(scheme="weight", weight_stages=3, table_bits=12), 40, 64)
    linear.table_shift[...] = 1
    rows = intmath.table_rows(np.full((1, linear.num_positions, 2), 127), linear, 0)
    assert rows[:, 0].max() == 2047
    assert rows[:, 1:].max() == 127
    bound = accumulator_bound(linear.config, 20, np.zeros((1, 3, 2), np.uint8))
    assert bound == 20 * (2048 + 128 + 128)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 9e-31])
def test_a_tiny_token_is_zero(size: float) -> None:
    """127 / top would overflow below 4e-37."""
    linear = random_linear(LutConfig(scheme="weight"), 40, 64)
    linear.input_scale[...] = 1
    x = np.full((1, 40), size, np.float32)
    x_int, scale = intmath.quantize_activation(x, linear)
    assert not x_int.any()
    assert np.isfinite(scale).all()
    assert intmath.quantize_activation(np.float32([[2e-30] * 40]), linear)[0].max() == 127


CONFIGS = [
    LutConfig(group_size=48),
    LutConfig(group_size=64, act_stages=2, weight_stages=2),
    LutConfig(metric="chebyshev", group_size=64, act_stages=2),
    LutConfig(scheme="weight", vec_len=3, weight_centroids=30, group_size=100),
    LutConfig(scheme="weight", codebook_positions=4, table_bits=16, group_size=48),
]


def dense(x: np.ndarray, linear: LutLinear) -> np.ndarray:
    """The layer as a product of decoded activations and decoded weights, in float64.

    Table entries are the exact quotients here, so the difference to the tables is their rounding.
    """
    config = linear.config
    x_int, token_scale = intmath.quantize_activation(x, linear)
    codes = linear.unpack_weight_codes()
    parts: list[np.ndarray] = [x_int]
    if linear.act_codebook is not None:
        found = intmath.search(x_int, linear.act_codebook, linear.config.metric)
        p = np.arange(linear.num_positions)
        parts = [linear.act_codebook[t][p, found[:, t]] for t in range(config.act_stages)]
    y = np.zeros((len(x), linear.out_features))
    for t, part in enumerate(parts):
        for s in range(config.weight_stages):
            for p in range(linear.num_positions):
                left = int(linear.block_shift[t, s, p // config.block_positions])
                for m in range(linear.out_features):
                    g = m // config.group_size
                    book = linear.weight_codebook[s, p // config.codebook_positions, g]
                    centroid = book[codes[s, p, m]].astype(float)
                    right = int(linear.table_shift[t, s, p, g])
                    y[:, m] += part[:, p] @ centroid * 2.0 ** (left - right)
    y *= linear.output_scale
    if token_scale is not None:
        y *= token_scale[:, None]
    return y if linear.bias is None else y + linear.bias


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_tables_equal_the_dense_product_up_to_rounding(config: LutConfig) -> None:
    linear = random_linear(config, 37, 110, bias=True)
    # Shifts of at least 10 keep every entry of 8 bits from saturating at |dot| <= 3 * 127 * 127.
    linear = dataclasses.replace(linear, table_shift=np.full_like(linear.table_shift, 10))
    x = random_input(4, 37)
    exact, tables = dense(x, linear), intmath.lut_linear(x, linear)
    noise = np.abs(exact - tables).max(axis=1)
    # Half a unit an entry, at most.
    half = accumulator_bound(config, linear.num_positions, linear.block_shift) / 256
    assert (noise <= half * linear.output_scale.max() * 127 + 1e-3).all()
    signal = np.abs(exact).mean()
    assert np.abs(exact - tables).mean() < 0.1 * signal


def test_weight_scheme_ignores_the_size_of_a_token() -> None:
    linear = random_linear(CONFIGS[-1], 37, 110)
    x = random_input(3, 37)
    first, _ = intmath.accumulate(x, linear)
    second, _ = intmath.accumulate(x * np.float32(4), linear)
    assert np.array_equal(first, second)


def test_search_takes_the_lowest_of_equals() -> None:
    book = np.array([[[[5, 0], [5, 0], [-5, 0]]]], np.int8)
    codes = intmath.search(np.array([[[4, 1]], [[0, 7]]], np.int32), book, "l2")
    assert codes[:, 0, 0].tolist() == [0, 0]


@pytest.mark.parametrize(("metric", "found"), [("l2", [1, 2]), ("chebyshev", [0, 2])])
def test_metrics_differ(metric: str, found: list[int]) -> None:
    """(4, 4) and (5, 0) are 32 and 25 from (0, 0) by squares, 4 and 5 by the largest difference."""
    book = np.array([[[[4, 4], [5, 0], [-4, 4]]]], np.int8)
    codes = intmath.search(np.array([[[0, 0]], [[-4, 3]]], np.int32), book, metric)
    assert codes[:, 0, 0].tolist() == found


def damage(linear: LutLinear, key: str, value: Any) -> LutLinear:
    return dataclasses.replace(linear, **{key: value})


def changed(linear: LutLinear, key: str, index: Any, value: Any) -> LutLinear:
    array = getattr(linear, key).copy()
    array[index] = value
    return damage(linear, key, array)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: damage(x, "weight_codes", x.weight_codes[:, :, :-1]), r"weight_codes: is uint8"),
        (lambda x: damage(x, "act_codebook", None), r"act_codebook: is absent"),
        (lambda x: damage(x, "output_scale", x.output_scale.astype(np.float64)), r"is float64"),
        (lambda x: changed(x, "input_perm", 0, 999), r"input_perm: does not name each"),
        (lambda x: changed(x, "input_perm", 0, -2), r"input_perm: does not name each"),
        (lambda x: damage(x, "input_perm", np.zeros_like(x.input_perm)), r"input_perm"),
        (lambda x: changed(x, "input_scale", 3, np.nan), r"input_scale: holds a value"),
        (lambda x: changed(x, "output_scale", 3, np.inf), r"output_scale: holds a value"),
        (lambda x: changed(x, "weight_codebook", (0, 0, 0, 0, 0), -128), r"holds -128"),
        (lambda x: changed(x, "table_shift", (0, 0, 0, 0), 200), r"table_shift: reaches 200 of 24"),
        (lambda x: changed(x, "block_shift", (0, 0, 0), 24), r"block_shift: reaches 24"),
        (lambda x: damage(x, "block_shift", np.full_like(x.block_shift, 23)), r"leave 32 bits"),
    ],
)
def test_damaged_arrays_are_refused(broken: Any, message: str) -> None:
    linear = random_linear(LutConfig(group_size=48), 37, 110)
    with pytest.raises(ArtifactError, match=message):
        broken(linear).validate()


def test_codes_beyond_the_codebook_are_refused() -> None:
    config = LutConfig(weight_centroids=11, group_size=48)
    linear = random_linear(config, 37, 110)
    codes = linear.unpack_weight_codes()
    codes[0, 0, 0] = 11
    with pytest.raises(ArtifactError, match="code 11 of 11"):
        damage(linear, "weight_codes", pack_codes(codes, 4)).validate()


def test_configuration_round_trips_and_refuses() -> None:
    config = QuantConfig(LutConfig(), {"*.down_proj": {"weight_stages": 2}}, seed=3)
    assert QuantConfig.from_dict(config.to_dict()) == config
    assert config.for_linear("model.layers.3.mlp.down_proj").weight_stages == 2
    assert config.for_linear("model.layers.3.mlp.gate_up_proj").weight_stages == 1
    for values, message in [
        ({"scheme": "magic"}, "scheme is 'magic'"),
        ({"vec_len": 0}, "vec_len is 0"),
        ({"act_centroids": 300}, "act_centroids is 300"),
        ({"scheme": "weight", "act_stages": 2}, "act_stages is 2"),
        ({"metric": "l1"}, "metric is 'l1'; choose one of l2, chebyshev"),
        ({"scheme": "weight", "metric": "chebyshev"}, "'weight', which does not search"),
        ({"vec_len": True}, "vec_len is True"),
        ({"codebook_positions": 0}, "codebook_positions is 0"),
        (
            {"codebook_positions": 2},
            "codebook_positions is 2; .* in scheme 'weight' with table_bits",
        ),
        ({"scheme": "weight", "codebook_positions": 2, "table_bits": 15}, "or set it to 1"),
        (
            {
                "scheme": "weight",
                "codebook_positions": 2,
                "table_bits": 16,
                "weight_stages": 2,
            },
            "wide_stages for which entries",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            LutConfig(**values)
    shared = LutConfig(scheme="weight", table_bits=16, codebook_positions=4)
    assert shared.with_table_bits(16) == shared
    assert shared.with_table_bits(8) == LutConfig(scheme="weight")
    with pytest.raises(ConfigError, match="unknown field 'colour'"):
        QuantConfig(LutConfig(), {"*": {"colour": 1}})
    newer = config.to_dict() | {"format_version": 99}
    with pytest.raises(ConfigError, match="format version 99"):
        QuantConfig.from_dict(newer)
