"""The schedule of the decoder in C simulation: two parts that take turns, and what breaks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codegen.csim_decoder import run_decoder
from fpga.schedule import TURNS
from lutllm.artifact import Artifact
from lutllm.errors import ArtifactError
from tests.decoder_designs import ENGINE, greedy, refresh_manifest

PART = ENGINE.max_tokens
Designs = Callable[[str], tuple[Path, Path]]


@pytest.mark.parametrize("name", ["coded", "online", "mixed", "screened apart"])
@pytest.mark.parametrize("tokens", [PART, PART + 1, 2 * PART, 2 * PART + 1, 3 * PART + 3])
def test_every_split_of_a_prompt(designs: Designs, name: str, tokens: int) -> None:
    """One full part, two of unequal size, two full ones; then one token, or two parts more."""
    root, source = designs(name)
    prompt = np.random.default_rng(tokens).integers(0, 301, tokens).tolist()
    found = run_decoder(root, golden=greedy(Artifact.open(source), prompt, 2))
    assert found["first_divergence"] is None
    if found["flips"] == 0:
        assert found["tokens_equal"] == found["tokens_compared"] == 2


def change(root: Path, right: str, wrong: str) -> None:
    """Every place of the kernel that says `right`."""
    path = root / "hls/decoder.cpp"
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    refresh_manifest(root)


@pytest.mark.parametrize(
    ("changes", "waiting"),
    [
        (  # results of one part have nowhere to go while the engine takes the other
            [
                ("C::MAX_TOKENS * wide::INTERMEDIATE_BEATS>", "4>"),
                ("max_of(4, C::BEAT_FIFO / C::VECTOR_LANES)> words", "4> words"),
            ],
            "write of gated",
        ),
        ([("wide::INTERMEDIATE_BEATS + 2> gate_words", "2> gate_words")], "write of gate"),
        # down_proj of a layer before its gate_up_proj
        ([("{DOWN, 1, 1}", "{DOWN, 1, 0}")], "read of gated"),
    ],
)
def test_deadlock_is_named(
    copy: Path, designs: Designs, changes: list[tuple[str, str]], waiting: str
) -> None:
    for right, wrong in changes:
        change(copy, right, wrong)
    full = greedy(Artifact.open(designs("coded")[1]), list(range(2 * PART)), 1)
    with pytest.raises(ArtifactError, match=rf"DEADLOCK(.|\n)*waits for {waiting}"):
        run_decoder(copy, golden=full, allow_modified=True)


@pytest.mark.parametrize(
    ("right", "wrong", "position", "step"),
    [
        # the residual of the second part on that of the first: its first token is number 6 of 11
        ("hidden + (step.part ? second : 0)", "hidden", 0, "layers.1.self_attn.qkv_proj"),
        # positions of the second part
        (
            "parts.part[1].first = run.first + parts.part[0].tokens;",
            "parts.part[1].first = run.first;",
            6,
            "layers.0.self_attn.o_proj",
        ),
        ("norms + step.norm()", "norms + 1", 0, "layers.1.self_attn.qkv_proj"),
    ],
)
def test_mixed_up_parts_are_found(
    copy: Path, right: str, wrong: str, position: int, step: str
) -> None:
    change(copy, right, wrong)
    first = run_decoder(copy, allow_modified=True)["first_divergence"]
    assert step in first["step"]
    assert first["position"] == position


def test_the_kernel_takes_the_turns_of_the_schedule(designs: Designs) -> None:
    text = (designs("coded")[0] / "hls/decoder.cpp").read_text()
    table = text.split("TURNS[8] = {")[1].split(";")[0]
    names = {"qkv_proj": "QKV", "o_proj": "O", "gate_up_proj": "GATE_UP", "down_proj": "DOWN"}
    wanted = ", ".join(f"{{{names[t.projection]}, {t.part}, {t.back}}}" for t in TURNS)
    assert " ".join(table.split()) == f"{wanted}}}"
