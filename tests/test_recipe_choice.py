"""--recipe auto: the most accurate recorded recipe that fits, said with its reason."""

from __future__ import annotations

import dataclasses
import json

import pytest

import lutllm
from lutllm.accuracy import records
from lutllm.cli import main
from lutllm.errors import ConfigError
from lutllm.recipes import RECIPES, recipe
from quant import recipe_choice
from tests.embedded import MODEL

RATIOS = records()[0].ratios
#: Recorded recipes, the most accurate first.
ORDER = sorted(RATIOS, key=lambda name: RATIOS[name])
#: quantity of a plan -> the limit on it, and its unit
LIMITS = {"bits_per_weight": ("max_bits", 1.0), "estimated_artifact_bytes": ("max_mb", 1e6)}


@pytest.fixture(scope="module")
def plans():
    return {name: lutllm.plan(MODEL, recipe=name) for name in ORDER}


@pytest.mark.parametrize("quantity", LIMITS)
def test_the_most_accurate_that_fits(plans, quantity):
    """At the size of every recipe, where it just fits, and a little below."""
    limit, unit = LIMITS[quantity]
    for size in (factor * plan[quantity] for plan in plans.values() for factor in (1, 0.999)):
        fitting = [name for name in ORDER if plans[name][quantity] <= size]
        if not fitting:
            with pytest.raises(ConfigError, match=r"no recipe fits .* takes"):
                lutllm.choose_recipe(MODEL, **{limit: size / unit})
            continue
        chosen = lutllm.choose_recipe(MODEL, **{limit: size / unit})
        plan = plans[fitting[0]]
        assert chosen["recipe"] == fitting[0]
        assert chosen["bits_per_weight"] == plan["bits_per_weight"]
        assert chosen["artifact_bytes"] == plan["estimated_artifact_bytes"]
        assert chosen["recorded_ratio"] == RATIOS[fitting[0]]


def test_both_limits_hold(plans):
    best = ORDER[0]
    second = next(n for n in ORDER if all(plans[n][q] < plans[best][q] for q in LIMITS))
    bits, size = (plans[second][q] / unit for q, (_, unit) in LIMITS.items())
    both = lutllm.choose_recipe(MODEL, max_bits=1.001 * bits, max_mb=1000)
    assert both["recipe"] == second
    both = lutllm.choose_recipe(MODEL, max_bits=100, max_mb=1.001 * size)
    assert both["recipe"] == second
    assert lutllm.choose_recipe(MODEL, max_bits=100, max_mb=1000)["recipe"] == best


def test_the_reason_names_what_was_passed_over():
    bits = lutllm.choose_recipe(MODEL, max_bits=100)["bits_per_weight"]
    reason = lutllm.choose_recipe(MODEL, max_bits=0.999 * bits)["reason"]
    assert f"{ORDER[0]} takes {bits:.2f} bits" in reason
    assert records()[0].model in reason


def test_recipes_without_a_record_are_named(monkeypatch):
    measured = {name: ratio for name, ratio in RATIOS.items() if name != "lossless"}
    record = dataclasses.replace(records()[0], ratios=measured)
    monkeypatch.setattr(recipe_choice, "records", lambda: [record])
    chosen = lutllm.choose_recipe(MODEL, max_bits=100)
    assert chosen["recipe"] == min(measured, key=lambda name: measured[name])
    passed_over = chosen["reason"].split("; not considered, since not measured: ")[1].split(", ")
    assert set(passed_over) == set(RECIPES) - set(measured)


def test_head_counts():
    small, large = (lutllm.choose_recipe(MODEL, max_mb=1000, head=h) for h in ("int8", "source"))
    assert small["artifact_bytes"] < large["artifact_bytes"]


def test_quantize_takes_the_choice(tmp_path, monkeypatch):
    from quant import pipeline

    class Stopped(Exception):
        pass

    def stop(checkpoint, out, config, *args, **options):
        raise Stopped(config)

    monkeypatch.setattr(pipeline, "quantize", stop)
    with pytest.raises(Stopped) as caught:
        lutllm.quantize(MODEL, tmp_path / "out", recipe="auto", max_mb=1000, eval_tokens=0)
    assert caught.value.args[0] == recipe(ORDER[0]).quant()
    with pytest.raises(Stopped) as caught:
        lutllm.quantize(MODEL, tmp_path / "out", recipe="tiny", eval_tokens=0)
    assert caught.value.args[0] == recipe("tiny").quant()
    with pytest.raises(ConfigError, match="both choose index bits"):
        lutllm.quantize(MODEL, tmp_path / "out", recipe="auto", max_mb=1000, bits=3)


def test_command_says_what_and_why(capsys):
    words = ["quantize", str(MODEL), "--recipe", "auto", "--max-bits", "100", "--plan"]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["recipe_choice"]
    assert found["recipe"] == ORDER[0]
    assert captured.err.startswith(f"recipe {ORDER[0]}: {found['reason']}")
    assert main([*words, "-q"]) == 0
    captured = capsys.readouterr()
    assert f"recipe       {ORDER[0]}" in captured.out
    assert not captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "auto"], "needs a budget; give max_bits or max_mb"),
        (["--recipe", "auto", "--max-bits", "0"], "max_bits is 0; it must be above 0"),
        (["--recipe", "auto", "--max-bits", "4", "--vec-len", "4"], "leave out the options"),
        (["--recipe", "auto", "--max-bits", "4", "--bits", "3"], "leave out the options"),
        (["--recipe", "auto", "--max-mb", "4", "--override", "*:vec_len=4"], "leave out the"),
        (["--recipe", "paper", "--max-mb", "4"], "are a budget of --recipe auto"),
        (["--recipe", "auto", "--max-mb", "0.1"], "no recipe fits 0.1 MB"),
    ],
)
def test_errors_of_use(words, message, capsys):
    assert main(["quantize", str(MODEL), "-o", "out", *words]) == 2
    assert message in capsys.readouterr().err


def test_errors_in_python():
    with pytest.raises(ConfigError, match="config and recipe are both given"):
        lutllm.plan(MODEL, lutllm.QuantConfig(), recipe="paper")
    with pytest.raises(ConfigError, match="a budget of recipe 'auto'"):
        lutllm.plan(MODEL, max_mb=3)
    assert lutllm.plan(MODEL, recipe="auto", max_mb=1000)["recipe_choice"]["recipe"] == ORDER[0]
