"""lutllm estimate: keys, verdicts, comparison with a synthesis report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import lutllm
from fpga.decoder_design import DecoderConfig
from fpga.design import EngineConfig
from fpga.design_file import DesignChoices
from fpga.device import device_names, load_device
from fpga.performance.commands import model_names, read_source
from fpga.performance.csynth import compare, read_report
from fpga.performance.designs import decoder_design, model_engines
from fpga.performance.estimate import Estimate, Setting, costs_on
from fpga.performance.memory import port_bytes
from fpga.performance.resources import EngineResources, Resources, too_large
from fpga.performance.timing import ASSUMED_TIMING, MemoryEfficiency
from lutllm.checkpoint import tensor_shapes
from lutllm.checkpoint.gguf_file import GgufFile
from lutllm.cli import main
from lutllm.cli.common import plain
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import CheckpointError, ConfigError
from lutllm.model_config import ModelConfig
from lutllm.recipes import with_head
from tests import tiny_models

KEYS = {"decode_ms_per_token", "prefill_ms", "tokens_per_s", "resources", "fits", "bottleneck"}
WEIGHT = QuantConfig(LutConfig(scheme="weight"))
WIDE = EngineConfig(channels=64, max_tokens=128, read_ahead=16, gather_lanes=16)
V80 = load_device("v80")


KERNEL = DecoderConfig(context=4096, vocab_ports=32)


def model(name="qwen3-1.7b"):
    return read_source(name).model


def make(
    name="qwen3-1.7b",
    quant=WEIGHT,
    engine=WIDE,
    setting=None,
    kernel=KERNEL,
    stored="BF16",
    **sizes,
):
    design = decoder_design(model(name), quant, engine, kernel, stored)
    return Estimate(design, setting or Setting(V80), **sizes)


# Command line ------------------------------------------------------------------------------------


def test_json_has_the_keys_of_the_contract(capsys):
    assert main(["estimate", "qwen2.5-0.5b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= KEYS
    assert found["fits"] is True
    assert found["tokens_per_s"] == pytest.approx(1000 / found["decode_ms_per_token"])
    assert set(found["resources"]) == {"lut", "ff", "dsp", "bram36", "uram"}
    assert sum(found["decode_parts_ms"].values()) == pytest.approx(found["decode_ms_per_token"])
    assert sum(found["prefill_parts_ms"].values()) == pytest.approx(found["prefill_ms"])


def test_what_does_not_fit_is_exit_status_1(capsys):
    assert main(["estimate", "qwen3-32b"]) == 1
    text = capsys.readouterr().out
    assert "fits        NO" in text
    assert "GB of images and caches" in text


def test_a_32b_model_fits_without_tables(tmp_path, capsys):
    wide = dataclasses.replace(WIDE, max_tokens=32)
    DesignChoices(wide).write(tmp_path / "wide.json")
    engine = ["--design", str(tmp_path / "wide.json"), "--recipe", "tiny", "--vocab-ports", "32"]
    # the exported kernel keeps the caches of 4096 positions behind kv_ports ports each
    assert main(["estimate", "qwen3-32b", *engine]) == 0
    assert main(["estimate", "qwen3-32b", *engine, "--kv-ports", "1"]) == 1
    assert "MiB behind one port" in capsys.readouterr().out


def test_quantization_on_the_command_line(capsys):
    """Narrow entries take less of the part, a LUT linear before the head less time."""
    found = []
    words = ["estimate", "qwen3-0.6b", "--recipe", "tiny", "--vocab-ports", "32", "--json"]
    for more in ([], ["--table-bits", "8"], ["--head", "engine", "--table-bits", "8"]):
        assert main([*words, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[1]["resources"]["lut"] < 0.9 * found[0]["resources"]["lut"]
    assert found[2]["decode_ms_per_token"] < found[1]["decode_ms_per_token"]
    assert [x["head"] for x in found[1:]] == ["i8 rows", "i8 rows behind a LUT linear"]


def test_explanation_and_table(capsys):
    assert main(["estimate", "qwen3-0.6b", "--explain", "--scheme", "weight"]) == 0
    text = capsys.readouterr().out
    assert "tokens_per_s = 1,000 / decode_ms" in text
    assert "rounds = ceil_div(blocks, chains) * rounds_per_block" in text
    assert "rows_online" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-model"], "one of llama-3.2-1b"),
        (["qwen3-8b", "--device", "v90"], "device 'v90' is not known"),
        (["qwen3-8b", "--design", "/nowhere.json"], "/nowhere.json: file not found"),
        (["qwen3-8b", "--recipe", "magic"], "no recipe 'magic'"),
        (["../qwen3-8b"], "no such file or folder"),
    ],
)
def test_user_errors_are_status_2(words, message, capsys):
    assert main(["estimate", *words]) == 2
    assert message in capsys.readouterr().err


def test_artifact_brings_its_quantization(tmp_path):
    config = json.loads(
        (Path(lutllm.__file__).parents[1] / "fpga/models/qwen3-0.6b.json").read_text()
    )
    config["quantization_config"] = WEIGHT.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = lutllm.estimate(tmp_path)
    assert stored["resources"] == lutllm.estimate("qwen3-0.6b", WEIGHT)["resources"]
    with pytest.raises(ConfigError, match="is quantized already"):
        lutllm.estimate(tmp_path, WEIGHT)


def test_design_file(tmp_path):
    path = tmp_path / "design.json"
    choices = DesignChoices(WIDE, DecoderConfig(vocab_ports=16))
    choices.write(path)
    assert DesignChoices.read(path) == choices
    found = lutllm.estimate("qwen3-0.6b", WEIGHT, path)
    assert found["engine"] == WIDE.to_dict()
    assert found == lutllm.estimate("qwen3-0.6b", WEIGHT, choices.to_dict())
    assert found == lutllm.estimate(
        "qwen3-0.6b", WEIGHT, {"engine": WIDE.to_dict()}, vocab_ports=16
    )


def test_clock_of_the_design_file():
    """The command's own clock wins; a clock that the board cannot have is refused."""
    clocks = {
        given: lutllm.estimate("qwen3-0.6b", WEIGHT, {"clock_mhz": in_file}, clock_mhz=given)
        for in_file, given in ((300, 0.0), (300, 200.0))
    }
    assert {given: found["clock_mhz"] for given, found in clocks.items()} == {0.0: 300, 200.0: 200}
    assert clocks[0.0]["decode_ms_per_token"] < clocks[200.0]["decode_ms_per_token"]
    assert lutllm.estimate("qwen3-0.6b", WEIGHT, {"clock_mhz": 0})["clock_mhz"] == V80.clock_mhz
    with pytest.raises(ConfigError, match=r"clock_mhz is 500; .* ports of v80 take up to 400"):
        lutllm.estimate("qwen3-0.6b", WEIGHT, {"clock_mhz": 500})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"engine": {"channels": 16, "chanels": 3}}', "engine config: unknown field 'chanels'"),
        ('{"decoder": {"ports": 3}}', "decoder config: unknown field 'ports'"),
        ('{"decoder": {"vocab_ports": 0}}', "vocab_ports is 0"),
        ('{"channels": 16}', "design: unknown field 'channels'"),
        ('{"clock_mhz": -1}', "clock_mhz is -1; it must be a number of MHz"),
        ('{"clock_mhz": "fast"}', "clock_mhz is 'fast'"),
        ('{"clock_mhz": true}', "clock_mhz is True"),
        ('{"engine": 5}', r"design.json: design: engine is 5"),
    ],
)
def test_bad_design_files_are_refused(text, message, tmp_path):
    path = tmp_path / "design.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        DesignChoices.read(path)


