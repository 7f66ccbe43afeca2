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
from fpga.performance.turns import TurnCycles, idle_cycles
from lutllm.config import HEAD_LINEAR
from lutllm.model_config import ModelConfig

#: Positions between gathering and look-up: what the streams of a channel hold.
POSITIONS_UNDER_WAY = 8
#: What a wait before a projection, or between two turns, goes to.
_PART_OF = {
    "qkv_proj": "norms and gating",
    "o_proj": "attention",
    "gate_up_proj": "norms and gating",
    "down_proj": "norms and gating",
    "serial": "serial gaps",
}


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
    """A call, how many a layer has, in how many chunks of a phase; paired: in two parts."""

    call: Call
    engine: EngineDesign
    share: float
    paired: bool
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
        """Tokens that a prefill run takes, in two parts."""
        return 2 * self.design.max_tokens

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
        return self._phase("decode", [[(1, context)]])

    def prefill(self, prompt: int) -> Phase:
        """A prompt, up to the choice of the word after it."""
        runs = []
        for first in range(0, prompt, self.chunk):
            tokens = min(self.chunk, prompt - first)
            halves = [-(-tokens // 2), tokens // 2] if tokens > self.design.max_tokens else [tokens]
            runs.append([(size, first + sum(halves[: i + 1])) for i, size in enumerate(halves)])
        return self._phase("prefill", runs, self.blocks.start())

    def _phase(
        self, name: str, runs: list[list[tuple[int, int]]], start: Quantity | None = None
    ) -> Phase:
        """runs: of every pass over the layers its parts, each (tokens, positions of the cache after
        them); start: what comes before the first."""
        blocks = self.blocks
        parts: dict[str, list[Quantity]] = {}
        if start is not None:
            parts["norms and gating"] = [start]
        sizes: list[Quantity] = []
        uses: dict[int, _Use] = {}
        shown: list[Call] = []
        for run in runs:
            waits = self._waits(run)
            for name_of_wait, wait in waits.items():
                parts.setdefault(_PART_OF[name_of_wait], []).append(self.layers * wait)
            for tokens, context in run:
                parts["norms and gating"].append(blocks.embed(tokens))
                kv = (given("context", context) + given("tokens", tokens)) * blocks.kv_bytes
                sizes.append(self.layers * kv)
                for engine, kind, share in self.linears:
                    call = self._call(engine, kind, tokens, context, len(run) > 1)
                    uses.setdefault(id(call), _Use(call, engine, share, len(run) > 1)).chunks += 1
                    if len(shown) < len(self.linears):
                        shown.append(call.after(waits[_projection(kind)]))
            last = blocks.added(run[-1][0], self._drain(PROJECTIONS[-1]))
            parts["norms and gating"].append(last)
        for use in uses.values():
            call, count = use.call, self._count(use)
            parts.setdefault(call.stream_bound, []).append(count * call.stream)
            if not use.paired:
                parts.setdefault("serial gaps", []).append(count * call.fill)
            sizes.append(count * self._call_bytes(use.engine, call))
        parts["head"] = [self._head]
        sizes += [blocks.head_bytes, *self._slice_bytes]
        named = {
            key: total(values).named(key.replace(" ", "_"), "cycles")
            for key, values in parts.items()
        }
        cycles = total(named.values()).named(f"{name}_cycles", "cycles")
        clock = given("clock_mhz", self.clock_mhz, "MHz")
        ms = (cycles / (1000 * clock)).named(f"{name}_ms", "ms")
        size = total(sizes).named(f"{name}_bytes", "B")
        return Phase(name, cycles, ms, named, tuple(shown), size)

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
        """The normed vector to the engine, rotated and scaled as it comes, then rounded."""
        run = Run(*self._slice, 1, "table", lanes=self.design.config.vector_lanes)
        return 2 * run.in_words + run.rotation_delay

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

    def _call(
        self, engine: EngineDesign, kind: LayerKind, tokens: int, context: int, paired: bool
    ) -> Call:
        """The call of a linear; paired: the other part of the run has its turns between."""
        key = (engine.name, kind.name, tokens, paired)
        if key in self._calls:
            return self._calls[key]
        mode = self._mode(engine, tokens)
        if paired:
            call = self.engine.turn(engine, kind, tokens, mode)
        else:
            before = self._step(_projection(kind), tokens, context)
            call = self.engine.call(engine, kind, tokens, mode, before)
        if tokens > 1:  # the attention before it takes longer with every chunk, but reading ahead
            self._calls[key] = call  # does not
        return call

    def _waits(self, run: list[tuple[int, int]]) -> dict[str, Quantity]:
        """Cycles of a layer in which nothing is looked up, by the projection that waits for its
        inputs; of a run in two parts also those between turns ("serial")."""
        if len(run) == 1:
            return {p: self._step(p, *run[0]) for p in PROJECTIONS}
        turns = {
            (projection, part): self._turn(projection, *of_part)
            for projection in PROJECTIONS
            for part, of_part in enumerate(run)
        }
        layers = self.model.num_hidden_layers
        return {
            name: given(f"wait_{name}", cycles / layers, "cycles", "turns.py")
            for name, cycles in idle_cycles(layers, turns).items()
        }

    def _turn(self, projection: str, tokens: int, context: int) -> TurnCycles:
        """A turn of a projection, of its kinds on average."""
        store = fill = stream = lead = 0.0
        for engine, kind, share in self.linears:
            if _projection(kind) != projection:
                continue
            call = self._call(engine, kind, tokens, context, True)
            store += share * call.step.value
            fill += share * call.fill.value
            stream += share * call.stream.value
            last_round = call.stream.value / engine.rounds(kind)
            lead += share * last_round * min(1, POSITIONS_UNDER_WAY / tokens)
        results = self._drain(projection)
        drain = max(0.0, tokens * results.pace.value - results.held.value)
        step = self._step(projection, tokens, context).value
        return TurnCycles(step, store, lead, fill, stream, drain)

    def _step(self, projection: str, tokens: int, context: int) -> Quantity:
        """From the last look-up of the projection before this one to its last activation."""
        blocks, drain = self.blocks, self._drain(_before(projection))
        if projection == "o_proj":
            step = blocks.attention(tokens, context, drain)
        elif projection == "down_proj":
            step = blocks.gate(tokens, drain)
        else:
            step = blocks.norm(tokens, drain)
        engine, kind = self._linear(projection)
        if not kind.rotation:
            return step
        run = Run(engine, kind, tokens, "table", lanes=self.design.config.vector_lanes)
        return (step + run.rotation_delay).named("step", "cycles")

    def _linear(self, projection: str) -> tuple[EngineDesign, LayerKind]:
        """The first kind of a projection, and its engine."""
        return next(
            (engine, kind) for engine, kind, _ in self.linears if _projection(kind) == projection
        )

    def _drain(self, projection: str) -> Drain:
        """The results of a projection."""
        return self.engine.drain(*self._linear(projection))

    @cached_property
    def _calls(self) -> dict[tuple[str, str, int, bool], Call]:
        return {}

    def _call_bytes(self, engine: EngineDesign, call: Call) -> Quantity:
        counts = dict(zip(("channel", "centroids", "parameters"), port_counts(engine), strict=True))
        return total(
            size * given(f"{name}_ports", counts[name]) for name, size in call.bytes.items()
        ).named(f"{call.name}_bytes", "B")


def _before(projection: str) -> str:
    """The projection whose results lead to the inputs of this one."""
    return PROJECTIONS[PROJECTIONS.index(projection) - 1]


def _projection(kind: LayerKind) -> str:
    """Which of PROJECTIONS a kind is; kinds of one projection are numbered."""
    return kind.name.split("_v")[0]
