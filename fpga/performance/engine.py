"""One call of a LUT linear engine, in the cycles of the kernel.

A call passes a `step` (activations in, quantized, stored for gathering) and a `stream` (all
processes of the channels run side by side; the slowest sets the pace); `fill` is what the pipelines
take to fill up, once. Results are drained behind it: beside the step of the next call in a decoder,
before the end of a call that runs alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fpga.design import EngineDesign, LayerKind
from fpga.performance.memory import MemorySystem, busiest_port
from fpga.performance.quantity import Quantity, given, maximum, minimum, total
from fpga.performance.run import Run, index_stalls, modes_of, process_cycles, shift_words
from fpga.performance.timing import ASSUMED_TIMING, Timing

#: What each part of the stream phase means to a reader who asks what bounds a design.
BOUND_OF = {
    "port": "memory",
    "bursts": "memory",
    "burst_latency": "memory",
    "plan": "memory",
    "parameters": "memory",
    "unpack": "memory",
    "read_centroids": "memory",
    "search": "search",
    "gather": "gather",
    "rows": "rows",
    "lookup": "lookup",
}


@dataclass(frozen=True)
class Call:
    """A call in cycles of the kernel; `stream_parts` by process, `bytes` by memory argument.

    step: from the last look-up before it to its last activation; of a call alone, its input and its
    results.
    """

    name: str
    mode: str
    step: Quantity
    stream_parts: dict[str, Quantity]
    stream: Quantity
    fill: Quantity
    cycles: Quantity
    bytes: dict[str, Quantity]

    def after(self, step: Quantity) -> Call:
        """The same call behind another step."""
        cycles = (step + self.fill + self.stream).named(f"{self.name}_{self.mode}", "cycles")
        return dataclasses.replace(self, step=step, cycles=cycles)

    @property
    def stream_bound(self) -> str:
        """What sets the pace of the stream phase, one of the values of BOUND_OF."""
        return BOUND_OF[max(self.stream_parts, key=lambda name: self.stream_parts[name].value)]

    @property
    def bound(self) -> str:
        gap = self.step.value + self.fill.value
        return "serial gap" if gap > self.stream.value else self.stream_bound


@dataclass(frozen=True)
class Drain:
    """Cycles in which results come from an engine: from one token to the next, and of the last; and
    those of the words that a stream holds, which the accumulators are rid of before."""

    pace: Quantity
    last: Quantity
    held: Quantity


def packing_unit(design: EngineDesign, vector_lanes: int, section: int) -> int:
    """Floats of results that a decoder packs in a cycle (decoder_steps.h packing_unit)."""
    floats = design.floats
    whole = min(design.lanes, floats * vector_lanes)
    if not (design.lanes % whole or floats * vector_lanes % whole or section % whole):
        return whole
    return 1 if design.lanes % floats or section % floats else floats


@dataclass(frozen=True)
class Engine:
    """Engines of a design on a board: what a call costs.

    designs       all engines of the kernel set, in the order in which they take memory ports
    vector_lanes  beats of activations in and out in a cycle
    sections      floats of a section of the results, by kind, where a decoder packs them for its
                  next step (decoder_steps.h pack_output); without, they are not packed
    """

    designs: Sequence[EngineDesign]
    memory: MemorySystem
    timing: Timing = ASSUMED_TIMING
    vector_lanes: int = 1
    sections: Mapping[str, int] = field(default_factory=dict)

    def call(
        self,
        design: EngineDesign,
        kind: LayerKind,
        tokens: int,
        mode: str,
        before: Quantity | None = None,
        accumulators: bool = False,
    ) -> Call:
        """A call of `kind`; before: cycles from the end of the look-ups before it to its last
        activation, in which the engine reads ahead. None: it is alone."""
        run = Run(design, kind, tokens, mode, accumulators, self.vector_lanes)
        alone = before is None
        load = self._load(run) if before is None else before
        fill = self._fill(run, load, alone)
        parts = self._stream_parts(run, (load + fill).named("gap", "cycles"))
        stream = maximum(*parts.values()).named(f"{kind.name}_stream", "cycles")
        step = (load + self._drain(run)).named("load_and_drain", "cycles") if alone else load
        cycles = (step + fill + stream).named(f"{kind.name}_{mode}", "cycles")
        return Call(kind.name, mode, step, parts, stream, fill, cycles, self._bytes(run))

    def turn(self, design: EngineDesign, kind: LayerKind, tokens: int, mode: str) -> Call:
        """A call between two of the other part of a prefill; step: its activations stored."""
        run = Run(design, kind, tokens, mode, lanes=self.vector_lanes)
        before = run.x_words + run.rotation_delay if kind.rotation else run.x_words
        return self.call(design, kind, tokens, mode, before)

    def pace(self, design: EngineDesign, kind: LayerKind, mode: str) -> Quantity:
        """Cycles from one call for a token to the next where all inputs wait: the slices of a head.

        Every process goes on by itself, so that the slowest sets the pace; accumulators give their
        results before they take the sums of the next call.
        """
        run = Run(design, kind, 1, mode, lanes=self.vector_lanes)
        parts = self._stream_parts(run, given("gap", 0, "cycles"))
        accumulate = shift_words(run) + run.sums + self._drain(run)
        return maximum(*parts.values(), accumulate).named(f"{kind.name}_pace", "cycles")

    def best_call(
        self,
        design: EngineDesign,
        kind: LayerKind,
        tokens: int,
        before: Quantity | None = None,
    ) -> Call:
        """The call in whichever mode takes fewer cycles; one token never takes a whole table."""
        modes = modes_of(design)[-1:] if tokens == 1 else modes_of(design)
        calls = [self.call(design, kind, tokens, mode, before) for mode in modes]
        return min(calls, key=lambda call: call.cycles.value)

    def drain(self, design: EngineDesign, kind: LayerKind) -> Drain:
        """The results of a token, those of the last with its padding left out."""
        run = Run(design, kind, 1, modes_of(design)[0], lanes=self.vector_lanes)
        whole = self._drain(run)
        used = given("used_share", kind.out_features / (design.subs(kind) * design.lanes))
        words = max(4, design.config.beat_fifo // self.vector_lanes)  # engine.h `words`
        held = given("words_held", words, "words") * whole / run.out_words
        return Drain(whole, (whole * used).named("last_drain", "cycles"), held)

    # Phases ------------------------------------------------------------------------------------

    def _load(self, run: Run) -> Quantity:
        """Rotate, scale and round: a token is rounded when its largest value is known. The first
        token's input scales come from memory."""
        scales = maximum(run.in_rows, run.input_widened).named("input_scales", "cycles")
        return (maximum(scales, run.rotation_delay) + run.x_words).named("load", "cycles")

    def _drain(self, run: Run) -> Quantity:
        """Words of results, or the pieces in which a decoder repacks them."""
        section = self.sections.get(run.kind.name.split("_v")[0], 0)
        if not section:
            return run.y_words.named("drain", "cycles")
        pieces = -(-run.design.lanes // packing_unit(run.design, self.vector_lanes, section))
        packed = run.t * run.subs * given("pieces_of_a_sub", pieces)
        return maximum(run.y_words, packed).named("drain", "cycles")

    def _fill(self, run: Run, load: Quantity, alone: bool) -> Quantity:
        design, timing = run.design, self.timing
        chain = given("chain_channels", design.chain_channels)
        parts: list[Quantity] = [
            given("input_depth", timing.input_depth, "cycles", "assumed"),
            given("gather_steps", design.gather_steps, "cycles"),
            given("row_depth", timing.row_depth, "cycles", "assumed"),
            chain * given("lookup_depth", timing.lookup_depth, "cycles", "assumed"),
            given("output_depth", timing.output_depth, "cycles", "assumed"),
        ]
        if design.search:
            steps = design.config.search_chain + (design.config.search_segments - 1).bit_length()
            depth = given("search_depth", timing.search_depth, "cycles", "assumed")
            parts.append(given("search_steps", steps) * depth)
            parts.append(given("search_passes", design.search_passes, "cycles"))
        if alone:
            parts.append(given("call_gap", timing.call_gap, "cycles", "assumed"))
        if alone or run.mode == "row_fetch":  # the first row depends on a code
            parts.append(self._memory_latency())
        pipelines = total(parts).named("pipelines", "cycles")
        if not alone:
            return pipelines.named("fill", "cycles")
        # the accumulators start when all block exponents are in, which follow the input scales
        exponents = (run.in_rows + shift_words(run)).named("exponents", "cycles")
        return maximum(pipelines, exponents - load).named("fill", "cycles")

    def _memory_latency(self) -> Quantity:
        latency = given("memory_latency_ns", self.timing.memory_latency_ns, "ns", "assumed")
        clock = given("clock_mhz", self.memory.clock_mhz, "MHz")
        return (latency * clock / 1000).named("memory_latency", "cycles")

    def _stream_parts(self, run: Run, gap: Quantity) -> dict[str, Quantity]:
        """gap: cycles in which what comes first is read before it is used."""
        busy = process_cycles(run, self.timing)
        memory = self.memory
        parts = {name: busy[name] for name in BOUND_OF if name in busy}
        parts["gather"] = (busy["gather"] - run.x_words).named("gather", "cycles")
        parameters = (run.dealt - run.in_rows) * memory.beat_cycles / memory.streamed
        parts["parameters"] = parameters.named("parameters", "cycles")
        parts["lookup"] = (busy["lookup"] + index_stalls(run)).named("lookup", "cycles")
        ahead = given("read_ahead", run.design.config.read_ahead, "bursts")
        parts["burst_latency"] = (run.jobs * self._memory_latency() / ahead).named(
            "burst_latency", "cycles"
        )
        # the first table is there before the first code
        early = minimum(run.first_rows, gap)
        parts["rows"] = (busy["rows"] - early).named("rows", "cycles")
        share = self._read_ahead(run, gap)
        read = {**parts, "port": self._port(run)}
        for name in ("port", "bursts", "unpack"):
            parts[name] = (read[name] * (1 - share)).named(f"{name}_exposed", "cycles")
        return parts

    def _read_ahead(self, run: Run, gap: Quantity) -> Quantity:
        """Share of a channel's beats that is on chip when the look-ups begin: indices of whole
        records, with their codebooks where rows are computed, and a table where they are stored, as
        far as the gap and FIFOs reach."""
        memory = self.memory
        beats = run.index_beats + run.row_beats if run.mode == "online" else run.index_beats
        held = run.records_ahead * (beats / run.records)
        if run.mode == "table":
            held = held + run.first_rows
        in_time = gap * memory.streamed / memory.beat_cycles
        hidden = minimum(held, in_time).named("beats_read_ahead", "beats")
        return (hidden / (run.index_beats + run.row_beats)).named("share_read_ahead")

    def _port(self, run: Run) -> Quantity:
        """Cycles of the busiest memory port."""
        memory = self.memory
        rows = memory.fetched if run.mode == "row_fetch" else memory.streamed
        load = {
            "channel": run.index_beats / memory.streamed + run.row_beats / rows,
            "parameters": run.parameter_beats / memory.streamed,
        }
        if run.design.search:
            load["centroids"] = run.centroid_beats / memory.streamed
        return busiest_port(self.designs, run.design, memory, load).named("port", "cycles")

    def _bytes(self, run: Run) -> dict[str, Quantity]:
        size = given("beat_bytes", run.design.beat_bytes, "B")
        out = {
            "channel": (run.index_beats + run.row_beats) * size,
            "parameters": run.parameter_beats * size,
        }
        if run.design.search:
            out["centroids"] = run.centroid_beats * size
        return {name: value.named(f"{name}_bytes", "B") for name, value in out.items()}
