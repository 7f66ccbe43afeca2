"""Memory ports: how fast a beat moves, which port carries what, whether everything fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from fpga.decoder_design import DecoderDesign
from fpga.design import EngineDesign
from fpga.device import Device
from fpga.performance.quantity import Quantity, given, maximum, total
from fpga.performance.timing import ASSUMED_EFFICIENCY, MemoryEfficiency


@dataclass(frozen=True)
class MemorySystem:
    """The external memory as kernels at `clock_mhz` with beats of `axi_bits` see it."""

    device: Device
    clock_mhz: float
    axi_bits: int
    efficiency: MemoryEfficiency = ASSUMED_EFFICIENCY

    @cached_property
    def beat_cycles(self) -> Quantity:
        """Kernel cycles that a port needs for a beat; 1 where the kernel is the slower side."""
        return maximum(1, self.port_cycles).named("beat_cycles", "cycles/beat")

    @cached_property
    def port_cycles(self) -> Quantity:
        """Cycles of a beat on the port alone, whose clock may be the faster one: two arguments that
        share it may then get more together than one."""
        clock = given("clock_mhz", self.clock_mhz, "MHz")
        width = given("axi_bytes", self.axi_bits // 8, "B")
        rate = min(
            self.device.port_bits / 8 * self.device.port_clock_mhz,
            1000 * self.device.peak_gb_per_s / self.device.memory_ports,
        )
        port = given("port_mb_per_s", rate, "MB/s", f"{self.device.name}: full rate of a port")
        return (width * clock / port).named("port_cycles", "cycles/beat")

    @cached_property
    def streamed(self) -> Quantity:
        return given("eta_streamed", self.efficiency.streamed, "", "assumed")

    @cached_property
    def fetched(self) -> Quantity:
        return given("eta_fetched", self.efficiency.fetched, "", "assumed")

    @property
    def gb_per_s(self) -> float:
        """All ports together at this clock, before efficiency (1 GB = 10^9 bytes)."""
        per_port = self.axi_bits / 8 * self.clock_mhz / 1000 / self.beat_cycles.value
        return self.device.memory_ports * per_port


def memory_arguments(channels: int, centroid_ports: int, parameter_ports: int) -> list[str]:
    """Memory arguments of an engine, without number, in the order in which they take ports."""
    counts = {"channel": channels, "centroids": centroid_ports, "parameters": parameter_ports}
    return [name for name, count in counts.items() for _ in range(count)]


def port_counts(design: EngineDesign) -> tuple[int, int, int]:
    """Channels, centroid ports, parameter ports."""
    return design.config.channels, design.centroid_ports, design.config.parameter_ports


@lru_cache(maxsize=256)
def port_groups(
    kernels: tuple[tuple[int, int, int], ...], kernel: int, ports: int
) -> frozenset[tuple[str, ...]]:
    """The different sets of arguments of one kernel that a port serves.

    kernels: `port_counts` of every kernel; arguments take `ports` ports in turn.
    """
    at = 0
    shared: dict[int, list[str]] = {}
    for i, sizes in enumerate(kernels):
        for argument in memory_arguments(*sizes):
            if i == kernel:
                shared.setdefault(at % ports, []).append(argument)
            at += 1
    return frozenset(tuple(names) for names in shared.values())


def busiest_port(
    designs: Sequence[EngineDesign],
    design: EngineDesign,
    memory: MemorySystem,
    load: Mapping[str, Quantity],
) -> Quantity:
    """Cycles of the port that takes longest. load: beats by argument of `design` without number.

    An argument moves a beat in beat_cycles; all of a port together are as fast as the port.
    """
    kernels = tuple(map(port_counts, designs))
    index = next(i for i, d in enumerate(designs) if d is design)
    times = []
    for names in port_groups(kernels, index, memory.device.memory_ports):
        beats = [load[name] for name in sorted(names) if name in load]
        if beats:
            own = maximum(*beats) * memory.beat_cycles
            times.append(maximum(own, total(beats) * memory.port_cycles))
    return max(times, key=lambda q: q.value)


def port_bytes(decoder: DecoderDesign, ports: int) -> list[int]:
    """Bytes behind each port of the decoder kernel: images, caches, prompt and logits."""
    sizes = []
    for engine in decoder.engines:
        beats = engine.image_beats()
        arguments = memory_arguments(*port_counts(engine))
        sizes += [beats[argument] * engine.beat_bytes for argument in arguments]
    for count in (decoder.image_beats() | decoder.run_beats()).values():
        sizes.append(count * decoder.beat_bytes)
    out = [0] * ports
    for i, size in enumerate(sizes):
        out[i % ports] += size
    return out
