"""The search: what it derives, the front, the choice within a budget."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import struct
import time

import pytest

import lutllm
from codegen.export import export
from codegen.manifest import read_design
from fpga.design import EngineConfig, EngineDesign
from fpga.design_file import DesignChoices
from fpga.device import load_device
from fpga.performance.commands import read_source
from fpga.performance.designs import decoder_design, model_engines
from fpga.performance.estimate import Estimate
from fpga.performance.explore import Budget, Space, choose, explore, pareto, settings
from fpga.performance.run import Run, process_cycles
from fpga.performance.timing import IDEAL
from lutllm.cli import main
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import ConfigError
from lutllm.recipes import recipe, with_head
from tests.make_artifact import tiny_config, write_artifact

V80 = load_device("v80")
#: A LUT linear before the head, coded like the layers, with entries of 8 bits in all of them.
QUANTS = {
    "co": with_head(QuantConfig(recipe("paper").config), "engine"),
    "weight": with_head(QuantConfig(recipe("tiny").config.with_table_bits(8)), "engine"),
}
MODEL = read_source("qwen3-1.7b").model
SMALL = {"channels": (16, 64), "lanes": (128, 256), "max_tokens": (32,)}


@pytest.fixture(scope="module")
def found():
    space = Space(QUANTS, (300.0,), **SMALL)
    begun = time.monotonic()
    result = explore(MODEL, V80, space, Budget(900, 55))
    assert time.monotonic() - begun < 30
    return result


def test_front_holds_the_best_and_nothing_beaten(found):
    assert found.candidates
    assert set(map(id, found.front)) <= set(map(id, found.candidates))
    for i in range(3):
        best = min(c.costs()[i] for c in found.candidates)
        assert min(c.costs()[i] for c in found.front) == best
    for a in found.front:
        beaten = [b for b in found.front if b is not a and _dominates(b.costs(), a.costs())]
        assert not beaten
    assert pareto(found.front) == found.front


def _dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def test_choice_keeps_the_budget(found):
    chosen = found.chosen
    assert chosen is not None
    assert chosen.decode_ms <= 1000 / 900
    assert chosen.prefill_ms <= 55
    assert chosen.size <= 0.8
    assert choose(found.front, Budget(1e9)) is None
    tight = choose(found.front, Budget(max_share=0.8))
    assert tight is not None


def with_ratios(candidates, ratios):
    return [dataclasses.replace(c, ratio=ratios.get(c.quant_name)) for c in candidates]


def test_accuracy_keeps_slower_designs_on_the_front(found):
    """The fastest design of the more accurate quantization cannot be beaten by the other's."""
    fastest = {
        name: min((c for c in found.candidates if c.quant_name == name), key=lambda c: c.costs())
        for name in QUANTS
    }
    slower = max(fastest, key=lambda name: fastest[name].decode_ms)
    (faster,) = set(QUANTS) - {slower}
    for ratios in ({slower: 1.1, faster: 5.0}, {faster: 5.0}):
        front = pareto(with_ratios(found.candidates, ratios))
        assert {c.quant_name for c in front} == set(QUANTS)
        assert fastest[slower].costs()[0] == min(
            c.costs()[0] for c in front if c.quant_name == slower
        )
    same = pareto(with_ratios(found.candidates, {slower: 2.0, faster: 2.0}))
    assert [c.design for c in same] == [c.design for c in found.front]


def test_accuracy_limits_the_choice(found):
    front = pareto(with_ratios(found.candidates, {"co": 5.0, "weight": 1.5}))
    chosen = choose(front, Budget(max_perplexity_ratio=2))
    assert chosen is not None
    assert chosen.quant_name == "weight"
    assert choose(front, Budget(max_perplexity_ratio=1.4)) is None
    unknown = pareto(with_ratios(found.candidates, {"co": 5.0}))
    assert choose(unknown, Budget(max_perplexity_ratio=2)) is None
    chosen = choose(unknown, Budget(max_perplexity_ratio=6))
    assert chosen is not None
    assert chosen.quant_name == "co"


