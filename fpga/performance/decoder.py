"""A whole model on a board: prefill and decode through the engines and the steps between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fpga.decoder_design import PROJECTIONS, DecoderDesign
from fpga.design import EngineDesign, LayerKind
from fpga.device import Device
from fpga.performance.blocks import Blocks
from fpga.performance.engine import Call, Drain, Engine
from fpga.performance.memory import MemorySystem, port_counts
from fpga.performance.quantity import Quantity, given, maximum, total
from fpga.performance.run import Run
from fpga.performance.timing import (
    ASSUMED_EFFICIENCY,
    ASSUMED_TIMING,
    MemoryEfficiency,
    Timing,
)
from lutllm.config import HEAD_LINEAR
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
    """A decoder kernel on a board."""

    design: DecoderDesign
    device: Device
    clock_mhz: float
    timing: Timing = ASSUMED_TIMING
    efficiency: MemoryEfficiency = ASSUMED_EFFICIENCY

    @property
    def model(self) -> ModelConfig:
        return self.design.model

    @cached_property
    def engine(self) -> Engine:
        memory = MemorySystem(self.device, self.clock_mhz, self.design.axi_bits, self.efficiency)
        model = self.model
        sections = {
            "qkv_proj": model.head_dim,
            "o_proj": model.hidden_size,
            "gate_up_proj": model.intermediate_size,
            "down_proj": model.hidden_size,
            HEAD_LINEAR: self.design.slice_width,
        }
        lanes = self.design.config.vector_lanes
        return Engine(self.design.engines, memory, self.timing, lanes, sections)

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
            for engine in self.design.engines
            for kind in engine.kinds
            if kind.name != HEAD_LINEAR
        ]
        return sorted(found, key=lambda item: PROJECTIONS.index(_projection(item[1])))

    @cached_property
    def blocks(self) -> Blocks:
        """The steps between two runs of an engine."""
        return Blocks(self.design, self.engine.memory, self.timing)

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
            qkv, o, gate_up, down = (self._step(p, tokens, context) for p in PROJECTIONS)
            last = blocks.added(tokens, self._drain(PROJECTIONS[-1]))
            steps = blocks.embed(tokens) + self.layers * (qkv + gate_up + down) + last
            parts.setdefault("attention", []).append(self.layers * o)
            parts.setdefault("norms and gating", []).append(steps)
            kv = (given("context", context) + given("tokens", tokens)) * blocks.kv_bytes
            sizes.append(self.layers * kv)
            for engine, kind, share in self.linears:
                call = self._call(engine, kind, tokens, context)
                uses.setdefault(id(call), _Use(call, engine, share)).chunks += 1
        for use in uses.values():
            call, count = use.call, self._count(use)
            parts.setdefault(call.stream_bound, []).append(count * call.stream)
            parts.setdefault("serial gaps", []).append(count * call.fill)
            sizes.append(count * self._call_bytes(use.engine, call))
        parts["head"] = [self._head]
        sizes += [blocks.head_bytes, *self._slice_bytes]
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
        """Logits of a token and the choice among them."""
        blocks = self.blocks
        if not self.design.screened:
            return (blocks.normed() + blocks.head()).named("head", "cycles")
        slices = self._slices.named("slices", "cycles")
        return (blocks.normed() + slices + blocks.screen()).named("head", "cycles")

    @cached_property
    def _slice_call(self) -> Call:
        """The call of the first slice of a LUT linear before the head."""
        engine, kind = self._slice
        blocks = self.blocks
        drained = blocks.added(1, self._drain(PROJECTIONS[-1]))
        before = (drained + blocks.normed() + self._slice_input).named("before", "cycles")
        return self.engine.call(engine, kind, 1, self._mode(engine, 1), before)

    @property
    def _slice_input(self) -> Quantity:
        """The normed vector to the engine, scaled as it comes, then rounded."""
        run = Run(*self._slice, 1, "table", lanes=self.design.config.vector_lanes)
        return 2 * run.in_words

    @property
    def _slice(self) -> tuple[EngineDesign, LayerKind]:
        return self.design.engines[self.design.slice_place[0]], self.design.slice_kind

    @property
    def _slices(self) -> Quantity:
        """All slices. Coarse logits go to memory beside them, the last when no slice is left."""
        engine, kind = self._slice
        design, call = self.design, self._slice_call
        first = self._slice_input + call.fill + call.stream
        pace = self.engine.pace(engine, kind, self._mode(engine, 1))
        rest = given("slices_after_the_first", design.slices - 1) * pace
        words = design.words(design.model.vocab_size)
        last = words - (design.slices - 1) * design.words(design.slice_width)
        written = self.blocks.logits_written
        return maximum(first + rest + written(last), first + written(words))

    @property
    def _slice_bytes(self) -> list[Quantity]:
        if not self.design.screened:
            return []
        size = self._call_bytes(self._slice[0], self._slice_call)
        return [given("slices", self.design.slices) * size]

    def _mode(self, engine: EngineDesign, tokens: int) -> str:
        """The kernel fetches rows for one token, reads tables for more."""
        if engine.online_rows:
            return "online"
        return "row_fetch" if tokens == 1 else "table"

    def _count(self, use: _Use) -> Quantity:
        """Calls of one kind and size in a phase."""
        count = self.layers
        if use.share != 1:
            count = count * given("per_layer", use.share)
        return count * given("chunks", use.chunks) if use.chunks > 1 else count

    def _call(self, engine: EngineDesign, kind: LayerKind, tokens: int, context: int) -> Call:
        """The call of a linear."""
        key = (engine.name, kind.name, tokens)
        if key in self._calls:
            return self._calls[key]
        before = self._step(_projection(kind), tokens, context)
        call = self.engine.call(engine, kind, tokens, self._mode(engine, tokens), before)
        if tokens > 1:  # the attention before it takes longer with every chunk, but reading ahead
            self._calls[key] = call  # does not
        return call

    def _step(self, projection: str, tokens: int, context: int) -> Quantity:
        """From the last look-up of the projection before this one to the last activation of this."""
        before = PROJECTIONS[PROJECTIONS.index(projection) - 1]
        blocks, drain = self.blocks, self._drain(before)
        if projection == "o_proj":
            return blocks.attention(tokens, context, drain)
        return (blocks.gate if projection == "down_proj" else blocks.norm)(tokens, drain)

    def _drain(self, projection: str) -> Drain:
        """The results of a projection."""
        engine, kind = next(
            (engine, kind) for engine, kind, _ in self.linears if _projection(kind) == projection
        )
        return self.engine.drain(engine, kind)

    @cached_property
    def _calls(self) -> dict[tuple[str, str, int], Call]:
        return {}

    def _call_bytes(self, engine: EngineDesign, call: Call) -> Quantity:
        counts = dict(zip(("channel", "centroids", "parameters"), port_counts(engine), strict=True))
        return total(
            size * given(f"{name}_ports", counts[name]) for name, size in call.bytes.items()
        ).named(f"{call.name}_bytes", "B")


def _projection(kind: LayerKind) -> str:
    """Which of PROJECTIONS a kind is; kinds of one projection are numbered."""
    return kind.name.split("_v")[0]
