"""What the source of an engine does not say: latencies, memory efficiency, how calls follow.

Every number here is an assumption until a synthesis or a board corrects it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lutllm.errors import ConfigError


def _check(owner: str, values: dict[str, Any], positive: tuple[str, ...]) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value < 0 or (name in positive and value == 0):
            raise ConfigError(f"{owner}: {name} is {value!r}; it must not be below its least value")


@dataclass(frozen=True)
class Timing:
    """Latencies in cycles of the kernel, unless said otherwise.

    loop_gap           leaving and entering a pipelined loop that is nested in another
    memory_latency_ns  from a read request to its first beat, through NoC and memory
    input_depth        scale, round and gather of one value
    search_depth       one score and one comparison of a chain
    row_depth          from code or vector to its row
    lookup_depth       from the sums of one channel to those of the next
    output_depth       from the last sum to its float in memory
    call_gap           between the end of a call and the start of the next, on the board
    step_depth         from first input to first output of a float step
    softmax_interval   cycles of the softmax from one stripe of keys to the next
    near_share         of the words, those whose row a screened head reads: what Qwen2.5-Coder-0.5B
                       takes with the default margin (docs/BENCHMARKS.md)
    """

    loop_gap: int = 6
    memory_latency_ns: float = 250.0
    input_depth: int = 30
    search_depth: int = 4
    row_depth: int = 12
    lookup_depth: int = 8
    output_depth: int = 40
    call_gap: int = 20
    step_depth: int = 60
    softmax_interval: int = 10
    near_share: float = 0.036

    def __post_init__(self) -> None:
        _check("timing", dataclasses.asdict(self), ())


#: What estimates assume.
ASSUMED_TIMING = Timing()
#: No latencies at all: what the C simulation counts.
IDEAL = Timing(0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class MemoryEfficiency:
    """Shares of the raw rate that a port reaches.

    streamed  long bursts in address order
    fetched   rows of the codes found: bursts of 32 to 512 bytes at random places
    """

    streamed: float = 0.90
    fetched: float = 0.50

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value <= 1:
                raise ConfigError(
                    f"memory efficiency: {name} is {value!r}; it must be above 0, at most 1"
                )


ASSUMED_EFFICIENCY = MemoryEfficiency()
#: Memory that always delivers.
PERFECT_MEMORY = MemoryEfficiency(1.0, 1.0)