# Models and devices ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_names())
def test_known_models(name):
    engine = dataclasses.replace(WIDE, max_tokens=32)
    found = make(name, engine=engine)
    assert found.fits, found.problems
    assert found.decode.ms.value > 0
    assert found.max_context > 1024


def test_parameters_of_known_models():
    billions = {"qwen2.5-0.5b": 0.49, "qwen3-0.6b": 0.6, "qwen3-1.7b": 1.7, "qwen3-4b": 4.0}
    billions |= {"qwen3-8b": 8.2, "qwen3-32b": 32.8, "llama-3.2-1b": 1.24}
    assert set(billions) == set(model_names())
    for name, expected in billions.items():
        shape = model(name)
        heads = 1 if shape.tie_word_embeddings else 2
        count = sum(s.in_features * s.out_features for s in shape.linears())
        count += heads * shape.vocab_size * shape.hidden_size
        assert count / 1e9 == pytest.approx(expected, rel=0.03), name


@pytest.mark.parametrize("name", device_names())
def test_every_device_takes_a_small_model(name):
    device = load_device(name)
    engine = EngineConfig(channels=32 if device.memory_ports >= 32 else 4)
    kernel = DecoderConfig(
        vector_lanes=1, vocab_ports=min(8, device.memory_ports), kv_ports=2, query_tokens=2
    )
    found = make("qwen2.5-0.5b", WEIGHT, engine, Setting(device), kernel)
    assert found.fits, found.problems
    ports = device.memory_ports * device.port_bits / 8 * device.port_clock_mhz / 1000
    assert ports == pytest.approx(device.peak_gb_per_s, rel=0.01)


