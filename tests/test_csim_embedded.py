"""The embedded model's decoder in C simulation: 64 tokens after a prompt of 48, both schemes."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import lutllm
from fpga.design import EngineConfig
from fpga.design_file import DesignChoices
from tests.embedded import embedded_artifact

PROMPT, TOKENS = 48, 64
_FOLDER = tempfile.TemporaryDirectory(prefix="lutllm-embedded-designs-")
#: What is exported and how an engine gets its rows: whole tables in prefill and fetched rows in
#: decode ("co", auto), rows computed from coded activations, rows computed from activations.
RUNS = {"co": ("co", "auto"), "co online": ("co", "online"), "weight": ("weight", "auto")}


@cache
def design_of(name: str) -> Path:
    artifact, rows = RUNS[name]
    out = Path(_FOLDER.name) / name
    design = DesignChoices(EngineConfig(rows=rows)).to_dict()
    source = embedded_artifact(artifact)
    lutllm.export(source, out, design=design, prompt_tokens=PROMPT, new_tokens=TOKENS)
    return out


@cache
def simulated(name: str) -> dict[str, Any]:
    return lutllm.csim(design_of(name), decoder=True, artifact=embedded_artifact(RUNS[name][0]))


@pytest.mark.parametrize("name", RUNS)
def test_every_step_and_token_on_the_kernels_inputs(name: str) -> None:
    """No flip before a step can hide a difference here: float rounding is all that is left."""
    found = simulated(name)["replay"]
    assert found["first_divergence"] is None
    assert found["tokens_equal"] + len(found["ties"]) == TOKENS
    assert found["max_input_error"] < 1e-5


@pytest.mark.parametrize("name", RUNS)
def test_tokens_are_those_of_the_emulator(name: str) -> None:
    """Each by itself. Which roundings flip depends on the machine, and so may what follows."""
    found = simulated(name)
    assert found["tokens_compared"] == TOKENS
    assert found["first_divergence"] is None
    assert found["tokens_equal"] == TOKENS or found["token_difference"]["verdict"] != "mismatch"
