"""The schedule of a decoder kernel: what takes turns on the engines, and what runs beside it.

`fpga/hls/decoder_steps.h` has the same table; tests/test_csim_turns.py holds one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpga.decoder_design import PROJECTIONS

#: The step between the projection before and this one.
STEPS = {
    "qkv_proj": "residual, norm",
    "o_proj": "attention",
    "gate_up_proj": "residual, norm",
    "down_proj": "SwiGLU",
}


@dataclass(frozen=True)
class Turn:
    """A projection for a part of the tokens, 0 or 1; back: of the layer so many before."""

    projection: str
    part: int
    back: int = 0

    @property
    def inputs_from(self) -> str:
        """The projection whose results lead to its inputs."""
        return PROJECTIONS[PROJECTIONS.index(self.projection) - 1]


#: The turns of a layer where a run has two parts, in order; of one part there are its own alone.
TURNS = (
    Turn("qkv_proj", 0),
    Turn("down_proj", 1, 1),
    Turn("o_proj", 0),
    Turn("qkv_proj", 1),
    Turn("gate_up_proj", 0),
    Turn("o_proj", 1),
    Turn("down_proj", 0),
    Turn("gate_up_proj", 1),
)


def beside(at: int) -> Turn:
    """The turn whose step runs beside turn number `at` of a layer: the next, whose inputs come from
    the turn before."""
    return TURNS[(at + 1) % len(TURNS)]


def describe_turns() -> list[str]:
    """A line for each turn of a layer: what the engine runs, and the step beside it."""
    lines = []
    for at, turn in enumerate(TURNS):
        other = beside(at)
        of = " of the layer before" if turn.back else ""
        name = f"{turn.projection} {'AB'[turn.part]}{of}"
        lines.append(f"{name:<33} {STEPS[other.projection]} of {'AB'[other.part]}")
    return lines
