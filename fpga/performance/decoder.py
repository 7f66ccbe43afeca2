"""A whole model on a board: prefill and decode through engine, attention, norms and head.

The LUT linear engine is modelled from its own configuration, the float steps as fpga/performance/
blocks.py says. How they follow one another is the `Schedule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fpga.design import EngineDesign, LayerKind
from fpga.device import Device
from fpga.performance.blocks import AssumedBlocks, Blocks, LibraryBlocks
from fpga.performance.designs import HEAD
from fpga.performance.engine import Call, Engine
from fpga.performance.memory import MemorySystem
from fpga.performance.quantity import Quantity, given, total
from fpga.performance.timing import (
    ASSUMED_DECODER,
    ASSUMED_EFFICIENCY,
    ASSUMED_TIMING,
    EMITTED,
    DecoderConfig,
    MemoryEfficiency,
    Schedule,
    Timing,
)
from lutllm.model_config import ModelConfig

#: Bytes of a weight of a head that is not a LUT linear.
HEAD_BYTES = {"int8": 1, "bf16": 2}


@dataclass(frozen=True)
class Phase:
    """Prefill of a prompt, or one decode step, in cycles of the kernel.

    calls      the calls of one layer, averaged over layers, by kind (of the first chunk)
    parts      cycles of the whole phase by what they go to; they add up to `cycles`
    bytes      over the memory ports
    """

    name: str
    cycles: Quantity
    ms: Quantity
    parts: dict[str, Quantity]
    calls: tuple[Call, ...]
    bytes: Quantity

    @property
    def bound(self) -> str:
        """The part that takes most."""
        return max(self.parts, key=lambda name: self.parts[name].value)


@dataclass
class _Use:
    """A call, how many a layer has, in how many chunks of a phase."""

    call: Call
    design: EngineDesign
    share: float
    chunks: int = 0


@dataclass(frozen=True)
class Decoder:
    """A model in a design on a board."""

    model: ModelConfig
    designs: Sequence[EngineDesign]
    device: Device
    clock_mhz: float
    config: DecoderConfig = ASSUMED_DECODER
    schedule: Schedule = EMITTED
    timing: Timing = ASSUMED_TIMING
    efficiency: MemoryEfficiency = ASSUMED_EFFICIENCY

    @cached_property
    def engine(self) -> Engine:
        axi_bits = max(design.config.axi_bits for design in self.designs)
        memory = MemorySystem(self.device, self.clock_mhz, axi_bits, self.efficiency)
        lanes = self.config.vector_lanes if self.schedule.on_chip else 0
        return Engine(self.designs, memory, self.timing, self.schedule, lanes)

    @property
    def chunk(self) -> int:
        """Tokens that a prefill call takes."""
        return min(design.config.max_tokens for design in self.designs)

    @cached_property
    def layers(self) -> Quantity:
        return given("layers", self.model.num_hidden_layers)

    @cached_property
    def linears(self) -> list[tuple[EngineDesign, LayerKind, float]]:
        """Kinds in the order they run, with how many a layer has on average."""
        layers = self.model.num_hidden_layers
        found = [
            (design, kind, len(kind.names) / layers)
            for design in self.designs
            for kind in design.kinds
            if kind.name != HEAD
        ]
        order = [shape.name.rsplit(".", 1)[-1] for shape in self.model.layer_linears(0)]
        return sorted(found, key=lambda item: order.index(item[1].name.split("_v")[0]))

    @cached_property
    def blocks(self) -> Blocks:
        """The float steps beside the engine."""
        memory = self.engine.memory
        if self.schedule.on_chip:
            return AssumedBlocks(self.model, self.config, memory, self.device)
        return LibraryBlocks(self.model, self.config, memory, self.timing)

    # Head --------------------------------------------------------------------------------------

    @cached_property
    def head_call(self) -> Call:
        """The call of one slice of a head that is a LUT linear."""
        design = self.designs[0]
        kind = next(kind for kind in design.kinds if kind.name == HEAD)
        return self.engine.best_call(design, kind, 1)

    @cached_property
    def _slices(self) -> Quantity:
        kind = next(kind for kind in self.designs[0].kinds if kind.name == HEAD)
        return given("slices", len(kind.names))

    @cached_property
    def head(self) -> Quantity:
        """Logits of one token."""
        memory = self.engine.memory
        if self.config.head == "none":
            return given("head", 0, "cycles")
        if self.config.head == "lut":
            return (self._slices * self.head_call.cycles).named("head", "cycles")
        beats = self.head_bytes / given("beat_bytes", memory.axi_bits // 8, "B")
        ports = given("memory_ports", self.device.memory_ports)
        return (beats * memory.beat_cycles / (ports * memory.streamed)).named("head", "cycles")

    @cached_property
    def head_bytes(self) -> Quantity:
        """Bytes read for the logits of one token."""
        if self.config.head == "lut":
            size = self._slices * self._call_bytes(self.designs[0], self.head_call)
        else:
            weight = given("bytes_per_weight", HEAD_BYTES.get(self.config.head, 0), "B")
            vocab = given("vocab_size", self.model.vocab_size)
            size = vocab * given("hidden_size", self.model.hidden_size) * weight
        return size.named("head_bytes", "B")

    # Phases ------------------------------------------------------------------------------------

    def decode(self, context: int) -> Phase:
        """One token, the last of `context` positions."""
        return self._phase("decode", [(1, context)])

    def prefill(self, prompt: int) -> Phase:
        """A prompt, up to the logits of its last token."""
        ends = range(self.chunk, prompt + self.chunk, self.chunk)
        chunks = [(min(end, prompt) - end + self.chunk, min(end, prompt)) for end in ends]
        return self._phase("prefill", chunks)

    def _phase(self, name: str, chunks: list[tuple[int, int]]) -> Phase:
        """chunks: (tokens, positions of the cache after them) of every pass over the layers."""
        parts: dict[str, list[Quantity]] = {}
        sizes: list[Quantity] = []
        uses: dict[int, _Use] = {}
        for tokens, context in chunks:
            attention, vector = self.blocks.attention(tokens, context), self.blocks.vector(tokens)
            parts.setdefault("attention", []).append(self.layers * attention)
            parts.setdefault("norms and gating", []).append(self.layers * vector)
            kv = (given("context", context) + given("tokens", tokens)) * self.blocks.kv_bytes
            sizes.append(self.layers * kv)
            for design, kind, share in self.linears:
                call = self._call(design, kind, tokens, attention)
                uses.setdefault(id(call), _Use(call, design, share)).chunks += 1
        for use in uses.values():
            call, count = use.call, self._count(use)
            parts.setdefault(call.stream_bound, []).append(count * call.stream)
            parts.setdefault("serial gaps", []).append(count * call.serial)
            sizes.append(count * self._call_bytes(use.design, call))
        calls = [use.call for use in uses.values()][: len(self.linears)]
        if self.head.value:
            parts["head"] = [self.head]
            sizes.append(self.head_bytes)
        named = {
            key: total(values).named(key.replace(" ", "_"), "cycles")
            for key, values in parts.items()
        }
        cycles = total(named.values()).named(f"{name}_cycles", "cycles")
        clock = given("clock_mhz", self.clock_mhz, "MHz")
        ms = (cycles / (1000 * clock)).named(f"{name}_ms", "ms")
        size = total(sizes).named(f"{name}_bytes", "B")
        return Phase(name, cycles, ms, named, tuple(calls), size)

    def _count(self, use: _Use) -> Quantity:
        """Calls of one kind and size in a phase."""
        count = self.layers
        if use.share != 1:
            count = count * given("per_layer", use.share)
        return count * given("chunks", use.chunks) if use.chunks > 1 else count

    def _call(
        self, design: EngineDesign, kind: LayerKind, tokens: int, attention: Quantity
    ) -> Call:
        """The call of a linear; in decode the output projection prefetches during attention."""
        if tokens == 1:
            before = attention if kind.name.startswith("o_proj") else None
            return self.engine.best_call(design, kind, tokens, before)
        key = (design.name, kind.name, tokens)
        if key not in self._calls:
            self._calls[key] = self.engine.best_call(design, kind, tokens)
        return self._calls[key]

    @cached_property
    def _calls(self) -> dict[tuple[str, str, int], Call]:
        return {}

    def _call_bytes(self, design: EngineDesign, call: Call) -> Quantity:
        counts = {"channel": design.config.channels, "centroids": design.centroid_ports}
        return total(
            size * given(f"{name}_ports", counts[name]) if name in counts else size
            for name, size in call.bytes.items()
        ).named(f"{call.name}_bytes", "B")