def test_old_parts_take_more_dsps():
    assert costs_on(load_device("u280")).float_dsp == 3
    assert costs_on(V80).float_dsp == 1


# What follows from what --------------------------------------------------------------------------


def test_decode_grows_with_context_and_prefill_with_prompt():
    short, long = make(context=128, prompt=64), make(context=4096, prompt=512)
    assert long.decode.ms.value > short.decode.ms.value
    assert long.prefill.ms.value > 4 * short.prefill.ms.value
    assert long.kv_growth_ms() == pytest.approx(short.kv_growth_ms(), rel=0.01)


def test_head_costs_what_it_reads():
    kernel = dataclasses.replace(KERNEL, vocab_ports=64)
    parts = {
        head: make(quant=with_head(WEIGHT, head), kernel=kernel).decode.parts["head"].value
        for head in ("engine", "int8", "source")
    }
    assert parts["engine"] < 0.4 * parts["int8"] < 0.25 * parts["source"]
    size = model().vocab_size * model().hidden_size
    rate = 64 * 32 * 0.9  # ports, bytes, efficiency
    assert parts["int8"] == pytest.approx(size / rate, rel=0.03)
    assert parts["engine"] > size / 4 / rate


def test_near_words_are_read_behind_a_lut_head():
    """Twice as many rows, twice the bytes of rows; the slices are read whatever the rows are."""
    quant, kernel = with_head(WEIGHT, "engine"), dataclasses.replace(KERNEL, vocab_ports=64)
    found = {}
    for share in (0.0, 0.1, 0.2):
        timing = dataclasses.replace(ASSUMED_TIMING, near_share=share)
        estimate = make(quant=quant, kernel=kernel, setting=Setting(V80, timing=timing))
        found[share] = estimate.decode.bytes.value, estimate.decode.parts["head"].value
    rows = 0.1 * model().vocab_size * (2048 + 32)
    assert found[0.1][0] - found[0.0][0] == pytest.approx(rows, rel=0.01)
    assert found[0.2][0] - found[0.1][0] == pytest.approx(rows, rel=0.01)
    assert found[0.0][1] < found[0.1][1] < found[0.2][1]


