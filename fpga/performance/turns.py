"""Two parts of a prefill that take turns on the engines (decoder_steps.h TURNS).

A turn begins when its inputs are stored, and the accumulators are free: inputs come through a step
from the turn of the same part before, are stored once the turn before has gathered its own, and the
results of that one have to be drained. What an engine waits is the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fpga.decoder_design import PROJECTIONS

#: Projection, part, and of the layer how many before: the turns of a layer (decoder_steps.h TURNS).
TURNS = (
    ("qkv_proj", 0, 0),
    ("down_proj", 1, 1),
    ("o_proj", 0, 0),
    ("qkv_proj", 1, 0),
    ("gate_up_proj", 0, 0),
    ("o_proj", 1, 0),
    ("down_proj", 0, 0),
    ("gate_up_proj", 1, 0),
)


@dataclass(frozen=True)
class Turn:
    """A turn in cycles.

    step    from the last look-up of the turn that its inputs come from to its last activation
    store   of all its activations
    lead    of the look-ups that are left when its last activation is gathered
    fill    until the first look-up
    stream  of all look-ups
    drain   of all results
    """

    step: float
    store: float
    lead: float
    fill: float
    stream: float
    drain: float


def idle_cycles(layers: int, turns: Mapping[tuple[str, int], Turn]) -> dict[str, float]:
    """Cycles without look-ups: by projection those that its inputs take longer to come, and under
    "serial" those of storing, filling and draining. turns: by projection and part."""
    idle = dict.fromkeys([*PROJECTIONS, "serial"], 0.0)
    ends: dict[tuple[str, int, int], float] = {}
    end = drained = gathered = 0.0  # of the turn before
    for at in range(layers + 1):
        for projection, part, back in TURNS:
            layer = at - back
            if not 0 <= layer < layers:
                continue
            turn = turns[projection, part]
            before = PROJECTIONS[PROJECTIONS.index(projection) - 1]
            source = layer - (projection == PROJECTIONS[0])
            ready = ends.get((before, part, source), 0.0) + turn.step
            earliest = max(end, gathered + turn.store + turn.fill, drained)
            begin = max(ready + turn.fill, earliest)
            idle[projection] += begin - earliest
            idle["serial"] += earliest - end
            end = begin + turn.stream
            drained, gathered = end + turn.drain, end - turn.lead
            ends[projection, part, layer] = end
    return idle
