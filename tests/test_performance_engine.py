"""Cycles and transactions of the model against those that the C simulation counts."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest

from codegen.csim import compile_testbench, trusted_sources
from codegen.export import export
from codegen.manifest import read_design
from fpga.decoder_design import DecoderConfig
from fpga.design import EngineConfig
from fpga.device import load_device
from fpga.performance.decoder import Decoder
from fpga.performance.designs import model_engines
from fpga.performance.engine import BOUND_OF, Engine
from fpga.performance.memory import MemorySystem
from fpga.performance.quantity import given
from fpga.performance.run import Run, modes_of, process_cycles
from fpga.performance.timing import (
    IDEAL,
    PERFECT_MEMORY,
    Timing,
)
from lutllm.config import HEAD_LINEAR, LutConfig, QuantConfig
from lutllm.model_config import ModelConfig
from lutllm.recipes import with_head
from tests.hls_timing import Counts, TimedSimulation, add_clocks
from tests.hls_tools import export_linears, make_engine
from tests.make_artifact import tiny_config, write_artifact

V80 = load_device("v80")
SHAPES = [(96, 200, True), (160, 320, False)]
CONFIG = EngineConfig(
    channels=4,
    centroid_ports=2,
    parameter_ports=4,
    lanes_per_cycle=16,
    search_chain=4,
    max_tokens=8,
)
#: Stages on both sides; rows from tables, fetched, and computed.
LUTS = {
    "co": LutConfig(act_centroids=32, group_size=64, act_stages=2, weight_stages=2),
    "weight": LutConfig(group_size=64, scheme="weight"),
    "rotated": LutConfig(act_centroids=32, group_size=64, token_scale=True, rotation=64),
}


@pytest.fixture(scope="module", params=LUTS)
def runs(request, tmp_path_factory):
    """Every kind of linear, one token and many, every way to get rows; what each run counted."""
    engine, linears = make_engine(LUTS[request.param], CONFIG, SHAPES)
    folder = tmp_path_factory.mktemp(request.param)
    export_linears(folder, engine, linears, CONFIG.max_tokens)
    simulation = TimedSimulation(folder)
    found = []
    for kind in engine.kinds:
        for tokens in (1, CONFIG.max_tokens):
            for mode in modes_of(engine):
                counts = simulation.run(kind.name, tokens, "table" if mode == "online" else mode)
                found.append((Run(engine, kind, tokens, mode, accumulators=True), counts))
    return found


def by_last_name(values: dict[str, int]) -> dict[str, set[int]]:
    """channel_3/part/rows -> rows: the values of all channels."""
    out: dict[str, set[int]] = {}
    for name, value in values.items():
        last = name.split("/")[-1].split("[")[0]
        out.setdefault(last.rstrip("0123456789").rstrip("_"), set()).add(value)
    return out


def test_transactions_of_every_stream(runs):
    for run, counts in runs:
        found = by_last_name(counts.transactions)
        found["centroids"] = found.pop("centroids_of", set())
        found.setdefault("sums", found.get("sums_to", set()))
        for name, expected in run.streams().items():
            last = name.split("/")[-1]
            assert found.get(last) or not expected.value, name
            assert found.get(last, {0}) <= {expected.value}, (run.mode, run.tokens, name)


def test_busy_cycles_of_every_process(runs):
    for run, counts in runs:
        found = by_last_name(counts.busy)
        table = run.mode == "table"
        for name, cycles in process_cycles(run, IDEAL).items():
            if name == "rows" and table:  # loading and serving overlap: compared apart
                served = run.rows.value * run.design.row_packing.beats_per_word
                assert found["load"] == {run.row_beats.value}
                assert found["rows"] == {served}
            else:
                assert found[name] == {cycles.value}, (run.mode, run.tokens, name)


def test_cycles_of_whole_calls_within_5_percent(runs):
    memory = MemorySystem(V80, 250, CONFIG.axi_bits, PERFECT_MEMORY)
    for run, counts in runs:
        engine = Engine([run.design], memory, IDEAL)
        call = engine.call(run.design, run.kind, run.tokens, run.mode, accumulators=True)
        assert call.cycles.value == pytest.approx(counts.cycles, rel=0.05), (run.mode, run.tokens)


def test_counters_of_the_csim_report(runs):
    """The counters that `lutllm csim` reports, and that timing changes no result."""
    for run, counts in runs:
        cycles = process_cycles(run, IDEAL)
        counters = counts.report["counters"]
        assert counts.report["integer_mismatches"] == 0
        assert counters["channel_beats"] == cycles["bursts"].value
        assert counters["lookup_cycles"] == cycles["lookup"].value
        assert counters["output_beats"] == run.y_words.value
        assert counters["gather_cycles"] == cycles["gather"].value - run.x_words.value
        if run.design.search:
            assert counters["search_cycles"] == cycles["search"].value


# The decoder -------------------------------------------------------------------------------------

CODED, COMPUTED = LutConfig(group_size=64), LutConfig(scheme="weight", group_size=64)


def screened(lut, margin, **changes):
    """A LUT linear before the head, coded like the layers but for `changes`."""
    head = {HEAD_LINEAR: lut.to_dict() | changes}
    return QuantConfig(lut, head, head="lut", head_margin=margin)


#: model, quantization, type of embedding and head, decoder kernel, share of the rows that are read,
#: parameter ports
DECODERS = [
    (
        tiny_config("qwen2"),
        QuantConfig(CODED, {"*.o_proj": {"rotation": 32}, "*.down_proj": {"rotation": 64}}),
        "F16",
        DecoderConfig(vector_lanes=1, vocab_ports=4),
        0.0,
        1,
    ),
    (
        tiny_config("llama", num_key_value_heads=6),
        QuantConfig(COMPUTED),
        "F32",
        DecoderConfig(context=40, vector_lanes=2, vocab_ports=3, kv_ports=3, query_tokens=2),
        0.0,
        4,
    ),
    (
        tiny_config("qwen3"),
        QuantConfig(COMPUTED, head="int8"),
        "I8",
        DecoderConfig(vector_lanes=8, vocab_ports=12, kv_ports=1, query_tokens=4),
        0.0,
        8,
    ),
    (
        tiny_config("qwen2", vocab_size=2999),
        screened(CODED, 0.0),
        "I8",
        DecoderConfig(vector_lanes=4, vocab_ports=4),
        1 / 2999,
        2,
    ),
    (
        tiny_config("llama", num_key_value_heads=6, vocab_size=2999),
        screened(COMPUTED, 1000.0, group_size=128),
        "I8",
        DecoderConfig(vector_lanes=2, vocab_ports=3, kv_ports=3, query_tokens=2),
        1.0,
        1,
    ),
]


@pytest.mark.parametrize(("shape", "quant", "stored", "kernel", "near", "ports"), DECODERS)
def test_cycles_of_the_decoder_within_5_percent(
    shape, quant, stored, kernel, near, ports, tmp_path
):
    """From the first word of a prompt to the last word chosen: every step of every layer.

    Attention, which such a small model spends little on, also on its own: of the last layer.
    """
    config = EngineConfig(
        channels=4, centroid_ports=2, parameter_ports=ports, lanes_per_cycle=32, max_tokens=8
    )
    write_artifact(tmp_path / "art", shape, quant, kind=stored)
    export(tmp_path / "art", tmp_path / "d", engine=config, golden={}, decoder=kernel)
    design = read_design(tmp_path / "d")
    sources = add_clocks(trusted_sources(design, False))
    program = compile_testbench(sources, "sim/decoder_testbench.cpp", ["-O0"])
    timing = dataclasses.replace(IDEAL, near_share=near)
    model = Decoder(design.decoder.design, V80, 250, timing, PERFECT_MEMORY)
    for prompt, new in ((1, 4), (8, 1), (11, 3), (38, 1), (38, 3)):
        words = " ".join(str(n) for n in [new, *range(3, 3 + prompt)])
        command = [str(program), str(tmp_path / "d" / "images"), str(tmp_path)]
        found = subprocess.run(command, input=words, capture_output=True, text=True, check=True)
        counts = Counts.parse(found.stderr)
        decode = sum(model.decode(prompt + i).cycles.value for i in range(1, new))
        cycles = model.prefill(prompt).cycles.value + decode
        assert cycles == pytest.approx(counts.cycles, rel=0.05), (prompt, new)
        tokens = 1 if new > 1 else (prompt - 1) % config.max_tokens + 1
        attention = model.blocks.attended(tokens, prompt + new - 1).value
        turned = (f"attention/heads/{name}" for name in ("q_rotary", "deal_keys", "deal_values"))
        counted = counts.end["attention/attention/collect"] - max(counts.end[n] for n in turned)
        assert attention == pytest.approx(counted, rel=0.05, abs=16), (prompt, new)
        if near:  # from the last norm to the word
            head = model._head.value - model.blocks.normed().value
            counted = counts.end["settle"] - counts.end["norm"]
            assert head == pytest.approx(counted, rel=0.05), (prompt, new)


# Structure ---------------------------------------------------------------------------------------

CONFIGS = [
    (LutConfig(), EngineConfig()),
    (LutConfig(), EngineConfig(channels=56, centroid_ports=7, lanes_per_cycle=100)),
    (LutConfig(scheme="weight", weight_stages=2), EngineConfig(channels=64, max_tokens=128)),
    (LutConfig(block_positions=5, vec_len=4), EngineConfig(channels=10, centroid_ports=5)),
]


@pytest.mark.parametrize(("lut", "config"), CONFIGS)
def test_sizes_are_those_of_the_design(lut, config):
    engine, _ = make_engine(lut, config, [(130, 700, False), (64, 64, False)])
    for kind in engine.kinds:
        for mode in modes_of(engine):
            run = Run(engine, kind, 3, mode)
            assert run.rounds.value == engine.rounds(kind)
            assert run.passes.value == engine.passes(kind)
            assert run.subs.value == engine.subs(kind)
            assert run.groups.value == engine.groups(kind)
            assert run.in_beats.value == engine.in_beats(kind)
            if mode != "row_fetch":  # reads the whole image of the linear, once
                assert run.index_beats.value + run.row_beats.value == engine.channel_beats(kind)


def test_engines_are_those_of_an_export():
    """From a configuration alone the same engines as `codegen.plan` makes of an artifact."""
    model = ModelConfig.from_hf(
        {
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 1000,
            "rms_norm_eps": 1e-6,
        }
    )
    overrides = {"*.1.mlp.down_proj": {"weight_stages": 2}, "*.o_proj": {"group_size": 64}}
    quant = QuantConfig(overrides=overrides)

    engines = model_engines(model, quant, EngineConfig(channels=8))
    headed = model_engines(model, with_head(quant, "engine"), EngineConfig(channels=8))
    assert [kind.name for kind in headed[0].kinds if kind not in engines[0].kinds] == [HEAD_LINEAR]
    head = headed[0].kinds[-1]
    assert head.out_features * len(head.names) >= model.vocab_size
    assert headed[1:] == engines[1:]
    own = model_engines(model, with_head(quant, "lut"), EngineConfig(channels=8))
    assert own[: len(engines)] == engines
    assert [kind.name for kind in own[-1].kinds] == [HEAD_LINEAR]


def test_overlapping_never_costs_cycles():
    engine, _ = make_engine(LutConfig(group_size=64), CONFIG, SHAPES)
    memory = MemorySystem(V80, 250, 256)
    for kind in engine.kinds:
        for tokens in (1, 8):
            calls = [
                Engine([engine], memory, Timing(), lanes).best_call(engine, kind, tokens, before)
                for lanes, before in ((1, None), (1, given("before", 50)), (4, given("before", 99)))
            ]
            streams = [call.stream.value for call in calls]
            assert streams[0] >= streams[1] >= streams[2]
            assert calls[0].fill.value >= calls[1].fill.value == calls[2].fill.value
            assert {call.stream_bound for call in calls} <= set(BOUND_OF.values())