def test_parameters_on_ports_of_their_own_keep_no_channel_waiting():
    setting = Setting(V80, clock_mhz=300)
    slow, fast = (
        make(engine=dataclasses.replace(WIDE, parameter_ports=ports), setting=setting)
        for ports in (1, 8)
    )
    assert fast.decode.parts["memory"].value < 0.9 * slow.decode.parts["memory"].value
    assert fast.decode.bytes.value == pytest.approx(slow.decode.bytes.value, rel=0.01)


def test_traffic_is_that_of_indices_and_codebooks():
    """Scheme weight: a quarter byte an index, 32 bytes of codebook per position and group."""
    found = make(context=1)
    shapes = model().linears()
    weights = sum(s.in_features * s.out_features for s in shapes)
    expected = weights * (0.25 + 32 / 2 / 512)
    rows = model().vocab_size * model().hidden_size * 2
    assert found.decode.bytes.value - rows == pytest.approx(expected, rel=0.06)


def test_wider_ports_and_faster_clocks_are_faster():
    slow, fast = (make(setting=Setting(V80, clock_mhz=mhz)) for mhz in (200, 300))
    assert fast.decode.ms.value < slow.decode.ms.value
    few = make(engine=EngineConfig(channels=16, max_tokens=128))
    assert make().decode.ms.value < few.decode.ms.value
    worn = make(setting=Setting(V80, efficiency=MemoryEfficiency(0.5, 0.3)))
    assert worn.decode.ms.value > make().decode.ms.value


def test_head_of_the_kernel_reads_every_row_over_its_ports():
    found = [make(kernel=DecoderConfig(vocab_ports=n)) for n in (8, 32, 64)]
    heads = [estimate.decode.parts["head"].value for estimate in found]
    assert heads[0] == pytest.approx(4 * heads[1], rel=0.01)
    assert heads[1] == pytest.approx(2 * heads[2], rel=0.01)
    assert heads[0] == pytest.approx(151936 / 8 * 128 / 0.9, rel=0.01)  # rows of 128 beats
    wide, narrow = (make(stored=kind).decode.parts["head"].value for kind in ("F32", "BF16"))
    assert wide == pytest.approx(2 * narrow, rel=0.01)


def test_cache_is_read_over_all_its_ports():
    """Qwen3-1.7B: 28 layers of 8 key heads of 16 beats, a stripe at a time."""
    kernels = {n: dataclasses.replace(KERNEL, kv_ports=n) for n in (1, 4, 16)}
    found = {n: make(kernel=kernel) for n, kernel in kernels.items()}
    for n, estimate in found.items():
        cycles = 28 * 8 * 1024 / n * 16 / 0.9
        assert estimate.kv_growth_ms() == pytest.approx(cycles / 250e3, rel=0.01)
    macs = {n: estimate.blocks["attend"].dsp.value for n, estimate in found.items()}
    assert macs[16] - macs[4] == pytest.approx(4 * (macs[4] - macs[1]), rel=0.01)
    shared = make(kernel=kernels[16], setting=Setting(load_device("u280")), engine=EngineConfig())
    own = make(kernel=kernels[4], setting=Setting(load_device("u280")), engine=EngineConfig())
    few = load_device("vpk180")  # 6 ports: three caches behind each
    assert shared.kv_growth_ms() == pytest.approx(own.kv_growth_ms() / 4, rel=0.01)
    crowded = make(kernel=kernels[16], setting=Setting(few), engine=EngineConfig(channels=4))
    assert crowded.kv_growth_ms() > 5 * found[16].kv_growth_ms()


def test_prefill_shares_keys_among_tokens():
    one, four = (
        make(kernel=dataclasses.replace(KERNEL, query_tokens=n), prompt=1024, context=1024)
        for n in (1, 4)
    )
    attended = [found.decoder.blocks.attended(32, 1024).value for found in (one, four)]
    assert 2.5 < attended[0] / attended[1] < 4
    waits = [found.prefill.parts["attention"].value for found in (one, four)]
    assert waits[0] / waits[1] > attended[0] / attended[1]  # what is left beside the engine's turns
    assert one.decode.ms.value == pytest.approx(four.decode.ms.value)


