"""Memory images, byte by byte, against the arrays of a linear."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from codegen import layout
from fpga.design import EngineConfig, EngineDesign, Packing
from lutllm import intmath
from lutllm.config import LutConfig
from lutllm.lut_linear import LutLinear
from tests.hls_tools import make_engine

Made = tuple[EngineDesign, LutLinear]


@pytest.fixture(scope="module")
def made() -> Made:
    lut = LutConfig(group_size=64, act_stages=2, weight_stages=2)
    config = EngineConfig(channels=8, centroid_ports=2, lanes_per_cycle=32)
    engine, linears = make_engine(lut, config, [(70, 150, True)])
    return engine, linears[0]


def test_packing_matches_its_definition() -> None:
    assert Packing(128, 256).beats(3) == 2
    assert Packing(96, 256).slot_bytes == 16
    assert Packing(264, 256).beats(3) == 6
    assert Packing(3, 64).per_beat == 8
    words = np.arange(3 * 16, dtype=np.uint8).reshape(3, 16)
    beats = layout.pack_words(words, Packing(128, 256))
    assert beats.shape == (2, 32)
    assert bytes(beats.reshape(-1)) == bytes(range(48)) + bytes(16)
    wide = layout.pack_words(np.ones((2, 33), np.uint8), Packing(264, 256))
    assert wide.shape == (4, 32)
    assert wide.sum(axis=1).tolist() == [32, 1, 32, 1]


def test_positions_fill_channels_block_by_block(made: Made) -> None:
    engine, _ = made
    positions = engine.position_map(engine.kinds[0])
    assert positions.shape == (6, 8)  # 35 positions: 3 blocks of 16 in 2 rounds each
    assert positions[0].tolist() == list(range(8))
    assert positions[1].tolist() == list(range(8, 16))
    assert positions[4].tolist() == [32, 33, 34, -1, -1, -1, -1, -1]
    used = positions[positions >= 0]
    assert sorted(used) == list(range(35))


@pytest.mark.parametrize(
    ("channels", "block", "chain", "chains", "rounds"),
    [
        (16, 16, 16, 1, 1),
        (64, 16, 16, 4, 1),
        (8, 16, 8, 1, 2),
        (16, 12, 4, 4, 3),
        (12, 12, 12, 1, 1),
        (10, 5, 5, 2, 1),
        (16, 1, 1, 16, 1),
    ],
)
def test_chains_stay_within_a_block(
    channels: int, block: int, chain: int, chains: int, rounds: int
) -> None:
    lut = LutConfig(block_positions=block)
    engine = EngineDesign("e", EngineConfig(channels=channels, centroid_ports=channels), lut, ())
    assert (engine.chain_channels, engine.chains) == (chain, chains)
    assert engine.rounds_per_block == rounds


def channel_records(made: Made) -> np.ndarray:
    """u8[channels, rounds, Sw, bytes of a record]."""
    engine, linear = made
    image = layout.channel_image(linear, engine, engine.kinds[0])
    return image.reshape(8, 6, 2, -1)


def test_indices_are_nibbles_in_output_order(made: Made) -> None:
    records = channel_records(made)
    codes = made[1].unpack_weight_codes()
    for position, s, output in ((0, 0, 0), (9, 1, 77), (34, 0, 149)):
        channel, round_ = position % 8, position // 8
        byte = records[channel, round_, s, output // 2]
        assert byte >> (4 * (output % 2)) & 15 == codes[s, position, output]
    assert records[3, 4].any() == records[3, 4][:, 256:].any()  # padding: no indices


def test_table_rows_follow_the_indices(made: Made) -> None:
    engine, linear = made
    records = channel_records(made)
    kind = engine.kinds[0]
    start = engine.index_beats(kind) * 32
    row_bytes = engine.row_beats(kind) * 32
    for t, code, s, position, group, k in ((0, 5, 0, 3, 0, 7), (1, 63, 1, 34, 2, 15)):
        entry = intmath.full_table(linear, t)[code, s, position, group, k]
        at = start + (t * 64 + code) * row_bytes + group * 16 + k
        assert records[position % 8, position // 8, s, at] == int(entry) + 128
    padded = records[3, 4, 0, start:].reshape(2, 64, row_bytes)
    assert (padded[..., : 3 * 16] == 128).all()  # a padded position adds nothing


def test_centroids_of_a_port_share_a_word(made: Made) -> None:
    engine, linear = made
    image = layout.centroid_image(linear, engine, engine.kinds[0]).view(np.int8)
    words = image.reshape(2, 6, 2, 8, 4, 8, 2)  # port, round, stage, pass, channel, element, v
    assert linear.act_codebook is not None
    np.testing.assert_array_equal(
        words[1, 2, 1, 3, 2], linear.act_codebook[1, 2 * 8 + 4 + 2, 24:32]
    )


def test_padded_centroids_repeat_the_first() -> None:
    lut = LutConfig(act_centroids=9, group_size=32)
    config = EngineConfig(channels=1, centroid_ports=1, search_segments=4, search_chain=1)
    engine, linears = make_engine(lut, config, [(2, 32, False)])
    image = layout.centroid_image(linears[0], engine, engine.kinds[0]).view(np.int8)
    first = image.reshape(-1)[: 3 * 8].reshape(12, 2)
    assert linears[0].act_codebook is not None
    np.testing.assert_array_equal(first[9:], [linears[0].act_codebook[0, 0, 0]] * 3)


def test_parameters_hold_scales_shifts_gather_and_outputs(made: Made) -> None:
    engine, linear = made
    kind = engine.kinds[0]
    (image,) = layout.parameter_image(linear, engine, kind)
    scales = image[: engine.in_beats(kind) * 32].view(np.float32)
    for slot in (0, 17, 69):
        assert scales[linear.input_perm[slot]] == linear.input_scale[slot]
    at = engine.in_beats(kind) * 32
    shifts = image[at : at + 24].reshape(6, 2, 2)  # round, weight stage, act stage
    assert shifts[2, 1, 0] == linear.block_shift[0, 1, 1]
    at += 32
    gather = image[at : at + 6 * 16 * 2].view(np.uint16).reshape(6, 8, 2)
    assert gather[1, 3].tolist() == linear.input_perm[2 * 11 : 2 * 12].tolist()
    assert (gather[4, 3:] == layout.NO_CHANNEL).all()
    outputs = image[-2 * engine.output_rows(kind) * 32 :].view(np.float32).reshape(2, -1)
    assert linear.bias is not None
    np.testing.assert_array_equal(outputs[0, :150], linear.output_scale)
    np.testing.assert_array_equal(outputs[1, :150], linear.bias)


@pytest.mark.parametrize("ports", [2, 8, 16])
def test_parameters_take_the_ports_in_turn(made: Made, ports: int) -> None:
    """Beat by beat the image of one port; sections, and sub-blocks of outputs, start on a row."""
    engine, linear = made
    kind = engine.kinds[0]
    (whole,) = layout.parameter_image(linear, engine, kind)
    wide = dataclasses.replace(
        engine, config=dataclasses.replace(engine.config, parameter_ports=ports)
    )
    image = layout.parameter_image(linear, wide, kind)
    assert image.shape == (ports, wide.parameter_beats(kind) * 32)
    rows = np.swapaxes(image.reshape(ports, -1, 32), 0, 1)
    beats, at, row = whole.reshape(-1, 32), 0, 0
    sizes = [engine.in_beats(kind), engine.shift_beats(kind), engine.gather_beats(kind)]
    sizes += [engine.out_beats] * (2 * engine.subs(kind))
    for size in sizes:
        taken = -(-size // ports)
        found = rows[row : row + taken].reshape(-1, 32)
        np.testing.assert_array_equal(found[:size], beats[at : at + size])
        assert not found[size:].any()
        at, row = at + size, row + taken
    assert (at, row) == (len(beats), len(rows))
