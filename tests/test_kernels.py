"""LUT linear kernels against `lutllm.intmath`: equal to the bit in every configuration."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit

from lutllm import intmath
from lutllm.config import METRICS, LutConfig
from lutllm.emulator import jit
from lutllm.emulator.cpu import ENV, ISA, SETS, choose_isa, usable_features
from lutllm.emulator.layout import QUAD, SEGMENT, UNIT, Arena, cut_panels, cut_segments, pack
from lutllm.emulator.linear import run_linear
from lutllm.emulator.team import Team, barrier
from lutllm.errors import ConfigError
from lutllm.lut_linear import LutLinear
from tests.helpers import random_input, random_linear

TEAMS = {size: Team(size) for size in (1, 2, 3)}

#: config, in_features, out_features, tokens
CASES: list[tuple[dict[str, Any], int, int, int]] = [
    ({}, 64, 200, 5),
    ({}, 576, 576, 1),
    ({}, 192, 1100, 40),
    ({"weight_stages": 2}, 100, 130, 9),
    ({"weight_stages": 2, "act_stages": 2}, 130, 100, 3),
    ({"act_stages": 2}, 130, 100, 1),
    ({"act_stages": 2, "act_centroids": 256}, 64, 100, 17),
    ({"act_stages": 3}, 66, 70, 2),
    ({"metric": "chebyshev"}, 64, 200, 5),
    ({"metric": "chebyshev"}, 576, 576, 1),
    ({"metric": "chebyshev"}, 192, 300, 40),
    ({"metric": "chebyshev", "act_stages": 2, "weight_stages": 2}, 130, 100, 3),
    ({"metric": "chebyshev", "act_stages": 2, "act_centroids": 256}, 64, 100, 17),
    ({"metric": "chebyshev", "act_stages": 2}, 130, 100, 1),
    ({"metric": "chebyshev", "act_stages": 3}, 66, 70, 7),
    ({"metric": "chebyshev", "vec_len": 3, "act_centroids": 33}, 99, 192, 6),
    ({"metric": "chebyshev", "vec_len": 1}, 33, 70, 2),
    ({"scheme": "weight"}, 96, 192, 3),
    ({"scheme": "weight"}, 96, 192, 1),
    ({"scheme": "weight", "weight_stages": 2, "group_size": 100}, 97, 230, 2),
    ({"scheme": "weight", "vec_len": 4, "weight_centroids": 256}, 96, 192, 2),
    ({"vec_len": 4, "act_centroids": 32}, 99, 192, 3),
    (
        {"vec_len": 1, "act_centroids": 7, "weight_centroids": 5, "group_size": 24},
        33,
        70,
        2,
    ),
    ({"vec_len": 8, "weight_centroids": 2}, 50, 64, 2),
    ({"weight_centroids": 12}, 64, 100, 2),
    ({"weight_centroids": 64}, 64, 100, 2),
    ({"weight_centroids": 64}, 192, 700, 40),
    ({"scheme": "weight", "weight_centroids": 40, "table_bits": 16}, 97, 130, 9),
    ({"weight_centroids": 17, "vec_len": 3, "act_stages": 2}, 100, 200, 6),
    ({"weight_centroids": 256, "act_centroids": 256, "act_stages": 3}, 64, 100, 2),
    ({"weight_centroids": 100, "table_bits": 6, "block_positions": 5}, 64, 100, 2),
    ({"table_bits": 4, "block_positions": 3, "weight_stages": 4}, 64, 1100, 20),
    ({"block_positions": 1}, 40, 64, 1),
    ({"scheme": "weight", "table_bits": 16, "weight_stages": 2}, 600, 1100, 40),
    ({"scheme": "weight", "table_bits": 16, "weight_stages": 2, "block_positions": 4}, 576, 700, 1),
    (
        {"scheme": "weight", "table_bits": 16, "weight_stages": 3, "wide_stages": 2},
        200,
        700,
        40,
    ),
    ({"table_bits": 13, "weight_stages": 2, "act_stages": 2, "wide_stages": 4}, 100, 200, 3),
    (
        {"scheme": "weight", "table_bits": 11, "weight_centroids": 64, "weight_stages": 2},
        97,
        230,
        2,
    ),
    ({"table_bits": 12, "act_stages": 2, "weight_stages": 2, "block_positions": 3}, 250, 200, 3),
    ({"table_bits": 16, "vec_len": 4}, 99, 192, 2),
    ({"group_size": 1 << 20}, 64, 1300, 2),
    ({"group_size": 1}, 20, 30, 2),
    ({}, 2000, 128, 2),
    ({}, 1, 1, 1),
    ({"token_scale": True}, 576, 200, 1),
    ({"token_scale": True, "act_stages": 2}, 192, 300, 40),
    ({"token_scale": True, "act_stages": 3, "vec_len": 3}, 99, 130, 3),
    ({"token_scale": True, "metric": "chebyshev"}, 130, 100, 5),
    ({"token_scale": True, "rotation": 512}, 576, 200, 1),
    ({"token_scale": True, "rotation": 512, "act_stages": 2}, 1100, 130, 40),
    ({"rotation": 64}, 99, 192, 3),
    ({"rotation": 4}, 31, 64, 6),
    ({"rotation": 2}, 1, 20, 2),
    ({"rotation": 8, "vec_len": 3}, 23, 64, 100),
    ({"scheme": "weight", "rotation": 256}, 300, 192, 40),
    ({"scheme": "weight", "rotation": 32, "table_bits": 16, "weight_stages": 2}, 50, 192, 1),
]


def _codes(x_int: np.ndarray, linear: LutLinear) -> np.ndarray:
    assert linear.act_codebook is not None
    return intmath.search(x_int, linear.act_codebook, linear.config.metric)


def check(linear: LutLinear, x: np.ndarray, team: Team) -> None:
    """Codes, accumulators and outputs of the kernels equal those of intmath."""
    got = run_linear(pack(linear), x, team)
    x_int, token_scale = intmath.quantize_activation(x, linear)
    if linear.config.scales_tokens:
        np.testing.assert_array_equal(got["token_scale"], token_scale)
    if linear.config.scheme == "co":
        np.testing.assert_array_equal(got["codes"], _codes(x_int, linear))
    sums, _ = intmath.accumulate(x, linear)
    np.testing.assert_array_equal(got["accumulators"], sums)
    np.testing.assert_array_equal(got["y"], intmath.dequantize(sums, token_scale, linear))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_equal_to_intmath(case):
    changes, in_features, out_features, tokens = CASES[case]
    linear = random_linear(LutConfig(**changes), in_features, out_features, case, bias=case % 2 > 0)
    x = random_input(tokens, in_features, case)
    for team in TEAMS.values():
        check(linear, x, team)


#: config, weight stages whose entries are dot products, in_features, out_features, tokens
EXACT_CASES: list[tuple[dict[str, Any], set[int], int, int, int]] = [
    ({"scheme": "weight"}, {0}, 576, 700, 1),
    ({"scheme": "weight"}, {0}, 192, 1100, 70),
    ({"scheme": "weight", "weight_stages": 2, "wide_stages": 2}, {0, 1}, 97, 230, 2),
    ({"scheme": "weight", "weight_stages": 3, "wide_stages": 3}, {1}, 600, 1100, 40),
    ({"scheme": "weight", "weight_stages": 4, "wide_stages": 4}, {0, 1, 2, 3}, 192, 700, 40),
    ({"scheme": "weight", "weight_centroids": 8, "block_positions": 4}, {0}, 250, 300, 3),
    ({"scheme": "weight", "weight_centroids": 64}, {0}, 97, 230, 9),
    ({"scheme": "weight", "vec_len": 1}, {0}, 33, 70, 5),
    ({"scheme": "weight", "codebook_positions": 1 << 20, "rotation": 64}, {0}, 576, 1300, 33),
    (
        {"scheme": "weight", "codebook_positions": 16, "weight_stages": 2, "wide_stages": 2},
        {0, 1},
        230,
        700,
        1,
    ),
    ({"act_stages": 2, "weight_stages": 2}, {0}, 130, 300, 7),
    ({"act_stages": 2, "weight_stages": 2, "wide_stages": 2}, {0, 1}, 130, 300, 1),
]


def without_rounding(linear: LutLinear, stages: set[int]) -> LutLinear:
    """`linear` with table entries of some weight stages that are dot products."""
    shift = linear.table_shift.copy()
    shift[:, list(stages)] = 0
    linear = dataclasses.replace(linear, table_shift=shift)
    assert all(linear.exact(s) == (s in stages) for s in range(linear.config.weight_stages))
    return linear


@pytest.mark.parametrize("case", range(len(EXACT_CASES)))
def test_exact_entries_equal_to_intmath(case):
    changes, stages, in_features, out_features, tokens = EXACT_CASES[case]
    config = LutConfig(table_bits=16, **changes)
    linear = without_rounding(random_linear(config, in_features, out_features, case), stages)
    x = random_input(tokens, in_features, case)
    for team in TEAMS.values():
        check(linear, x, team)


@pytest.mark.parametrize("bits", [8, 16])
def test_some_entries_without_rounding_equal_to_intmath(bits):
    """Shifts of 0 beside others, or in entries that cannot hold every dot product."""
    linear = random_linear(LutConfig(scheme="weight", table_bits=bits), 96, 192)
    shift = linear.table_shift.copy()
    shift[..., ::3, :] = 0
    for part in (shift, np.zeros_like(shift)) if bits == 8 else (shift,):
        changed = dataclasses.replace(linear, table_shift=part)
        assert not changed.exact(0)
        check(changed, random_input(9, 96), TEAMS[2])


@pytest.mark.parametrize("isa", SETS)
def test_the_other_kernel_sets_are_equal_to_intmath_too(isa):
    if isa == ISA or not SETS[isa] <= usable_features():
        pytest.skip("in use, so tested here, or not for this processor")
    if os.environ.get(ENV):
        pytest.skip(f"{ENV} asks for {ISA} alone")
    tests = "equal_to_intmath and not other or random or saturation or bound or unsigned"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", __file__, "-k", tests],
        env={**os.environ, ENV: isa},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def random_cases(count: int) -> Iterator[tuple[LutConfig, int, int, int]]:
    rng = np.random.default_rng(7)
    for _ in range(count):
        scheme = str(rng.choice(["co", "weight"]))
        config = LutConfig(
            scheme=scheme,
            metric="l2" if scheme == "weight" else str(rng.choice(METRICS)),
            vec_len=int(rng.choice([1, 2, 2, 2, 3])),
            act_centroids=int(rng.integers(2, 257)),
            weight_centroids=int(rng.choice([2, 9, 16, 16, 33, 256])),
            group_size=int(rng.choice([1, 30, 64, 100, 512])),
            act_stages=1 if scheme == "weight" else int(rng.integers(1, 4)),
            weight_stages=int(rng.integers(1, 4)),
            table_bits=int(rng.integers(4, 17)),
            wide_stages=int(rng.integers(1, 4)),
            block_positions=int(rng.integers(1, 17)),
        )
        yield config, *(int(rng.integers(1, high)) for high in (150, 150, 6))


def test_random_configurations():
    for seed, (config, in_features, out_features, tokens) in enumerate(random_cases(40)):
        linear = random_linear(config, in_features, out_features, seed, bias=seed % 3 == 0)
        check(linear, random_input(tokens, in_features, seed), TEAMS[1 + seed % 3])


def extreme(config: LutConfig, table_shift: int, block_shift: int) -> LutLinear:
    """Centroids of +-127 and given shifts."""
    linear = random_linear(config, 40, 70, 3)
    rng = np.random.default_rng(3)

    def ends(shape: tuple[int, ...]) -> np.ndarray:
        return rng.choice(np.array([-127, 127], np.int8), shape)

    linear = dataclasses.replace(
        linear,
        weight_codebook=ends(linear.weight_codebook.shape),
        table_shift=np.full_like(linear.table_shift, table_shift),
        block_shift=np.full_like(linear.block_shift, block_shift),
    )
    if linear.act_codebook is not None:
        linear = dataclasses.replace(linear, act_codebook=ends(linear.act_codebook.shape))
    linear.validate()
    return linear


@pytest.mark.parametrize("scheme", ["co", "weight"])
@pytest.mark.parametrize(
    ("bits", "shifts"),
    [
        *((8, shifts) for shifts in [(1, 0), (7, 14), (8, 15), (8, 18), (24, 0)]),
        *[(9, (6, 0)), (16, (1, 0)), (16, (1, 11)), (13, (2, 14))],
    ],
)
def test_saturation_and_extreme_shifts(scheme, bits, shifts):
    linear = extreme(LutConfig(scheme=scheme, table_bits=bits), *shifts)
    check(linear, random_input(3, 40) * 100, TEAMS[2])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_search_at_its_bounds(metric, stages):
    """Inputs far beyond the centroids: the largest distances and rests."""
    linear = extreme(LutConfig(act_stages=stages, metric=metric), 8, 0)
    check(linear, random_input(3, 40) * 1000, TEAMS[1])


@pytest.mark.parametrize("positions", [4, 108, SEGMENT + UNIT])
@pytest.mark.parametrize("value", [-128, 127])
def test_sums_at_their_bound(value, positions):
    """Every entry at the end of its range over a whole segment and more."""
    config = LutConfig(scheme="weight")
    linear = random_linear(config, 2 * positions, 64, 5)
    sign = 1 if value > 0 else -1
    linear = dataclasses.replace(
        linear,
        input_scale=np.ones_like(linear.input_scale),
        weight_codebook=np.full_like(linear.weight_codebook, 127 * sign),
        table_shift=np.full_like(linear.table_shift, 1),
        block_shift=np.full_like(linear.block_shift, 3),
    )
    x = np.ones((1, linear.in_features), np.float32)
    sums, _ = intmath.accumulate(x, linear)
    assert (sums == value * linear.num_positions << 3).all()
    check(linear, x, TEAMS[1])


def test_a_tiny_token_is_zero():
    linear = random_linear(LutConfig(scheme="weight"), 40, 64, 3)
    x = random_input(4, 40) * np.float32([[1], [1e-34], [1e-38], [1e-45]])
    assert not intmath.quantize_activation(x, linear)[0][1:].any()
    check(linear, x, TEAMS[2])


@pytest.mark.parametrize("bits", [8, 16])
def test_every_sum_of_unsigned_bytes_is_exact(bits):
    """Rows of one value each, for all byte values: the sum's low byte and carry both count."""
    config = LutConfig(scheme="weight", weight_centroids=16, table_bits=bits)
    for seed in range(20):
        linear = random_linear(config, 2 * (SEGMENT - seed), 256, 6)
        rng = np.random.default_rng(seed)
        book = rng.integers(-127, 128, linear.weight_codebook.shape, dtype=np.int8)
        book[rng.random(book.shape) < 0.5] = 127
        changed = dataclasses.replace(
            linear,
            weight_codebook=book,
            table_shift=rng.integers(1, 9, linear.table_shift.shape, dtype=np.uint8),
            block_shift=np.zeros_like(linear.block_shift),
        )
        check(changed, random_input(1, linear.in_features, seed), TEAMS[1])