def test_port_bytes_are_those_of_an_export():
    from codegen.render import decoder_connections

    for name, quant in (("qwen3-0.6b", QuantConfig()), ("qwen3-1.7b", WEIGHT)):
        design = decoder_design(model(name), quant, EngineConfig(channels=32))
        ports = [0] * V80.memory_ports
        for c in decoder_connections(design, V80):
            ports[int(c.port.removeprefix("HBM"))] += c.bytes
        assert port_bytes(design, V80.memory_ports) == ports


def test_port_that_carries_two_arguments_sets_the_pace():
    """Beside a channel the centroids of one other, or of sixteen."""
    shared = EngineConfig(channels=64, centroid_ports=64, read_ahead=16)
    narrow = EngineConfig(channels=64, centroid_ports=4, read_ahead=16)
    calls = [make(quant=QuantConfig(), engine=e).decode.calls[0] for e in (shared, narrow)]
    assert calls[0].stream_parts["port"].value < calls[1].stream_parts["port"].value


def test_problems_are_named():
    engine = EngineConfig(
        channels=64, centroid_ports=64, lanes_per_cycle=512, search_chain=16, max_tokens=512
    )
    found = make(quant=QuantConfig(), engine=engine)
    assert any(problem.startswith("lut: ") for problem in found.problems)
    assert not found.fits
    small = make(engine=EngineConfig(channels=64), setting=Setting(load_device("u280")))
    assert any("has 32 memory ports" in problem for problem in small.problems)
    with pytest.raises(ConfigError, match="a port of v80 has 256 bits"):
        make(engine=EngineConfig(axi_bits=512))
    with pytest.raises(ConfigError, match="context is 0"):
        make(context=0)
    with pytest.raises(ConfigError, match="context is 5000, but the caches of the design hold"):
        make(context=5000)


def test_one_region_too_small_is_named():
    tight = make("qwen3-8b", QuantConfig(), EngineConfig(channels=16))
    assert any("behind one port" in problem for problem in tight.problems)


def test_resources_of_a_search_and_a_lookup():
    """Counts that do not depend on fitted costs."""
    engines = model_engines(model(), QuantConfig(), EngineConfig())
    blocks = {b.function: b for b in EngineResources(engines[0]).blocks()}
    assert blocks["centroid_search"].count.value == 16
    assert blocks["centroid_search"].each.dsp.value == 8 * 2  # elements x vec_len
    chebyshev = dataclasses.replace(engines[0].lut, metric="chebyshev")
    other = EngineResources(dataclasses.replace(engines[0], lut=chebyshev)).blocks()
    assert {b.function: b for b in other}["centroid_search"].each.dsp.value == 0
    assert blocks["lookup"].each.dsp.value == 128 / 4  # four lanes of 12 bits in 48
    assert blocks["rows_from_tables"].each.uram.value == 2 * 4  # two tables, 256 bits wide
    online = model_engines(model(), WEIGHT, EngineConfig())
    blocks = {b.function: b for b in EngineResources(online[0]).blocks()}
    assert blocks["rows_online"].each.dsp.value == 16 * 2 / 4  # one row in four cycles
    assert "centroid_search" not in blocks


def test_linears_of_another_metric_get_an_engine_of_their_own():
    quant = QuantConfig(overrides={"*.o_proj": {"metric": "chebyshev"}})
    engines = model_engines(model(), quant, EngineConfig())
    assert [design.lut.metric for design in engines] == ["l2", "chebyshev"]
    assert [kind.name for kind in engines[1].kinds] == ["o_proj"]


