"""The sizes on docs/RECIPES.md are those of the shapes, its ratios those of the data that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from lutllm.accuracy import records
from lutllm.lut_linear import stored_bytes
from lutllm.model_config import ModelConfig
from lutllm.recipes import RECIPES
from tests.make_artifact import SHAPES, hf_config

PAGE = (Path(__file__).parents[1] / "docs" / "RECIPES.md").read_text(encoding="utf-8")


def cells(heading, recipe):
    """The cells behind the name of a recipe in the table of a section."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (row,) = (x for x in section.splitlines() if x.startswith(f"| `{recipe}` |"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def sizes(shape, recipe):
    """(bits per weight of the linears, MB of the artifact)"""
    model = ModelConfig.from_hf(hf_config(*SHAPES[shape]))
    quant = RECIPES[recipe].quant()
    linear_bytes = weights = norms = 0
    for linear in model.linears():
        setting = quant.for_linear(linear.name)
        linear_bytes += stored_bytes(
            setting, linear.in_features, linear.out_features, linear.has_bias
        )
        weights += linear.in_features * linear.out_features
    norms = 2 * model.hidden_size * (2 * model.num_hidden_layers + 1)
    rows = model.vocab_size * (model.hidden_size + 4)
    return linear_bytes * 8 / weights, (linear_bytes + norms + rows) / 1e6


@pytest.mark.parametrize("recipe", RECIPES)
def test_sizes(recipe):
    found = cells("Size", recipe)
    assert float(found[0]) == RECIPES[recipe].config.index_bits_per_weight
    for shape, stated in (("smollm2-135m", found[1:3]), ("qwen2.5-0.5b", found[3:5])):
        bits, size = sizes(shape, recipe)
        assert stated == [f"{bits:.2f}", f"{size:.1f}"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_ratios(recipe):
    found = cells("Accuracy", recipe)
    for record, stated in zip(records(), (found[0], found[2]), strict=True):
        ratio = record.ratios.get(recipe)
        assert stated == "not measured" if ratio is None else float(stated) == ratio


def test_every_recipe_is_on_every_table():
    for heading in ("Size", "Accuracy", "On a CPU", "On the V80"):
        for recipe in RECIPES:
            assert cells(heading, recipe)