@pytest.mark.parametrize("stages", [1, 2])
def test_segments_cover_positions_once_a_stage(stages):
    config = LutConfig(block_positions=5, weight_stages=2, act_stages=stages)
    linear = random_linear(config, 301, 64, 1)
    slot_position, segments = cut_segments(linear)
    assert slot_position.shape[1] % UNIT == 0
    seen: dict[int, list[int]] = {0: [], 1: []}
    place = 0
    for order, first, count, start, stage, *shifts in segments:
        assert count % QUAD == 0
        assert count <= SEGMENT
        assert start == place
        place += count
        used = [p for p in slot_position[order, first : first + count] if p >= 0]
        seen[stage] += used
        for p in used:
            assert shifts == list(linear.block_shift[:, stage, p // 5])
    for positions in seen.values():
        assert sorted(positions) == list(range(linear.num_positions))


def test_equal_exponents_share_one_order():
    linear = random_linear(LutConfig(weight_stages=3), 300, 64, 1)
    same = np.repeat(linear.block_shift[:, :1], 3, axis=1)
    linear = dataclasses.replace(linear, block_shift=np.ascontiguousarray(same))
    assert len(cut_segments(linear)[0]) == 1
    check(linear, random_input(2, 300), TEAMS[2])


def test_panels_cover_outputs_once():
    linear = random_linear(LutConfig(group_size=700), 32, 1500, 1)
    panels, tiles = cut_panels(linear, 16, 32)
    outputs = [m for _, first, count, _, _ in panels for m in range(first, first + count)]
    assert outputs == list(range(1500))
    assert all(first // 700 == group == (first + n - 1) // 700 for group, first, n, _, _ in panels)
    assert tiles == sum(-(-n // 64) for n in panels[:, 2])


def test_packed_arrays_are_copies_on_cache_lines():
    linear = random_linear(LutConfig(), 64, 64, 1, bias=True)
    packed = pack(linear, Arena())
    for name, array in packed.arrays.items():
        assert name in ("segment_table", "panel_table", "copies") or array.ctypes.data % 64 == 0
        assert not any(np.shares_memory(array, a) for a in linear.arrays().values())


def test_choice_of_kernels():
    assert choose_isa(None, frozenset()) == "plain"
    assert choose_isa(None, frozenset({"avx2", "fma"})) == "avx2"
    assert choose_isa("plain", frozenset({"avx2"})) == "plain"
    assert choose_isa(None, SETS["avx512"] | {"fma"}) == "avx512"
    assert choose_isa(None, SETS["amx"]) == "amx"
    assert choose_isa(None, SETS["amx"] - {"amx-tile"}) == "avx512"
    assert choose_isa(None, SETS["avx512"] - {"avx512vbmi"}) == "avx2"
    assert ISA in SETS
    with pytest.raises(ConfigError, match="lacks avx2"):
        choose_isa("avx2", frozenset())
    with pytest.raises(ConfigError, match="choose one of amx, avx512, avx2, neon, plain"):
        choose_isa("mmx", frozenset())


def test_team_reports_errors_and_goes_on():
    team = Team(2)

    def fail(arrivals: int, member: int, members: int) -> None:
        if member == 1:
            raise ValueError("from member 1")

    with pytest.raises(ValueError, match="from member 1"):
        team.run(fail)
    seen: list[int] = []
    team.run(lambda arrivals, member, members: seen.append(member))
    assert sorted(seen) == [0, 1]
    with pytest.raises(ConfigError, match="threads is 0"):
        Team(0)


@njit(nogil=True)
def _meet(steps, log, failures, arrivals, member, members):
    """Each member says how far it is and, behind every barrier, looks at how far the others are."""
    for phase in range(1, steps + 1):
        if (phase + member) % 5 == 0:  # uneven work: some waits end in polling, some asleep
            total = 0.0
            for i in range(20_000 * (phase % 7)):
                total += np.sqrt(i + total)
            log[member, 1] = int(total)
        log[member, 0] = phase
        barrier(arrivals, 2 * phase - 1, members)
        for other in range(members):
            if log[other, 0] != phase:
                failures[member] += 1
        barrier(arrivals, 2 * phase, members)


@pytest.mark.parametrize("size", [2, 5])
def test_no_member_passes_a_barrier_before_all_are_there(size):
    team = Team(size)
    for _ in range(3):
        log, failures = np.zeros((size, 8), np.int64), np.zeros(size, np.int64)
        team.run(_meet, 300, log, failures)
        assert not failures.any()
        assert (log[:, 0] == 300).all()


def test_team_survives_a_fork():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    linear = random_linear(LutConfig(), 64, 64, 1)
    x = random_input(2, 64)
    check(linear, x, TEAMS[2])
    child = os.fork()
    if child == 0:
        try:
            check(linear, x, TEAMS[2])
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_cache_depends_on_sources_and_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTLLM_CACHE_DIR", str(tmp_path / "kernels"))
    jit.cache_dir.cache_clear()
    try:
        path = Path(jit.cache_dir())
        assert path.parent == tmp_path / "kernels"
        assert path.is_dir()
        monkeypatch.setattr(jit, "ISA", "other")
        jit.cache_dir.cache_clear()
        assert Path(jit.cache_dir()) != path
        (tmp_path / "file").touch()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setenv("LUTLLM_CACHE_DIR", str(tmp_path / "file"))
        jit.cache_dir.cache_clear()
        assert Path(jit.cache_dir()).is_dir()  # a temporary folder instead
    finally:
        jit.cache_dir.cache_clear()