@pytest.mark.parametrize(("metric", "luts"), [("l2", 97), ("chebyshev", 98)])
def test_search_logic_agrees_with_open_synthesis(metric, luts):
    """yosys: LUTs of one element with its comparison, two components of 8 bits."""
    lut, config = LutConfig(metric=metric), EngineConfig(search_segments=1, search_chain=64)
    engine = model_engines(model(), QuantConfig(lut), config)[0]
    search = {b.function: b for b in EngineResources(engine).blocks()}["centroid_search"]
    assert search.each.lut.value / 64 == pytest.approx(luts, rel=0.15)


def test_matcher_logic_agrees_with_open_synthesis():
    """yosys: 12,906 LUTs for 256 lanes of INT8 with adders in LUTs, 24 groups."""
    costs = costs_on(V80)
    lanes = 256 * (costs.mux_lut(16, 8) + costs.adder_lut(12))
    assert lanes == pytest.approx(12_906, rel=0.05)


# Comparison with a synthesis report --------------------------------------------------------------


def instance(module, name, inner=""):
    return (
        f"<Instance><InstName>{name}</InstName><ModuleName>{module}</ModuleName>"
        f"<IsCompInst>true</IsCompInst><ID>1</ID>{inner}</Instance>"
    )


def area(lut, ff, dsp, bram, uram):
    return (
        f"<AreaEstimates><Resources><BRAM_18K>{bram}</BRAM_18K><DSP>{dsp}</DSP><FF>{ff}</FF>"
        f"<LUT>{lut}</LUT><URAM>{uram}</URAM></Resources></AreaEstimates>"
    )


def module(name, *numbers):
    latency = "<Worst-caseLatency>undef</Worst-caseLatency>"
    return (
        f"<Module><Name>{name}</Name><PerformanceEstimates><SummaryOfOverallLatency>{latency}"
        f"</SummaryOfOverallLatency></PerformanceEstimates>{area(*numbers)}</Module>"
    )


def write_report(path, period="3.200"):
    """A report as Vitis HLS writes it: two channels, each with a search and a look-up."""
    lookup = instance(
        "lookup_Engine_Config_s",
        "lookup_U0",
        "<InstancesList>"
        + instance("lookup_Engine_Config_Pipeline_lookup_loop", "grp_1")
        + "</InstancesList>",
    )
    search = instance("centroid_search_Engine_Config_s", "centroid_search_U0")
    channel = f"<InstancesList>{search}{lookup}</InstancesList>"
    channels = "".join(
        instance("table_channel_Engine_Config_s", f"table_channel_U{c}", channel) for c in (0, 1)
    )
    path.write_text(
        "<profile><ReportVersion><Version>2025.1</Version></ReportVersion><UserAssignments>"
        "<unit>ns</unit><TopModelName>lut_linear</TopModelName>"
        "<TargetClockPeriod>4.00</TargetClockPeriod></UserAssignments><PerformanceEstimates>"
        f"<SummaryOfTimingAnalysis><EstimatedClockPeriod>{period}</EstimatedClockPeriod>"
        f"</SummaryOfTimingAnalysis></PerformanceEstimates>{area(60000, 50000, 160, 90, 24)}"
        "<RTLDesignHierarchy><TopModule><ModuleName>lut_linear</ModuleName><InstancesList>"
        f"{channels}</InstancesList></TopModule></RTLDesignHierarchy><ModuleInformation>"
        + module("lookup_Engine_Config_Pipeline_lookup_loop", 9000, 5000, 32, 0, 0)
        + module("lookup_Engine_Config_s", 10000, 6000, 32, 0, 0)
        + module("centroid_search_Engine_Config_s", 1500, 1200, 16, 3, 0)
        + "</ModuleInformation></profile>"
    )


