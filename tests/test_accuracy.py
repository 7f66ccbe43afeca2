"""Perplexity ratios: those that ship agree with the page, others are read or refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from lutllm.accuracy import measured_ratio, read_ratios, recorded_ratios, records
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import ConfigError
from lutllm.recipes import RECIPES, recipe

QUANTS = {name: recipe(name).quant() for name in ("paper", "tiny", "accurate")}
PAGE = (Path(__file__).parents[1] / "docs" / "ACCURACY.md").read_text()


def write_report(path, name="accurate", before=20.0, after=25.0, **changes):
    path.parent.mkdir(exist_ok=True)
    report = {
        "artifact_hash": "00",
        "quantization": recipe(name).quant(seed=3).to_dict(),
        "perplexity_before": before,
        "perplexity_after": after,
    }
    path.write_text(json.dumps(report | changes))
    return path


@pytest.mark.parametrize("record", records(), ids=lambda record: record.model)
def test_recorded_ratios_are_those_of_the_page(record):
    """Every one is the last number of a row of its recipe, below the heading of its model."""
    section = PAGE.split(f"## {record.model}", 1)[1].split("\n## ", 1)[0]
    assert set(record.ratios) <= set(RECIPES)
    for name, ratio in record.ratios.items():
        rows = [line for line in section.splitlines() if f"`{name}`" in line]
        stated = {number for line in rows for number in re.findall(r"\d+\.\d+", line)}
        assert ratio in {float(number) for number in stated}, name


def test_recorded_ratios_belong_to_a_quantization_not_to_a_name():
    found = recorded_ratios(QUANTS)
    assert set(found.values) == {"paper", "tiny", "accurate"}
    assert found.unknown([*QUANTS, "mine"]) == ["mine"]
    assert "SmolLM2-135M-Instruct on WikiText-2" in found.source
    other = {"paper": QuantConfig(LutConfig(act_centroids=16)), "mine": recipe("accurate").quant(7)}
    assert set(recorded_ratios(other).values) == {"mine"}


def test_reports_and_tables_are_read(tmp_path):
    report = write_report(tmp_path / "art" / "report.json")
    table = tmp_path / "ratios.json"
    table.write_text('{"tiny": 4, "lossless": 1.01}')
    for source in (report, report.parent):
        found = read_ratios([source, table], QUANTS)
        assert found.values == {"tiny": 4, "accurate": 1.25}
        assert found.unknown([*QUANTS]) == ["paper"]
    assert str(table) in found.source
    record = records()[1]
    assert read_ratios([record.model], QUANTS).values == record.ratios


def test_reports_without_perplexities():
    assert measured_ratio({"perplexity_before": 20.0, "perplexity_after": 30.0}) == 1.5
    for value in (None, 0.0, float("inf"), "3", True):
        assert measured_ratio({"perplexity_before": value, "perplexity_after": 30.0}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ("{}", "holds no ratio"),
        ('{"papr": 2}', "'papr' is no recipe; choose from paper"),
        ('{"paper": 0}', "ratio of paper is 0; it must be a number above 0"),
        ('{"paper": true}', "ratio of paper is True"),
        ('{"paper": NaN}', "ratio of paper is nan"),
    ],
)
def test_bad_tables_are_refused(text, message, tmp_path):
    path = tmp_path / "ratios.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_ratios([path], QUANTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": None}, "has no perplexities before and after"),
        ({"quantization": {"default": 1}}, "its quantization cannot be read"),
        ({"name": "balanced"}, "another quantization than paper, tiny, accurate"),
    ],
)
def test_bad_reports_are_refused(changes, message, tmp_path):
    path = write_report(tmp_path / "art" / "report.json", **changes)
    with pytest.raises(ConfigError, match=message):
        read_ratios([path], QUANTS)


def test_contradictions_and_missing_files_are_refused(tmp_path):
    a = write_report(tmp_path / "a" / "report.json")
    b = write_report(tmp_path / "b" / "report.json", after=22.0)
    assert read_ratios([a, a], QUANTS).values == {"accurate": 1.25}
    with pytest.raises(ConfigError, match=r"accurate has the ratio 1\.1 here and 1\.25"):
        read_ratios([a, b], QUANTS)
    with pytest.raises(ConfigError, match="no such file or folder; give an artifact"):
        read_ratios(["nothing"], QUANTS)
    with pytest.raises(ConfigError, match=r"report\.json: file not found"):
        read_ratios([tmp_path], QUANTS)


def test_another_head_is_another_quantization(tmp_path):
    quant = dataclasses.replace(QUANTS["accurate"], head="source")
    path = write_report(tmp_path / "art" / "report.json", quantization=quant.to_dict())
    with pytest.raises(ConfigError, match="another quantization"):
        read_ratios([path], QUANTS)
    assert read_ratios([path], {"own": quant}).values == {"own": 1.25}
