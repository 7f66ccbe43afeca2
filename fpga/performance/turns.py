"""Two parts of a prefill that take turns on the engines, in cycles.

A turn begins when its inputs are stored, and the accumulators are free: inputs come through a step
from the turn of the same part before, are stored once the turn before has gathered its own, and the
results of that one have to be drained. What an engine waits is the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fpga.decoder_design import PROJECTIONS
from fpga.schedule import TURNS


@dataclass(frozen=True)
class TurnCycles:
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


def idle_cycles(layers: int, turns: Mapping[tuple[str, int], TurnCycles]) -> dict[str, float]:
    """Cycles without look-ups: by projection those that its inputs take longer to come, and under
    "serial" those of storing, filling and draining. turns: by projection and part."""
    idle = dict.fromkeys([*PROJECTIONS, "serial"], 0.0)
    ends: dict[tuple[str, int, int], float] = {}
    end = drained = gathered = 0.0  # of the turn before
    for at in range(layers + 1):
        for turn in TURNS:
            layer = at - turn.back
            if not 0 <= layer < layers:
                continue
            cycles = turns[turn.projection, turn.part]
            source = layer - (turn.projection == PROJECTIONS[0])
            ready = ends.get((turn.inputs_from, turn.part, source), 0.0) + cycles.step
            earliest = max(end, gathered + cycles.store + cycles.fill, drained)
            begin = max(ready + cycles.fill, earliest)
            idle[turn.projection] += begin - earliest
            idle["serial"] += earliest - end
            end = begin + cycles.stream
            drained, gathered = end + cycles.drain, end - cycles.lead
            ends[turn.projection, turn.part, layer] = end
    return idle
