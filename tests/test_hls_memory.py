"""What moves beats between memory and streams (memory.h), against images of codegen/layout.py."""

from __future__ import annotations

import numpy as np
import pytest

from codegen import layout
from fpga.design import EngineConfig, EngineDesign
from lutllm.config import LutConfig
from lutllm.lut_linear import LutLinear
from tests.hls_tools import Output, Units, beats_of, make_engine, pack_fields, to_words

#: Several words to a beat, words of many beats, one port and several, stages, rows computed.
CONFIGS = {
    "small words": (
        LutConfig(group_size=32, act_centroids=20, act_stages=2, weight_stages=2),
        EngineConfig(
            channels=4, centroid_ports=2, lanes_per_cycle=8, search_segments=2, search_chain=2
        ),
    ),
    "long words": (
        LutConfig(vec_len=4, weight_centroids=64, group_size=64),
        EngineConfig(
            channels=8, parameter_ports=4, search_segments=16, lanes_per_cycle=64, axi_bits=128
        ),
    ),
    "computed": (
        LutConfig(scheme="weight", group_size=24, weight_stages=2),
        EngineConfig(channels=8, parameter_ports=2, lanes_per_cycle=12, gather_lanes=4),
    ),
}
TOKENS = 3


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[EngineDesign, LutLinear]]:
    out = {}
    for name, (lut, config) in CONFIGS.items():
        engine, (linear,) = make_engine(lut, config, [(90, 2 * lut.group_size + 5, True)])
        out[name] = (engine, linear)
    return out


@pytest.fixture(scope="module")
def units(made: dict[str, tuple[EngineDesign, LutLinear]]) -> Units:
    return Units([engine for engine, _ in made.values()])


def fields(engine: EngineDesign, **changes: int) -> dict[str, int]:
    """The call of the engine's linear."""
    kind = engine.kinds[0]
    return {
        "tokens": TOKENS,
        "rounds": engine.rounds(kind),
        "groups": engine.groups(kind),
        "subs": engine.subs(kind),
        "act_stages": kind.act_stages,
        "weight_stages": kind.weight_stages,
        "in_beats": engine.in_beats(kind),
        "bias": 1,
        **changes,
    }


def memory_of(image: np.ndarray, engine: EngineDesign) -> bytes:
    return to_words(beats_of(image, engine.beat_bytes), engine.config.axi_bits)


def floats_of(values: list[int], engine: EngineDesign) -> np.ndarray:
    raw = b"".join(value.to_bytes(engine.beat_bytes, "little") for value in values)
    return np.frombuffer(raw, "<f4")


@pytest.mark.parametrize("name", ["small words", "long words"])
def test_centroids_reach_their_channel(units: Units, made: dict, name: str) -> None:
    """Of every port: words of one search pass, [round][stage][pass], centroid 0 as padding."""
    engine, linear = made[name]
    kind, pes, passes = engine.kinds[0], engine.pes, engine.search_passes
    images = layout.centroid_image(linear, engine, kind)
    for port, image in enumerate(images):
        data = memory_of(image, engine)
        out = Output(units.run("centroids", list(CONFIGS).index(name), data, **fields(engine)))
        for share in range(engine.centroid_share):
            channel = port * engine.centroid_share + share
            wanted = []
            for position in engine.position_map(kind)[:, channel]:
                for stage in range(kind.act_stages):
                    book = linear.act_codebook[stage, position]
                    if position < 0:
                        book = np.zeros_like(book)
                    extra = np.repeat(book[:1], passes * pes - len(book), axis=0)
                    for word in np.concatenate([book, extra]).reshape(passes, -1):
                        wanted.append(pack_fields(word, 8))
            assert out.stream(8 * pes * linear.config.vec_len) == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_dealt(units: Units, made: dict, name: str) -> None:
    engine, linear = made[name]
    kind = engine.kinds[0]
    images = layout.parameter_image(linear, engine, kind)
    data = b"".join(memory_of(image, engine) for image in images)
    out = Output(units.run("parameters", list(CONFIGS).index(name), data, **fields(engine)))
    beat = engine.config.axi_bits
    inputs = floats_of(out.stream(beat), engine)
    used = linear.input_perm >= 0
    np.testing.assert_array_equal(
        inputs[linear.input_perm[used]], linear.input_scale[used].astype(np.float32)
    )
    for part in (layout._block_shifts, layout._gather_indices):
        wanted = beats_of(part(linear, engine, kind), engine.beat_bytes)
        assert out.stream(beat) == wanted
    width = engine.out_beats * engine.floats
    for values in (linear.output_scale, linear.bias):
        found = floats_of(out.stream(beat), engine).reshape(-1, width)[:, : engine.lanes].ravel()
        np.testing.assert_array_equal(found[: len(values)], values)
        assert not found[len(values) :].any()


def index_words(engine: EngineDesign, linear: LutLinear, channel: int) -> list[int]:
    """Weight indices of a channel, [round][weight stage][sub-block]."""
    kind, codes = engine.kinds[0], linear.unpack_weight_codes()  # [Sw, P, M]
    size = engine.subs(kind) * engine.lanes
    words = []
    for position in engine.position_map(kind)[:, channel]:
        for stage in range(kind.weight_stages):
            row = np.zeros(size, int)
            if position >= 0:
                row[: codes.shape[2]] = codes[stage, position]
            words += [
                pack_fields(sub, engine.lut.code_bits) for sub in row.reshape(-1, engine.lanes)
            ]
    return words


@pytest.mark.parametrize("fetch", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_bursts_give_indices_and_rows(units: Units, made: dict, name: str, fetch: bool) -> None:
    """Whole tables, the rows of codes, or codebooks, in the order of their use."""
    engine, linear = made[name]
    if fetch and engine.online_rows:
        pytest.skip("there are no rows to fetch")
    kind, channel = engine.kinds[0], engine.config.channels - 1
    image = layout.channel_image(linear, engine, kind)[channel]
    codes = np.zeros(0, int)
    if engine.online_rows:
        parts = layout.codebook_rows(linear, engine, kind)
        records = [part[channel].reshape(-1, *part.shape[4:]) for part in parts]
        lead = (engine.rounds(kind) * kind.weight_stages, -1)
        rows = np.concatenate([part.reshape(lead) for part in records], axis=1)
    else:
        rows = layout.table_rows(linear, engine, kind)[channel]
    if fetch:
        rng = np.random.default_rng(3)
        codes = rng.integers(0, engine.lut.act_centroids, (*rows.shape[:3], TOKENS))
        rows = np.take_along_axis(rows, codes[..., None, None], axis=3)
    data = memory_of(image, engine) + to_words([int(c) for c in codes.ravel()], 8)
    call = fields(engine, row_fetch=int(fetch))
    out = Output(units.run("bursts", list(CONFIGS).index(name), data, **call))
    assert out.stream(engine.lanes * engine.lut.code_bits) == index_words(engine, linear, channel)
    assert out.stream(engine.config.axi_bits) == beats_of(rows, engine.beat_bytes)