def test_report_sums_outermost_instances(tmp_path):
    path = tmp_path / "csynth.xml"
    write_report(path)
    report = read_report(path, ["lookup", "centroid_search", "accumulate"])
    assert report.top == "lut_linear"
    assert report.clock_mhz == pytest.approx(312.5)
    assert report.blocks["lookup"]["lut"] == 20000
    assert report.blocks["centroid_search"]["bram36"] == 3
    assert "accumulate" not in report.blocks
    assert report.total["uram"] == 24


def test_comparison_tabulates_the_error(tmp_path):
    path = tmp_path / "csynth.xml"
    write_report(path)
    blocks = {"lookup": Resources.of(lut=22000, ff=12000, dsp=64), "ports": Resources.of(lut=1000)}
    rows = {(r.block, r.resource): r for r in compare(path, blocks, 250.0)}
    assert rows["lookup", "lut"].error == pytest.approx(0.1)
    assert rows["lookup", "ff"].error == 0
    assert ("lookup", "uram") not in rows
    assert rows["all", "lut"].estimate == 23000
    assert rows["all", "clock_mhz"].error == pytest.approx(-0.2)


def test_compare_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "csynth.xml"
    write_report(path)
    assert main(["estimate", "qwen3-0.6b", "--compare", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["comparison"]
    assert {row["block"] for row in rows} == {"lookup", "centroid_search", "all"}
    assert main(["estimate", "qwen3-0.6b", "--compare", str(path)]) == 0
    assert "tool" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<profile>", "not valid XML"),
        ("<other/>", "not a Vitis HLS report"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><profile/>', "declares entities"),
        (None, "cannot be read"),
    ],
)
def test_bad_reports(tmp_path, text, message):
    path = tmp_path / "csynth.xml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_report(path, ["lookup"])
    if text == "<profile>":
        write_report(path, period="0")
        with pytest.raises(ConfigError, match="estimated clock period is '0'"):
            read_report(path, ["lookup"])


def test_models_are_read_without_weights(tmp_path):
    source = Path(lutllm.__file__).parents[1] / "fpga/models/llama-3.2-1b.json"
    (tmp_path / "config.json").write_text(source.read_text())
    assert read_source(tmp_path).model == read_source(source).model == model("llama-3.2-1b")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 2}')
    with pytest.raises(CheckpointError, match="lacks 'hidden_size'"):
        read_source(tmp_path)


def write_random_gguf(path, kind="Q8_0"):
    """A tiny Qwen3 model; returns its config."""
    pytest.importorskip("gguf")
    config = tiny_models.tiny_config("qwen3")
    shapes = tensor_shapes(ModelConfig.from_hf(config))
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    tiny_models.write_gguf(path, config, tensors, kind)
    return config


def test_a_gguf_file_is_sized_like_its_config(tmp_path, capsys):
    config = write_random_gguf(tmp_path / "m.gguf")
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert main(["estimate", str(tmp_path / "m.gguf"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == plain(lutllm.estimate(tmp_path / "config.json"))


def test_weights_of_a_gguf_file_are_not_read(tmp_path, monkeypatch):
    write_random_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(GgufFile, "raw_rows", None)
    assert read_source(tmp_path / "m.gguf").stored == "F16"
    write_random_gguf(tmp_path / "wide.gguf", "F32")
    assert read_source(tmp_path / "wide.gguf").stored == "F32"


def test_bad_gguf_files_are_refused(tmp_path, capsys):
    path = tmp_path / "m.gguf"
    write_random_gguf(path)
    whole = path.read_bytes()
    for data, message in (
        (whole[: len(whole) // 2], "truncated"),
        (whole[:40], "the header leaves the file"),
        (b"{}", "not a GGUF file"),
    ):
        path.write_bytes(data)
        assert main(["estimate", str(path)]) == 2
        assert message in capsys.readouterr().err


def test_settings():
    assert Setting(V80).clock == 250
    assert Setting(V80, clock_mhz=300).clock == 300
    assert too_large(Resources.of(lut=V80.lut + 1), V80) == [
        "lut: 100% of the 2,574,208 of v80",
    ]