def fastest(found, name, cost):
    """Of a quantization the candidate that costs least."""
    return min((c for c in found.candidates if c.quant_name == name), key=cost)


@pytest.mark.parametrize("name", QUANTS)
def test_goals_of_the_1_7b_model_are_met_in_one_design(found, name):
    """A token in at most 1.1 ms with its head, 128 in at most 55, at 300 MHz and within 80 %: the
    published accelerator takes 5.1 ms without a head, and 203."""
    best = fastest(found, name, lambda c: (c.prefill_ms > 55, c.decode_ms))
    assert best.prefill_ms <= 55
    assert best.decode_ms <= 1.1
    assert best.size <= 0.8
    assert best.design.screened


def test_decode_is_bounded_by_the_bytes_that_it_reads(found):
    """Rows in the place of the linear before the head are over the goal of 1.1 ms at 300 MHz."""
    gb_per_s = 64 * 32 * 0.3 * 0.9  # every port, a beat of 32 bytes in 90 % of the cycles
    for name, quant in QUANTS.items():
        best = fastest(found, name, lambda c: c.decode_ms)
        estimate = Estimate(best.design, best.setting)
        least = estimate.decode.bytes.value / (1e6 * gb_per_s)
        assert 0.5 * best.decode_ms < least < best.decode_ms
        rows = decoder_design(MODEL, with_head(quant, "int8"), best.engine, best.design.config)
        of_rows = Estimate(rows, best.setting).decode
        assert 1.1 < of_rows.bytes.value / (1e6 * gb_per_s) < of_rows.ms.value


def test_derived_engines_starve_nothing():
    """Neither search nor gathering takes longer than the look-ups of a long run."""
    space = Space(QUANTS, (250.0,))
    seen: dict[str, list[EngineDesign]] = {}
    for _, design, _ in settings(MODEL, V80, space):
        engine = design.engines[0]
        seen.setdefault(json.dumps(engine.config.to_dict()), [engine])
    assert len(seen) > 100
    for engines in list(seen.values())[::7]:
        for kind in engines[0].kinds:
            mode = "online" if engines[0].online_rows else "table"
            run = Run(engines[0], kind, 32, mode)
            cycles = process_cycles(run, IDEAL)
            gather = cycles["gather"].value - run.x_words.value
            assert gather <= cycles["lookup"].value
            if engines[0].search:
                assert cycles["search"].value <= cycles["lookup"].value


def test_candidates_fit_the_share(found):
    assert all(max(c.shares.values()) <= 0.8 for c in found.candidates)
    roomy = explore(MODEL, V80, Space(QUANTS, (250.0,), **SMALL), Budget(max_share=0.3))
    assert all(c.size <= 0.3 for c in roomy.candidates)
    assert len(roomy.candidates) < len(found.candidates)


