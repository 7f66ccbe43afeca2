"""The estimate of a model in a design on a board: speed, size, fit, power, and what bounds it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fpga.decoder_design import DecoderDesign
from fpga.design import EngineConfig
from fpga.device import Device
from fpga.performance.decoder import Decoder, Phase
from fpga.performance.memory import port_bytes
from fpga.performance.power import Power, power
from fpga.performance.quantity import Quantity, value_of
from fpga.performance.resources import (
    NAMES,
    EngineResources,
    Resources,
    UnitCosts,
    add_up,
    too_large,
    utilisation,
)
from fpga.performance.timing import (
    ASSUMED_EFFICIENCY,
    ASSUMED_TIMING,
    MemoryEfficiency,
    Timing,
)
from lutllm.errors import ConfigError
from lutllm.model_config import ModelConfig

#: Above this share of a resource a design rarely closes timing.
COMFORTABLE = 0.8


def costs_on(device: Device) -> UnitCosts:
    """Unit costs of the part: Versal DSPs do a float32 operation each, older ones need three."""
    return UnitCosts() if device.part.startswith("xcv") else UnitCosts(float_dsp=3)


@dataclass(frozen=True)
class Setting:
    """What an estimate depends on besides the design."""

    device: Device
    timing: Timing = ASSUMED_TIMING
    efficiency: MemoryEfficiency = ASSUMED_EFFICIENCY
    clock_mhz: float = 0.0  # 0 = that of the device

    def __post_init__(self) -> None:
        self.device.at_clock(self.clock_mhz)  # refuses what the board cannot have

    @property
    def clock(self) -> float:
        return self.clock_mhz or self.device.clock_mhz


@dataclass(frozen=True)
class Estimate:
    """An estimate, computed part by part as it is asked for.

    design   the decoder kernel, as an export plans it
    prompt   tokens of the prefill
    context  positions in the cache at the decode step
    """

    design: DecoderDesign
    setting: Setting
    prompt: int = 128
    context: int = 160

    def __post_init__(self) -> None:
        for name, value in (("prompt", self.prompt), ("context", self.context)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
            if value > self.design.context:
                raise ConfigError(
                    f"{name} is {value}, but the caches of the design hold {self.design.context} "
                    "positions; give the design a longer context"
                )
        device = self.setting.device
        if self.design.axi_bits > device.port_bits:
            raise ConfigError(
                f"axi_bits is {self.design.axi_bits}; a port of {device.name} has "
                f"{device.port_bits} bits"
            )

    @property
    def model(self) -> ModelConfig:
        return self.design.model

    @property
    def engine(self) -> EngineConfig:
        return self.design.engines[0].config

    @cached_property
    def decoder(self) -> Decoder:
        s = self.setting
        return Decoder(self.design, s.device, s.clock, s.timing, s.efficiency)

    @cached_property
    def decode(self) -> Phase:
        return self.decoder.decode(self.context)

    @cached_property
    def prefill(self) -> Phase:
        return self.decoder.prefill(self.prompt)

    @cached_property
    def tokens_per_s(self) -> Quantity:
        return (1000 / self.decode.ms).named("tokens_per_s", "tokens/s")

    @cached_property
    def gb_per_s(self) -> Quantity:
        """Memory traffic of decode."""
        return (self.decode.bytes / (1e6 * self.decode.ms)).named("gb_per_s", "GB/s")

    # Size --------------------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> dict[str, Resources]:
        """Resources by block."""
        costs = costs_on(self.setting.device)
        engines = self.design.engines
        lanes = self.design.config.vector_lanes
        out: dict[str, Resources] = {}
        for engine in engines:
            label = "" if len(engines) == 1 else f"{engine.name}."
            for block in EngineResources(engine, costs, lanes).blocks():
                out[f"{label}{block.function}"] = block.all
        return out | self.decoder.blocks.resources(costs)

    @cached_property
    def resources(self) -> Resources:
        return add_up(self.blocks)

    # Memory ------------------------------------------------------------------------------------

    @cached_property
    def image_bytes(self) -> list[int]:
        """Bytes behind each memory port."""
        return port_bytes(self.design, self.setting.device.memory_ports)

    @property
    def kv_bytes_per_token(self) -> int:
        return int(self.model.num_hidden_layers * self.decoder.blocks.kv_bytes.value)

    @property
    def memory_bytes(self) -> int:
        """Everything in the board's memory, the caches for the design's context included."""
        return sum(self.image_bytes)

    @property
    def max_context(self) -> int:
        """Positions for which the caches would fill the memory, or their regions."""
        device, per_token = self.setting.device, self.kv_bytes_per_token
        caches = self.design.context * per_token
        rest = device.capacity_bytes - self.memory_bytes + caches
        ports = min(2 * self.design.config.kv_ports, device.memory_ports)
        return max(0, min(rest, ports * device.region_bytes) // per_token)

    # Verdict -----------------------------------------------------------------------------------

    @cached_property
    def problems(self) -> list[str]:
        """Why the design does not fit, in words; empty when it does."""
        device = self.setting.device
        out = too_large(self.resources, device)
        for engine in self.design.engines:
            if engine.config.channels > device.memory_ports:
                out.append(
                    f"channels: {engine.config.channels}, but {device.name} has "
                    f"{device.memory_ports} memory ports; use fewer channels"
                )
        if self.memory_bytes > device.capacity_bytes:
            out.append(
                f"memory: {self.memory_bytes / 1e9:.1f} GB of images and caches; "
                f"{device.name} has {device.capacity_bytes / 1e9:.1f} GB; rows computed on line "
                "(scheme weight), fewer index bits or a shorter context take less"
            )
        elif max(self.image_bytes) > device.region_bytes:
            out.append(
                f"memory: {max(self.image_bytes) >> 20} MiB behind one port, a region has "
                f"{device.region_bytes >> 20} MiB; use more channels, vocabulary or "
                "key and value ports, a shorter context or fewer bits"
            )
        return out

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def warnings(self) -> list[str]:
        """What fits on paper but seldom on the board."""
        shares = utilisation(self.resources, self.setting.device)
        return [
            f"{name}: {share:.0%} used; above {COMFORTABLE:.0%} a design rarely meets its clock"
            for name, share in shares.items()
            if COMFORTABLE < share <= 1
        ]

    @cached_property
    def power(self) -> Power:
        return power(self.resources, self.setting.clock, self.gb_per_s)

    @cached_property
    def joule_per_token(self) -> Quantity:
        return self.power.energy_per_token(self.decode.ms)

    def kv_growth_ms(self) -> float:
        """Milliseconds that 1024 more positions add to a decode step."""
        later = self.decoder.decode(self.context + 1024)
        return later.ms.value - self.decode.ms.value

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, the keys of `lutllm estimate --json`."""
        shares = utilisation(self.resources, self.setting.device)
        return {
            "device": self.setting.device.name,
            "clock_mhz": self.setting.clock,
            "head": self._head_name,
            "prompt_tokens": self.prompt,
            "context": self.context,
            "decode_ms_per_token": self.decode.ms.value,
            "prefill_ms": self.prefill.ms.value,
            "tokens_per_s": self.tokens_per_s.value,
            "bottleneck": self.decode.bound,
            "prefill_bottleneck": self.prefill.bound,
            "decode_parts_ms": self._parts(self.decode),
            "prefill_parts_ms": self._parts(self.prefill),
            "decode_ms_per_1024_positions": self.kv_growth_ms(),
            "decode_bytes": round(self.decode.bytes.value),
            "decode_gb_per_s": self.gb_per_s.value,
            "linears": [_call_dict(a, b) for a, b in self._call_pairs()],
            "resources": self.resources.to_dict(),
            "utilisation": {name: round(shares[name], 4) for name in NAMES},
            "blocks": {name: block.to_dict() for name, block in self.blocks.items()},
            "memory_bytes": self.memory_bytes,
            "memory_capacity_bytes": self.setting.device.capacity_bytes,
            "port_bytes": max(self.image_bytes),
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "max_context": self.max_context,
            "power_w": self.power.watts.value,
            "power_parts_w": {name: part.value for name, part in self.power.parts.items()},
            "joule_per_token": self.joule_per_token.value,
            "fits": self.fits,
            "problems": self.problems,
            "warnings": self.warnings,
            "engine": self.engine.to_dict(),
            "decoder": dataclasses.asdict(self.design.config),
        }

    @property
    def _head_name(self) -> str:
        rows = f"{self.design.head_kind.lower()} rows"
        return f"{rows} behind a LUT linear" if self.design.screened else rows

    def _parts(self, phase: Phase) -> dict[str, float]:
        per_ms = 1000 * self.setting.clock
        return {name: part.value / per_ms for name, part in phase.parts.items()}

    def _call_pairs(self) -> list[tuple[Any, Any]]:
        return list(zip(self.decode.calls, self.prefill.calls, strict=True))


def _call_dict(decode: Any, prefill: Any) -> dict[str, Any]:
    """One projection: cycles of its calls, what bounds them, bytes over each kind of port."""
    return {
        "name": decode.name,
        **{
            phase: {
                "mode": call.mode,
                "bound": call.bound,
                **{
                    part: round(value_of(getattr(call, part)))
                    for part in ("cycles", "step", "stream", "fill")
                },
                "stream_parts": {n: round(q.value) for n, q in call.stream_parts.items()},
                "bytes_per_port": {n: round(q.value) for n, q in call.bytes.items()},
            }
            for phase, call in (("decode", decode), ("prefill", prefill))
        },
    }
