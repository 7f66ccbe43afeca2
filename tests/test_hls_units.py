"""Each engine header alone, compiled with g++, against `lutllm.intmath` or plain numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from codegen import layout
from fpga.design import EngineConfig, EngineDesign
from lutllm import intmath
from lutllm.config import ACT_LIMIT, LutConfig
from lutllm.lut_linear import LutLinear
from tests.hls_tools import (
    Output,
    Units,
    beats_of,
    make_engine,
    pack_fields,
    signed,
    sums_to_words,
    to_words,
)

CONFIGS = {
    "published": (LutConfig(group_size=32), EngineConfig(lanes_per_cycle=16)),
    "stages": (
        LutConfig(
            vec_len=4,
            act_centroids=100,
            weight_centroids=12,
            group_size=30,
            act_stages=3,
            weight_stages=2,
        ),
        EngineConfig(
            channels=8, centroid_ports=2, search_segments=8, search_chain=4, lanes_per_cycle=12
        ),
    ),
    "narrow": (
        LutConfig(
            vec_len=1,
            act_centroids=7,
            weight_centroids=32,
            group_size=9,
            table_bits=4,
            block_positions=5,
        ),
        EngineConfig(
            channels=10,
            centroid_ports=5,
            search_segments=3,
            search_chain=1,
            axi_bits=64,
            gather_lanes=3,
            lanes_per_cycle=9,
        ),
    ),
    "wide rows": (
        LutConfig(weight_centroids=256, act_centroids=256, group_size=8, block_positions=8),
        EngineConfig(channels=8, lanes_per_cycle=8, search_segments=16, search_chain=2),
    ),
    "weight": (
        LutConfig(scheme="weight", vec_len=3, group_size=24, weight_stages=2),
        EngineConfig(channels=8, lanes_per_cycle=12, gather_lanes=4),
    ),
    "16-bit entries": (
        LutConfig(
            scheme="weight",
            group_size=24,
            weight_stages=3,
            table_bits=16,
            wide_stages=2,
            block_positions=4,
        ),
        EngineConfig(channels=8, lanes_per_cycle=12, gather_lanes=4),
    ),
    "chebyshev": (
        LutConfig(metric="chebyshev", vec_len=3, act_centroids=50, group_size=16, act_stages=2),
        EngineConfig(
            channels=8, centroid_ports=2, search_segments=5, search_chain=2, lanes_per_cycle=16
        ),
    ),
    "chebyshev, one channel": (
        LutConfig(metric="chebyshev", vec_len=1, act_centroids=9, group_size=16),
        EngineConfig(channels=8, search_segments=1, search_chain=3, lanes_per_cycle=16),
    ),
    "token scales, rotated": (
        LutConfig(token_scale=True, rotation=32, act_stages=2, act_centroids=16, group_size=16),
        EngineConfig(channels=8, axi_bits=128, lanes_per_cycle=16, search_segments=2),
    ),
    "rotated within a word": (
        LutConfig(scheme="weight", rotation=4, group_size=24),
        EngineConfig(channels=8, lanes_per_cycle=12, gather_lanes=4),
    ),
    "coded online": (
        LutConfig(act_stages=2, group_size=32, weight_centroids=20, table_bits=7),
        EngineConfig(channels=8, lanes_per_cycle=8, rows="online"),
    ),
}
NAMES = list(CONFIGS)
SEARCHING = [name for name in NAMES if CONFIGS[name][0].scheme == "co"]
TABLES = [name for name in SEARCHING if CONFIGS[name][1].rows == "auto"]
ONLINE = [name for name in NAMES if name not in TABLES]
TOKENS = 3


def linear_of(name: str, in_features: int = 100, bias: bool = False) -> LutLinear:
    lut, config = CONFIGS[name]
    return make_engine(lut, config, [(in_features, 2 * lut.group_size + 1, bias)])[1][0]


@pytest.fixture(scope="module")
def engines() -> dict[str, EngineDesign]:
    return {
        name: make_engine(lut, config, [(100, 2 * lut.group_size + 1, True)])[0]
        for name, (lut, config) in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def units(engines: dict[str, EngineDesign]) -> Units:
    return Units([engines[name] for name in NAMES])


def run_search(
    units: Units, engine: EngineDesign, x: np.ndarray, codebook: np.ndarray, sw: int
) -> list[int]:
    """Items of one channel. x: i32[T, P, v]; codebook: i8[Sa, P, Ka, v]; a position a round."""
    stages, positions, count, v = codebook.shape
    bits = 10 + 3 * (engine.lut.act_stages - 1)
    acts = [pack_fields(x[t, p], bits) for p in range(positions) for t in range(len(x))]
    pad = engine.search_passes * engine.pes - count
    padded = np.concatenate([codebook, np.repeat(codebook[:, :, :1], pad, axis=2)], axis=2)
    words = padded.swapaxes(0, 1).reshape(-1, engine.pes * v)
    data = to_words(acts, bits * v)
    data += to_words([pack_fields(word, 8) for word in words], 8 * engine.pes * v)
    out = units.run(
        "search",
        units.engines.index(engine),
        data,
        tokens=len(x),
        rounds=positions,
        act_stages=stages,
        weight_stages=sw,
    )
    return Output(out).stream(8 * v if engine.online_rows else 8)


def expected_items(engine: EngineDesign, x: np.ndarray, codebook: np.ndarray, sw: int) -> list[int]:
    codes = intmath.search(x, codebook, engine.lut.metric)  # [T, Sa, P]
    items = []
    for p in range(codebook.shape[1]):
        for _ in range(sw):
            for t in range(len(codebook)):
                for token in range(len(x)):
                    code = codes[token, t, p]
                    online = pack_fields(codebook[t, p, code], 8)
                    items.append(online if engine.online_rows else int(code))
    return items


@pytest.mark.parametrize("name", SEARCHING)
def test_search_equals_reference(units: Units, engines: dict, name: str) -> None:
    lut, engine = CONFIGS[name][0], engines[name]
    rng = np.random.default_rng(1)
    limit = ACT_LIMIT << (3 * (lut.act_stages - 1))
    x = rng.integers(-limit, limit + 1, (TOKENS, 5, lut.vec_len)).astype(np.int32)
    x[0, 0], x[1, 0], x[2, 0] = limit, -limit, 0
    codebook = rng.integers(
        -127, 128, (lut.act_stages, 5, lut.act_centroids, lut.vec_len), dtype=np.int8
    )
    codebook[:, 0, 0], codebook[:, 0, -1] = 127, -127
    found = run_search(units, engine, x, codebook, lut.weight_stages)
    assert found == expected_items(engine, x, codebook, lut.weight_stages)


@pytest.mark.parametrize("name", TABLES)
def test_search_ties_go_to_the_lowest_index(units: Units, engines: dict, name: str) -> None:
    """Every centroid but one is the same; then all are; then mirror images around x."""
    lut, engine = CONFIGS[name][0], engines[name]
    codebook = np.full((lut.act_stages, 3, lut.act_centroids, lut.vec_len), 50, np.int8)
    codebook[:, 0, 0] = 99
    codebook[:, 2, ::2] = -50
    x = np.zeros((1, 3, lut.vec_len), np.int32)
    found = run_search(units, engine, x, codebook, 1)
    assert found == expected_items(engine, x, codebook, 1)
    assert found[:: lut.act_stages][:2] == [1, 0]


def table_image(engine: EngineDesign, linear: LutLinear) -> np.ndarray:
    """Channel 0: u8[rounds, Sw, Sa, Ka, row beats, beat bytes]."""
    return layout.table_rows(linear, engine, engine.kinds[0])[0]


@pytest.mark.parametrize("name", TABLES)
def test_row_fetch_equals_whole_table(units: Units, engines: dict, name: str) -> None:
    engine, linear = engines[name], linear_of(name)
    lut, kind = linear.config, engine.kinds[0]
    image = table_image(engine, linear)
    rounds, sw, sa = image.shape[:3]
    rng = np.random.default_rng(2)
    codes = rng.integers(0, lut.act_centroids, (rounds, sw, sa, TOKENS))
    call = {
        "tokens": TOKENS,
        "rounds": rounds,
        "weight_stages": sw,
        "act_stages": sa,
        "groups": engine.groups(kind),
        "subs": engine.subs(kind),
    }
    index, width = NAMES.index(name), engine.config.axi_bits
    fetched = np.take_along_axis(image, codes[..., None, None], axis=3)
    whole = to_words(beats_of(image, engine.beat_bytes), width)
    rows = to_words(beats_of(fetched, engine.beat_bytes), width)
    flat = to_words([int(c) for c in codes.reshape(-1)], 8)
    bits = lut.weight_centroids * lut.table_bits
    from_table = Output(units.run("rows", index, whole + flat, **call)).stream(bits)
    from_rows = Output(units.run("rows", index, rows + to_words([], 8), row_fetch=1, **call))
    assert from_table == from_rows.stream(bits)
    assert from_table == expected_rows(engine, linear, codes)


def expected_rows(engine: EngineDesign, linear: LutLinear, codes: np.ndarray) -> list[int]:
    """Rows of channel 0 in stream order. codes: [rounds, Sw, Sa, T]."""
    lut, kind = linear.config, engine.kinds[0]
    offset = 1 << (lut.table_bits - 1)
    tables = [intmath.full_table(linear, t) for t in range(lut.act_stages)]
    positions = engine.position_map(kind)[:, 0]
    rows = []
    for (r, s, t, _), code in np.ndenumerate(codes):
        for g in range(engine.groups(kind)):
            entries = np.zeros(lut.weight_centroids, int)
            if positions[r] >= 0 and g < linear.num_groups:
                entries = tables[t][code, s, positions[r], g].astype(int)
            rows.append(pack_fields(entries + offset, lut.table_bits))
    return rows


@pytest.mark.parametrize("name", ONLINE)
def test_online_rows_equal_reference(units: Units, engines: dict, name: str) -> None:
    engine, linear = engines[name], linear_of(name)
    lut, kind = linear.config, engine.kinds[0]
    linear.table_shift[:, :, ::3] = 0
    shifts, codebooks = layout.codebook_rows(linear, engine, kind)
    rounds = engine.rounds(kind)
    rng = np.random.default_rng(3)
    vectors = rng.integers(-127, 128, (TOKENS, lut.act_stages, linear.num_positions, lut.vec_len))
    vectors[0, 0, 0] = 127
    reference = [
        intmath.table_rows(vectors[:, t].astype(np.int32), linear, t) for t in range(lut.act_stages)
    ]
    positions = engine.position_map(kind)[:, 0]
    beats, items, expected = [], [], []
    for r, s in np.ndindex(rounds, lut.weight_stages):
        beats += beats_of(shifts[0, r, s], engine.beat_bytes)
        beats += beats_of(codebooks[0, r, s], engine.beat_bytes)
        for t, token in np.ndindex(lut.act_stages, TOKENS):
            p = max(positions[r], 0)
            items.append(pack_fields(vectors[token, t, p], 8))
            for g in range(engine.groups(kind)):
                entries = np.zeros(lut.weight_centroids, int)
                if positions[r] >= 0 and g < linear.num_groups:
                    entries = reference[t][token, s, p, g].astype(int)
                expected.append(pack_fields(entries + (1 << (lut.table_bits - 1)), lut.table_bits))
    out = units.run(
        "rows",
        NAMES.index(name),
        to_words(beats, engine.config.axi_bits) + to_words(items, 8 * lut.vec_len),
        tokens=TOKENS,
        rounds=rounds,
        weight_stages=lut.weight_stages,
        table_bits=lut.table_bits,
        wide_stages=lut.wide_stages,
        act_stages=lut.act_stages,
        groups=engine.groups(kind),
        subs=engine.subs(kind),
    )
    assert Output(out).stream(lut.weight_centroids * lut.table_bits) == expected


def lane_layout(engine: EngineDesign) -> tuple[int, int, int]:
    """Bits of a lane, lanes of a word, words of a sub-block (engine.h)."""
    chain_bits = max(1, (engine.chain_channels - 1).bit_length())
    bits = engine.lut.table_bits + chain_bits
    return bits, 48 // bits, -(-engine.lanes // (48 // bits))


def pack_sums(engine: EngineDesign, lanes: np.ndarray) -> list[list[int]]:
    """i64[..., LANES] -> words of each sub-block."""
    bits, per_word, words = lane_layout(engine)
    flat = lanes.reshape(-1, engine.lanes)
    return [
        [pack_fields(row[w * per_word : (w + 1) * per_word], bits) for w in range(words)]
        for row in flat
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("entry", ["random", "lowest", "highest"])
def test_lookup_adds_without_carries(units: Units, engines: dict, name: str, entry: str) -> None:
    """A full chain of channels, with entries at the extremes."""
    engine, lut = engines[name], CONFIGS[name][0]
    rng = np.random.default_rng(4)
    subs = engine.subs(engine.kinds[0])
    kw = lut.weight_centroids
    bits = max(1, (kw - 1).bit_length())
    codes = rng.integers(0, kw, (subs, engine.lanes))
    top = (1 << lut.table_bits) - 1
    total = np.zeros((TOKENS, subs, engine.lanes), np.int64)
    sums = sums_to_words(pack_sums(engine, total))
    for _ in range(engine.chain_channels):
        rows = rng.integers(0, top + 1, (TOKENS, -(-subs // engine.subs_per_group), kw))
        if entry != "random":
            rows[:] = 0 if entry == "lowest" else top
        group = np.arange(subs) // engine.subs_per_group
        total += rows[:, group[:, None], codes]
        indices = [pack_fields(row, bits) for row in codes]
        packed = [pack_fields(row, lut.table_bits) for row in rows.reshape(-1, kw)]
        data = to_words(indices, bits * engine.lanes) + to_words(packed, kw * lut.table_bits)
        sums = units.run("lookup", NAMES.index(name), data + sums, tokens=TOKENS, subs=subs)
    words = lane_layout(engine)[2]
    assert Output(sums).sums(words) == pack_sums(engine, total)


@pytest.mark.parametrize("name", ["published", "narrow", "weight", "token scales, rotated"])
@pytest.mark.parametrize("bias", [False, True])
def test_accumulate_shifts_and_dequantizes(
    units: Units, engines: dict, name: str, bias: bool
) -> None:
    engine, lut = engines[name], CONFIGS[name][0]
    lanes, chain = engine.lanes, engine.chain_channels
    rng = np.random.default_rng(5)
    passes, subs = 4, 4
    top = chain * ((1 << lut.table_bits) - 1)
    totals = rng.integers(0, top + 1, (engine.chains, passes, TOKENS, subs, lanes))
    totals[:, :, 0, 0, 0], totals[:, :, 0, 0, 1] = 0, top
    shifts = rng.integers(0, 17, (passes, engine.chains))
    offset = chain << (lut.table_bits - 1)
    shifted = (totals - offset) << shifts.T[:, :, None, None, None]
    acc = shifted.sum((0, 1))  # [T, subs, lanes]
    acc[..., :] = acc.astype(np.int32)
    floats = engine.floats
    width = engine.out_beats * floats

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, width - lanes)])

    scale = rng.uniform(-1, 1, (subs, lanes)).astype(np.float32)
    shift_image = layout.pack_words(shifts.astype(np.uint8), engine.block_shift_packing)
    biases = rng.standard_normal((subs, lanes)).astype(np.float32)
    token_scale = rng.uniform(0, 1, TOKENS).astype(np.float32)
    beat = engine.config.axi_bits
    data = b"".join(sums_to_words(pack_sums(engine, chain_sums)) for chain_sums in totals)
    data += to_words(beats_of(shift_image, engine.beat_bytes), beat)
    data += to_words(beats_of(padded(scale), engine.beat_bytes), beat)
    data += to_words(beats_of(padded(biases), engine.beat_bytes) if bias else [], beat)
    scaled = lut.scales_tokens
    sent = token_scale if scaled else np.ones_like(token_scale)
    data += to_words([int(v) for v in sent.view(np.uint32)], 32)
    out = units.run(
        "accumulate",
        NAMES.index(name),
        data,
        tokens=TOKENS,
        subs=subs,
        rounds=passes,
        bias=int(bias),
        token_scale=int(lut.scales_tokens),
    )
    beats = Output(out).stream(beat)
    raw = b"".join(value.to_bytes(engine.beat_bytes, "little") for value in beats)
    pairs = np.frombuffer(raw, np.int32).reshape(TOKENS, subs, engine.out_beats, 2, floats)
    found_acc = pairs[..., 1, :].reshape(TOKENS, subs, width)[..., :lanes]
    np.testing.assert_array_equal(found_acc, acc.astype(np.int32))
    y = acc.astype(np.int32).astype(np.float32) * scale
    if scaled:
        y = y * token_scale[:, None, None]
    if bias:
        y = y + biases
    found_y = pairs[..., 0, :].copy().view(np.float32).reshape(TOKENS, subs, width)[..., :lanes]
    np.testing.assert_array_equal(found_y.view(np.int32), y.view(np.int32))


def special_input(linear: LutLinear) -> np.ndarray:
    """Halves to round to even, values beyond the limits, zeros, ordinary and tiny ones."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((5, linear.in_features)).astype(np.float32) * 4
    x[0] = rng.integers(-20, 20, linear.in_features) + np.float32(0.5)
    x[1, ::3], x[1, 1::3] = 1e30, -1e30
    x[2] = 0
    x[4] *= np.float32(1e-34)
    return x


