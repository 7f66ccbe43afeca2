"""The method against the published accelerator: six latencies, a netlist, a power report."""

from __future__ import annotations

import dataclasses

import pytest

from fpga.performance.power import power
from fpga.performance.published import (
    PUBLISHED,
    PUBLISHED_CLOCK_MHZ,
    PUBLISHED_INT8,
    PUBLISHED_MEMORY_GB_PER_S,
    PUBLISHED_NETLIST,
    PUBLISHED_POWER_W,
    PublishedModel,
    published_error,
)
from fpga.performance.quantity import explain, given
from fpga.performance.resources import NAMES, add_up

MODEL = PublishedModel()


@pytest.mark.parametrize(("point", "published", "modelled"), MODEL.validation())
def test_published_latencies_within_5_percent(point, published, modelled):
    assert modelled == pytest.approx(published, rel=0.05), point


def test_published_latencies_reach_the_stated_error():
    assert published_error(MODEL.validation()) < 0.02


def test_layer_cycles_of_the_cosimulation():
    """215,804, 1,812,232 and 45,608 cycles follow from the published latencies."""
    for tokens, context, published in ((32, 32, 215_804), (128, 128, 1_812_232), (1, 32, 45_608)):
        assert MODEL.layer(tokens, context).value == pytest.approx(published, rel=0.02)


def test_int8_tables_miss_what_int4_tables_hit():
    """The published speed belongs to INT4 tables, whatever the text says."""
    int8 = PublishedModel(dataclasses.replace(PUBLISHED, table_bits=8))
    errors = [modelled / published - 1 for _, published, modelled in int8.validation()]
    assert all(0.1 < error < 0.5 for error in errors)


def test_uncalibrated_attention_still_fits():
    """With the tool's own 71 cycles a block instead of the fitted number."""
    plain = PublishedModel(dataclasses.replace(PUBLISHED, score_block_cycles=71.0))
    assert published_error(plain.validation()) < 0.05


def test_netlist_of_the_power_report():
    used = add_up(PublishedModel(PUBLISHED_INT8).resources())
    for name in NAMES:
        published = PUBLISHED_NETLIST[name]
        assert getattr(used, name).value == pytest.approx(published, rel=0.05), name


def test_structure_explains_most_dsps():
    blocks = PublishedModel(PUBLISHED_INT8).resources()
    assert blocks["search"].dsp.value == 2048
    assert blocks["lookup"].dsp.value == 1024
    assert blocks["accumulate"].dsp.value == 256
    counted = sum(b.dsp.value for name, b in blocks.items() if name != "norms and gating")
    assert counted / PUBLISHED_NETLIST["dsp"] > 0.9


def test_power_report_comes_out():
    used = add_up(PublishedModel(PUBLISHED_INT8).resources())
    traffic = given("gb_per_s", PUBLISHED_MEMORY_GB_PER_S)
    found = power(used, PUBLISHED_CLOCK_MHZ, traffic)
    assert found.watts.value == pytest.approx(sum(PUBLISHED_POWER_W.values()), rel=0.01)
    for name, watts in PUBLISHED_POWER_W.items():
        assert found.parts[name].value == pytest.approx(watts, rel=0.02), name


def test_every_number_explains_itself():
    text = "\n".join(explain(MODEL.end_to_end_ms(128, 256)))
    assert "end_to_end_ms = prefill_ms + outputs * decode_ms" in text
    assert "score_block_cycles = 77.7 cycles   [fitted]" in text