def test_command_writes_a_config_that_engines_take(tmp_path, capsys):
    out = tmp_path / "design.json"
    words = ["explore", "qwen2.5-0.5b", "--recipe", "tiny", "--json", "-o", str(out)]
    assert main([*words, "--decode-tokens-per-s", "100"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = DesignChoices.read(out).engine
    assert config == EngineConfig.from_dict(found["chosen"]["engine"])
    small = read_source("qwen2.5-0.5b").model
    assert model_engines(small, QUANTS["weight"], config)[0].config == config
    assert found["chosen"]["tokens_per_s"] >= 100
    assert found["tried"] >= found["fitting"] >= len(found["front"])


def test_accuracy_on_the_command_line(tmp_path, capsys):
    table = tmp_path / "ratios.json"
    table.write_text('{"accurate": 1.2}')
    words = ["explore", "qwen2.5-0.5b", "--recipe", "tiny", "--recipe", "accurate"]
    words += ["--accuracy", str(table), "--max-perplexity-ratio", "1.3"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"]["quantization"] == "accurate"
    assert found["chosen"]["perplexity_ratio"] == 1.2
    known = {"source": str(table), "ratios": {"accurate": 1.2}, "unknown": ["tiny"]}
    assert found["accuracy"] == known
    assert {c["quantization"] for c in found["front"]} == {"tiny", "accurate"}
    table.write_text('{"accurate": 1.4}')
    assert main(words) == 1
    text = capsys.readouterr().out
    assert f"ratios {table}" in text
    assert "accuracy of tiny: within no limit" in text
    assert "none is within the budget" in text


def test_an_artifact_brings_its_own_ratio(tmp_path):
    art = write_artifact(tmp_path / "art", tiny_config("qwen3"), QuantConfig())
    report = art / "report.json"
    report.write_text(json.dumps({"perplexity_before": 20.0, "perplexity_after": 30.0}))
    found = lutllm.explore(art, max_perplexity_ratio=2.0)
    assert found["accuracy"]["ratios"] == {"artifact": 1.5}
    assert found["chosen"]["perplexity_ratio"] == 1.5


def test_a_chosen_design_is_exported_and_estimated_alike(tmp_path, capsys):
    """Explore, export with what was written, estimate: one engine."""
    quant = QuantConfig(LutConfig(group_size=64))
    art = write_artifact(tmp_path / "art", tiny_config("qwen3"), quant)
    out = tmp_path / "design.json"
    words = ["explore", str(art), "--json", "-q", "-o", str(out), "--clock-mhz", "300"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"]["unknown"] == ["artifact"]
    chosen = found["chosen"]
    choices = DesignChoices.read(out)
    assert choices.to_dict() == {n: chosen[n] for n in ("engine", "decoder", "clock_mhz")}
    assert choices.clock_mhz == 300
    given = {"engine": choices.engine, "decoder": choices.decoder, "clock_mhz": choices.clock_mhz}
    files = export(art, tmp_path / "design", golden={}, **given)
    assert files["engines"] == ["lut_linear"]
    design = read_design(tmp_path / "design")
    assert design.engines[0].config.to_dict() == chosen["engine"]
    assert design.device.clock_mhz == 300
    for kernel in ("lut_linear", "decoder"):
        assert "clock=3.33333ns\n" in (tmp_path / "design" / f"hls/{kernel}.cfg").read_text()
    assert "built for 300 MHz" in (tmp_path / "design/README.md").read_text()
    assert main(["estimate", str(art), "--design", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decode_ms_per_token"] == pytest.approx(chosen["decode_ms_per_token"])
    assert found["prefill_ms"] == pytest.approx(chosen["prefill_ms"])
    assert found["clock_mhz"] == 300


def test_budget_beyond_reach_is_exit_status_1(tmp_path, capsys):
    out = tmp_path / "design.json"
    words = ["explore", "qwen3-32b", "--recipe", "tiny", "-o", str(out)]
    assert main([*words, "--decode-tokens-per-s", "1000"]) == 1
    assert "none is within the budget" in capsys.readouterr().out
    assert not out.exists()


def test_bad_budget():
    with pytest.raises(ConfigError, match=r"max_share is 1\.5"):
        Budget(max_share=1.5)
    assert main(["explore", "qwen3-0.6b", "--max-lut", "0"]) == 2


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs matplotlib")
def test_plot(found, tmp_path):
    from fpga.performance.plots import plot_front

    plot_front(found, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000
    known = with_ratios(found.candidates, {"co": 5.0})
    more = dataclasses.replace(found, candidates=known, front=pareto(known), chosen=None)
    plot_front(more, tmp_path / "accuracy.png")
    widths = [
        struct.unpack_from(">I", (tmp_path / name).read_bytes(), 16)[0]
        for name in ("front.png", "accuracy.png")
    ]
    assert widths[1] * 3 == widths[0] * 4  # a fourth panel