@pytest.mark.parametrize("name", NAMES)
def test_quantize_equals_reference(units: Units, engines: dict, name: str) -> None:
    engine, linear = engines[name], linear_of(name)
    lut, kind = linear.config, engine.kinds[0]
    if not lut.scales_tokens:  # scale 1 keeps the halves of `special_input`
        ones = np.where(linear.input_perm < 0, 0, 1).astype(np.float32)
        linear = dataclasses.replace(linear, input_scale=ones)
    x = special_input(linear)
    tokens, in_beats = len(x), engine.in_beats(kind)
    padded = np.zeros((tokens, in_beats * engine.floats), np.float32)
    padded[:, : linear.in_features] = x
    beat = engine.config.axi_bits
    scales = layout._input_scales(linear, engine, kind)
    gather = layout._gather_indices(linear, engine, kind)
    data = b"".join(
        to_words(beats_of(image, engine.beat_bytes), beat) for image in (padded, scales, gather)
    )
    out = units.run(
        "quantize",
        NAMES.index(name),
        data,
        tokens=tokens,
        rounds=engine.rounds(kind),
        in_beats=in_beats,
        act_stages=lut.act_stages,
        token_scale=int(lut.scales_tokens),
        rotation=lut.rotation,
        in_features=linear.in_features,
    )
    output = Output(out)
    bits = 10 + 3 * (lut.act_stages - 1) if engine.search else 8
    x_int, token_scale = intmath.quantize_activation(x, linear)
    for c, positions in enumerate(engine.position_map(kind).T):
        vectors = iter(output.stream(bits * lut.vec_len))
        for p in positions:
            for t in range(tokens):
                vector = next(vectors)
                fields = [
                    signed(vector >> (bits * k) & ((1 << bits) - 1), bits)
                    for k in range(lut.vec_len)
                ]
                wanted = x_int[t, p] if p >= 0 else np.zeros(lut.vec_len)
                assert fields == list(wanted), (c, p, t)
    scales_found = np.array(output.stream(32), np.uint32).view(np.float32)
    wanted_scale = np.ones(tokens, np.float32) if token_scale is None else token_scale
    np.testing.assert_array_equal(scales_found, wanted_scale)
