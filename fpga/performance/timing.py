"""What the source of an engine does not say: latencies, memory efficiency, how calls follow.

Every number here is an assumption until a synthesis or a board corrects it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lutllm.config import reject_unknown
from lutllm.errors import ConfigError

HEADS = ("lut", "int8", "bf16", "none")


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


@dataclass(frozen=True)
class Schedule:
    """How the calls of an engine follow one another.

    on_chip    attention and head are those of `Assumed`; otherwise all steps are those of the
               decoder kernel
    """

    name: str
    on_chip: bool = False


#: The decoder kernel as it is rendered today: step after step, engines that read ahead.
EMITTED = Schedule("emitted")
#: A step to what the board allows, not rendered yet.
ON_CHIP = Schedule("on-chip", on_chip=True)
SCHEDULES = {schedule.name: schedule for schedule in (EMITTED, ON_CHIP)}


@dataclass(frozen=True)
class Assumed:
    """The blocks beside the engine in the schedules that are not rendered yet.

    attention_macs  multiply-adds in a cycle, for scores and for values
    attention_use   share of them that is busy
    kv_bits         bits of a cached key or value
    kv_ports        memory ports that the cache is spread over
    head            "lut": the same engine, in slices of its widest linear; "int8" or "bf16":
                    weights streamed over all ports into multipliers; "none": not on the board
    """

    attention_macs: int = 512
    attention_use: float = 0.8
    kv_bits: int = 16
    kv_ports: int = 16
    head: str = "lut"

    def __post_init__(self) -> None:
        sizes = ("attention_macs", "attention_use", "kv_bits", "kv_ports")
        _check("assumed blocks", dataclasses.asdict(self), sizes)
        if self.attention_use > 1:
            raise ConfigError(
                f"assumed blocks: attention_use is {self.attention_use}; it must be at most 1"
            )
        if self.head not in HEADS:
            raise ConfigError(
                f"assumed blocks: head is {self.head!r}; choose one of {', '.join(HEADS)}"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Assumed:
        reject_unknown("assumed blocks", values, {f.name for f in dataclasses.fields(cls)})
        return cls(**values)


ASSUMED = Assumed()
