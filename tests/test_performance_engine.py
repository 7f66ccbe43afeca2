"""Cycles and transactions of the model against those that the C simulation counts."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from codegen.csim import compile_testbench
from codegen.plan import plan_engines
from codegen.render import LIBRARY, library_headers
from fpga.design import EngineConfig
from fpga.device import load_device
from fpga.performance.blocks import LibraryBlocks
from fpga.performance.designs import HEAD, model_engines, with_head
from fpga.performance.engine import BOUND_OF, Engine, Run, modes_of, process_cycles
from fpga.performance.memory import MemorySystem
from fpga.performance.timing import (
    IDEAL,
    OVERLAPPED,
    PERFECT_MEMORY,
    DecoderConfig,
    Timing,
)
from lutllm.config import LutConfig, QuantConfig
from lutllm.model_config import ModelConfig
from tests.hls_timing import Counts, TimedSimulation, add_clocks
from tests.hls_tools import FOLDER, export_linears, make_engine
from tests.test_hls_decoder import Shape

V80 = load_device("v80")
SHAPES = [(128, 300, True), (160, 512, False)]
CONFIG = EngineConfig(
    channels=4, centroid_ports=2, lanes_per_cycle=16, search_chain=4, max_tokens=8
)
#: Stages on both sides; rows from tables, fetched, and computed.
LUTS = {
    "co": LutConfig(group_size=64, act_stages=2, weight_stages=2),
    "weight": LutConfig(group_size=64, scheme="weight"),
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
        assert counters["output_beats"] == run.y_beats.value
        assert counters["gather_cycles"] == cycles["gather"].value - run.x_beats.value
        if run.design.search:
            assert counters["search_cycles"] == cycles["search"].value


# Attention ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (127, 1), (0, 16), (100, 32)])
def test_attention_within_5_percent(past, tokens):
    shape = Shape(256, 512, 8, 2, 64, query_tokens=4, max_tokens=32, capacity=160)
    sources = {f"sim/{p.name}": p.read_text() for p in (LIBRARY / "sim").glob("*.h")}
    sources |= {f"sim/{name}": (LIBRARY / name).read_text() for name in library_headers()}
    sources["sim/CONFIG.h"] = shape.header()
    sources["sim/decoder_units.cpp"] = (FOLDER / "decoder_units.cpp").read_text()
    program = compile_testbench(add_clocks(sources), "sim/decoder_units.cpp", ["-O0"])
    caches, heads = 2 * shape.kv_heads * shape.capacity, shape.heads + 2 * shape.kv_heads
    data = np.ones((caches + tokens * heads, shape.head_dim), np.float32).tobytes()
    words = [str(program), "attention", str(tokens), str(past), "0.1"]
    found = subprocess.run(words, input=data, capture_output=True, check=True)
    model = ModelConfig.from_hf(
        {
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 512,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "rms_norm_eps": 1e-6,
        }
    )
    config = DecoderConfig(query_tokens=4, softmax_interval=0, vector_depth=0)
    blocks = LibraryBlocks(model, config, MemorySystem(V80, 250, 256, PERFECT_MEMORY), IDEAL)
    cycles = Counts.parse(found.stderr.decode()).cycles
    assert blocks.attention(tokens, past + tokens).value == pytest.approx(cycles, rel=0.05)


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

    class Stored:
        pass

    artifact = Stored()
    artifact.model, artifact.quant = model, quant
    config = EngineConfig(channels=8)
    engines = model_engines(model, quant, config)
    assert engines == plan_engines(artifact, list(model.linears()), config)
    headed = with_head(model, engines)
    assert [kind.name for kind in headed[0].kinds if kind not in engines[0].kinds] == [HEAD]
    head = headed[0].kinds[-1]
    assert head.out_features * len(head.names) >= model.vocab_size
    assert headed[1:] == engines[1:]


def test_overlapping_never_costs_cycles():
    engine, _ = make_engine(LutConfig(group_size=64), CONFIG, SHAPES)
    memory = MemorySystem(V80, 250, 256)
    for kind in engine.kinds:
        for tokens in (1, 8):
            calls = [
                Engine([engine], memory, Timing(), schedule, floats).best_call(engine, kind, tokens)
                for schedule, floats in ((Engine.schedule, 0), (OVERLAPPED, 32))
            ]
            assert calls[1].cycles.value <= calls[0].cycles.value
            assert {call.stream_bound for call in calls} <= set(BOUND_OF.values())
