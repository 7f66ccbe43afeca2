"""A whole model on a board: prefill and decode through the engines and the steps between them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from fpga.decoder_design import PROJECTIONS, DecoderDesign
from fpga.design import EngineDesign, LayerKind
from fpga.device import Device
from fpga.performance.blocks import AssumedBlocks, Blocks, EmittedBlocks
from fpga.performance.designs import HEAD, with_head
from fpga.performance.engine import Call, Engine
from fpga.performance.memory import MemorySystem
from fpga.performance.quantity import Quantity, given, total
from fpga.performance.timing import (
    ASSUMED,
    ASSUMED_EFFICIENCY,
    ASSUMED_TIMING,
    EMITTED,
    Assumed,
    MemoryEfficiency,
    Schedule,
    Timing,
)
from lutllm.model_config import ModelConfig


@dataclass(frozen=True)
class Phase:
    """Prefill of a prompt, or one decode step, in cycles of the kernel.

    calls  the engine calls of one layer, by kind (of the first chunk)
    parts  cycles of the whole phase by what they go to; they add up to `cycles`
    bytes  over the memory ports
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
    engine: EngineDesign
    share: float
    chunks: int = 0


@dataclass(frozen=True)
class Decoder:
    """A decoder kernel on a board, under a schedule."""

    design: DecoderDesign
    device: Device
    clock_mhz: float
    schedule: Schedule = EMITTED
    assumed: Assumed = ASSUMED
    timing: Timing = ASSUMED_TIMING
    efficiency: MemoryEfficiency = ASSUMED_EFFICIENCY

    @property
    def model(self) -> ModelConfig:
        return self.design.model

    @property
    def lut_head(self) -> bool:
        """The head runs on the engine."""
        return self.schedule.on_chip and self.assumed.head == "lut"

    @cached_property
    def placed(self) -> DecoderDesign:
        """The design as it lies in memory: with the head among the engine's linears, if it is."""
        if not self.lut_head:
            return self.design
        engines = with_head(self.model, self.design.engines)
        return dataclasses.replace(self.design, engines=tuple(engines))

    @cached_property
    def engine(self) -> Engine:
        memory = MemorySystem(self.device, self.clock_mhz, self.design.axi_bits, self.efficiency)
        model = self.model
        sections = {
            "qkv_proj": model.head_dim,
            "o_proj": model.hidden_size,
            "gate_up_proj": model.intermediate_size,
            "down_proj": model.hidden_size,
        }
        lanes = self.design.config.vector_lanes
        engines = self.placed.engines
        return Engine(engines, memory, self.timing, lanes, sections)

    @property
    def chunk(self) -> int:
        """Tokens that a prefill run takes."""
        return self.design.max_tokens

    @cached_property
    def layers(self) -> Quantity:
        return given("layers", self.model.num_hidden_layers)

    @cached_property
    def linears(self) -> list[tuple[EngineDesign, LayerKind, float]]:
        """Kinds in the order they run, with how many a layer has on average."""
        layers = self.model.num_hidden_layers
        found = [
            (engine, kind, len(kind.names) / layers)
            for engine in self.placed.engines
            for kind in engine.kinds
            if kind.name != HEAD
        ]
        return sorted(found, key=lambda item: PROJECTIONS.index(_projection(item[1])))

    @cached_property
    def blocks(self) -> Blocks:
        """The steps between two runs of an engine."""
        memory = self.engine.memory
        if not self.schedule.on_chip:
            return EmittedBlocks(self.design, memory, self.timing)
        call, slices = self._head_call() if self.lut_head else (None, 0)
        size = None if call is None else self._call_bytes(self.placed.engines[0], call)
        return AssumedBlocks(
            self.design, memory, self.timing, self.assumed, self.device, call, slices, size
        )

    def _head_call(self) -> tuple[Call, int]:
        """The call of a slice of the head, and how many slices there are."""
        engine = self.placed.engines[0]
        kind = next(kind for kind in engine.kinds if kind.name == HEAD)
        return self.engine.best_call(engine, kind, 1), len(kind.names)

    # Phases ------------------------------------------------------------------------------------

    def decode(self, context: int) -> Phase:
        """One token, the last of `context` positions."""
        return self._phase("decode", [(1, context)])

    def prefill(self, prompt: int) -> Phase:
        """A prompt, up to the choice of the word after it."""
        ends = range(self.chunk, prompt + self.chunk, self.chunk)
        chunks = [(min(end, prompt) - end + self.chunk, min(end, prompt)) for end in ends]
        return self._phase("prefill", chunks, self.blocks.start())

    def _phase(
        self, name: str, chunks: list[tuple[int, int]], start: Quantity | None = None
    ) -> Phase:
        """chunks: (tokens, positions of the cache after them) of every pass over the layers;
        start: what comes before the first."""
        blocks = self.blocks
        parts: dict[str, list[Quantity]] = {}
        if start is not None:
            parts["norms and gating"] = [start]
        sizes: list[Quantity] = []
        uses: dict[int, _Use] = {}
        for tokens, context in chunks:
            attention = blocks.attention(tokens, context)
            steps = blocks.embed(tokens) + self.layers * blocks.vector(tokens)
            parts.setdefault("attention", []).append(self.layers * attention)
            parts.setdefault("norms and gating", []).append(steps)
            kv = (given("context", context) + given("tokens", tokens)) * blocks.kv_bytes
            sizes.append(self.layers * kv)
            for engine, kind, share in self.linears:
                call = self._call(engine, kind, tokens, attention)
                uses.setdefault(id(call), _Use(call, engine, share)).chunks += 1
        for use in uses.values():
            call, count = use.call, self._count(use)
            parts.setdefault(call.stream_bound, []).append(count * call.stream)
            parts.setdefault("serial gaps", []).append(count * call.serial)
            sizes.append(count * self._call_bytes(use.engine, call))
        if self._head.value:
            parts["head"] = [self._head]
            sizes.append(blocks.head_bytes)
        calls = tuple(use.call for use in uses.values())[: len(self.linears)]
        named = {
            key: total(values).named(key.replace(" ", "_"), "cycles")
            for key, values in parts.items()
        }
        cycles = total(named.values()).named(f"{name}_cycles", "cycles")
        clock = given("clock_mhz", self.clock_mhz, "MHz")
        ms = (cycles / (1000 * clock)).named(f"{name}_ms", "ms")
        size = total(sizes).named(f"{name}_bytes", "B")
        return Phase(name, cycles, ms, named, calls, size)

    @cached_property
    def _head(self) -> Quantity:
        if self.schedule.on_chip and self.assumed.head == "none":
            return given("head", 0, "cycles")
        return self.blocks.head()

    def _count(self, use: _Use) -> Quantity:
        """Calls of one kind and size in a phase."""
        count = self.layers
        if use.share != 1:
            count = count * given("per_layer", use.share)
        return count * given("chunks", use.chunks) if use.chunks > 1 else count

    def _call(
        self, engine: EngineDesign, kind: LayerKind, tokens: int, attention: Quantity
    ) -> Call:
        """The call of a linear. The kernel fetches rows for one token, reads tables for more."""
        key = (engine.name, kind.name, tokens)
        if key in self._calls:
            return self._calls[key]
        before = self._before(_projection(kind), tokens, attention)
        if self.schedule.on_chip:
            call = self.engine.best_call(engine, kind, tokens, before)
        else:
            mode = "row_fetch" if tokens == 1 else "table"
            mode = "online" if engine.online_rows else mode
            call = self.engine.call(engine, kind, tokens, mode, before)
        if tokens > 1:  # the attention before it takes longer with every chunk, but reading ahead
            self._calls[key] = call  # does not
        return call

    def _before(self, projection: str, tokens: int, attention: Quantity) -> Quantity:
        """From the last look-up of the projection before this one to the first activation of this:
        results drained, and the step between the two."""
        at = PROJECTIONS.index(projection)
        before = PROJECTIONS[at - 1]
        engine, kind = next(
            (engine, kind) for engine, kind, _ in self.linears if _projection(kind) == before
        )
        blocks = self.blocks
        norm, gate = blocks.norm(tokens), blocks.gate(tokens)
        step = (norm, attention, norm, gate)[at]
        return (self.engine.drain(engine, kind, tokens) + step).named("before", "cycles")

    @cached_property
    def _calls(self) -> dict[tuple[str, str, int], Call]:
        return {}

    def _call_bytes(self, engine: EngineDesign, call: Call) -> Quantity:
        counts = {"channel": engine.config.channels, "centroids": engine.centroid_ports}
        return total(
            size * given(f"{name}_ports", counts[name]) if name in counts else size
            for name, size in call.bytes.items()
        ).named(f"{call.name}_bytes", "B")


def _projection(kind: LayerKind) -> str:
    """Which of PROJECTIONS a kind is; kinds of one projection are numbered."""
    return kind.name.split("_v")[0]
