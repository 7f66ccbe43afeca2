"""Power and energy, scaled from the published power report.

Each part of that report is divided by what causes it: clocks by registers, logic by LUTs, DSPs,
RAM by memory blocks, all times the clock; HBM and NoC by bytes. One report sets one coefficient
each, so nothing is left to check them against; they carry its activity, board and temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpga.performance.published import (
    PUBLISHED_CLOCK_MHZ,
    PUBLISHED_MEMORY_GB_PER_S,
    PUBLISHED_NETLIST,
    PUBLISHED_POWER_W,
)
from fpga.performance.quantity import Quantity, given, total
from fpga.performance.resources import Resources

_REPORT = "published power report"


@dataclass(frozen=True)
class Power:
    """Watts by cause, and all together."""

    parts: dict[str, Quantity]
    watts: Quantity

    def energy_per_token(self, ms: Quantity) -> Quantity:
        """Joule per token at `ms` milliseconds a token."""
        return (self.watts * ms / 1000).named("energy_per_token", "J")


def power(used: Resources, clock_mhz: float, gb_per_s: Quantity) -> Power:
    """Power of a design with resources `used` that moves `gb_per_s` over its memory ports."""
    clock = given("clock_mhz", clock_mhz, "MHz")
    blocks = PUBLISHED_NETLIST["bram36"] + PUBLISHED_NETLIST["uram"]
    causes = {
        "clocks": (used.ff.named("ff", "ff"), PUBLISHED_NETLIST["ff"]),
        "logic": (used.lut.named("lut", "lut"), PUBLISHED_NETLIST["lut"]),
        "dsp": (used.dsp.named("dsp", "dsp"), PUBLISHED_NETLIST["dsp"]),
        "ram": ((used.bram36 + used.uram).named("ram_blocks", "blocks"), blocks),
    }
    parts = {
        "static": given("static_w", PUBLISHED_POWER_W["static"], "W", _REPORT),
        "processor": given("processor_w", PUBLISHED_POWER_W["processor"], "W", _REPORT),
    }
    for name, (count, counted) in causes.items():
        each = PUBLISHED_POWER_W[name] / counted / PUBLISHED_CLOCK_MHZ
        unit = given(f"{name}_w_per_mhz", each, "W/MHz", _REPORT)
        parts[name] = (unit * count * clock).named(f"{name}_w", "W")
    moved = PUBLISHED_POWER_W["memory"] / PUBLISHED_MEMORY_GB_PER_S
    parts["memory"] = (given("w_per_gb_per_s", moved, "W s/GB", _REPORT) * gb_per_s).named(
        "memory_w", "W"
    )
    return Power(parts, total(parts.values()).named("power", "W"))
