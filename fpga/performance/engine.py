"""One call of a LUT linear engine: transactions of its streams, cycles of its processes.

The formulas follow the loops of fpga/hls. A call passes three phases: `load` (activations in,
quantized, stored for gathering), `stream` (all processes of the channels run side by side; the
slowest sets the pace) and `drain` (accumulators to floats); `fill` is what the pipelines take to
fill up, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fpga.design import MIN_DISTANCE, EngineDesign, LayerKind
from fpga.performance.memory import MemorySystem, busiest_port
from fpga.performance.quantity import (
    Quantity,
    ceil_div,
    given,
    maximum,
    minimum,
    total,
)
from fpga.performance.timing import ASSUMED_TIMING, EMITTED, Schedule, Timing

#: Words that the stream of indices holds (engine.h).
INDEX_FIFO = 4
MODES = ("table", "row_fetch", "online")
#: What each part of the stream phase means to a reader who asks what bounds a design.
BOUND_OF = {
    "port": "memory",
    "bursts": "memory",
    "burst_latency": "memory",
    "plan": "memory",
    "unpack": "memory",
    "read_centroids": "memory",
    "search": "search",
    "gather": "gather",
    "rows": "rows",
    "lookup": "lookup",
}


def modes_of(design: EngineDesign) -> tuple[str, ...]:
    """The ways in which a design can get its rows."""
    return ("online",) if design.online_rows else ("table", "row_fetch")


@dataclass(frozen=True)
class Run:
    """A linear of kind `kind` for `tokens` tokens: sizes and stream transactions.

    Transactions are those of one stream; the channels all have as many. accumulators: the integer
    sums are written beside the results, as verification does.
    """

    design: EngineDesign
    kind: LayerKind
    tokens: int
    mode: str
    accumulators: bool = False

    # Sizes -------------------------------------------------------------------------------------

    @cached_property
    def t(self) -> Quantity:
        return given("tokens", self.tokens)

    @cached_property
    def act_stages(self) -> Quantity:
        return given("act_stages", self.kind.act_stages)

    @cached_property
    def rounds(self) -> Quantity:
        lut = self.design.lut
        positions = ceil_div(
            given("in_features", self.kind.in_features), given("vec_len", lut.vec_len)
        ).named("positions")
        blocks = ceil_div(positions, given("block_positions", lut.block_positions)).named("blocks")
        per_block = given("rounds_per_block", self.design.rounds_per_block)
        return (ceil_div(blocks, given("chains", self.design.chains)) * per_block).named("rounds")

    @cached_property
    def records(self) -> Quantity:
        return (self.rounds * given("weight_stages", self.kind.weight_stages)).named("records")

    @cached_property
    def passes(self) -> Quantity:
        return (self.records * self.act_stages).named("passes")

    @cached_property
    def subs(self) -> Quantity:
        outputs = given("out_features", self.kind.out_features)
        lanes = given("lanes", self.design.lanes)
        return maximum(ceil_div(outputs, lanes), MIN_DISTANCE).named("subs")

    @cached_property
    def groups(self) -> Quantity:
        return ceil_div(self.subs, given("subs_per_group", self.design.subs_per_group)).named(
            "groups"
        )

    @cached_property
    def in_beats(self) -> Quantity:
        floats = given("floats_per_beat", self.design.floats)
        width = given("in_features", self.kind.in_features)
        return maximum(ceil_div(width, floats), MIN_DISTANCE).named("in_beats", "beats")

    @cached_property
    def out_beats(self) -> Quantity:
        """Result beats of a token."""
        return (self.subs * given("beats_per_sub", self.design.out_beats)).named(
            "out_beats", "beats"
        )

    # Transactions ------------------------------------------------------------------------------

    @cached_property
    def x_beats(self) -> Quantity:
        return (self.t * self.in_beats).named("x_beats", "beats")

    @cached_property
    def y_beats(self) -> Quantity:
        beats = self.t * self.out_beats
        return (beats * 2 if self.accumulators else beats).named("y_beats", "beats")

    @cached_property
    def acts(self) -> Quantity:
        return (self.rounds * self.t).named("acts")

    @cached_property
    def found(self) -> Quantity:
        return (self.rounds * self.act_stages * self.t).named("found", "codes")

    @cached_property
    def items(self) -> Quantity:
        """Codes or vectors that rows are asked for with."""
        return (self.passes * self.t).named("items")

    @cached_property
    def indices(self) -> Quantity:
        return (self.records * self.subs).named("indices", "words")

    @cached_property
    def index_beats(self) -> Quantity:
        per_record = given("index_beats_per_record", self.design.index_beats(self.kind), "beats")
        return (self.records * per_record).named("index_beats", "beats")

    @cached_property
    def row_beats(self) -> Quantity:
        """Beats that rows are made of: tables, fetched rows, or shifts and codebooks."""
        design, kind = self.design, self.kind
        if self.mode == "online":
            rest = design.record_beats(kind) - design.index_beats(kind)
            beats = self.records * given("codebook_beats", rest, "beats", "shifts and codebooks")
        else:
            row = given("beats_of_a_row", design.row_beats(kind), "beats", "all groups of a code")
            count = (
                self.t
                if self.mode == "row_fetch"
                else given("act_centroids", design.lut.act_centroids)
            )
            beats = self.passes * count * row
        return beats.named("row_beats", "beats")

    @cached_property
    def jobs(self) -> Quantity:
        """Bursts of a channel."""
        bursts = {"online": self.records, "table": self.passes, "row_fetch": self.items}
        return (self.records + bursts[self.mode]).named("jobs", "bursts")

    @cached_property
    def rows(self) -> Quantity:
        return (self.items * self.groups).named("rows")

    @cached_property
    def sums(self) -> Quantity:
        return (self.items * self.subs).named("sums")

    @cached_property
    def centroid_words(self) -> Quantity:
        search_passes = given("search_passes", self.design.search_passes, "cycles/code")
        return (self.rounds * self.act_stages * search_passes).named("centroid_words")

    @cached_property
    def centroid_beats(self) -> Quantity:
        return given("centroid_beats", self.design.centroid_beats(self.kind), "beats")

    @cached_property
    def parameter_beats(self) -> Quantity:
        return given("parameter_beats", self.design.parameter_beats(self.kind), "beats")

    def streams(self) -> dict[str, Quantity]:
        """Transactions by the name of the stream, as the C simulation counts them."""
        design, kind = self.design, self.kind
        zero = given("none", 0)
        search = design.search
        out = {
            "x_beats": self.x_beats,
            "quantize_input/z": self.x_beats,
            "quantize_input/quantized": self.x_beats,
            "quantize_input/largest": self.t,
            "token_scales": self.t,
            "input_scales": self.in_beats,
            "block_shifts": given(
                "shift_beats", design.block_shift_packing.beats(design.passes(kind)), "beats"
            ),
            "gather_beats": given(
                "gather_beats",
                design.gather_packing.beats(design.rounds(kind) * design.gather_steps),
                "beats",
            ),
            "output_scales": self.out_beats,
            "biases": self.out_beats if kind.bias else zero,
            "act": self.acts,
            "sums": self.sums,
            "totals": self.sums,
            "y_beats": self.y_beats,
            "index_beats": self.index_beats,
            "row_beats": self.row_beats,
            "jobs": self.jobs,
            "indices": self.indices,
            "rows": self.rows,
        }
        if search:
            out |= {"centroids": self.centroid_words, "found": self.found}
        if self.mode != "online":
            fetch = self.mode == "row_fetch"
            out |= {"codes": self.items, "to_table": zero if fetch else self.items}
            out["to_fetch"] = self.items if fetch else zero
        else:
            out["vectors"] = self.items
        return out


def _row_cycles(run: Run, loop_gap: Quantity) -> Quantity:
    design = run.design
    if run.mode == "online":
        interval = given(
            "row_interval",
            max(design.codebook_packing.beats_per_word, min(4, design.subs_per_group)),
            "cycles/row",
        )
        stages = run.act_stages
        per_record = stages * run.groups + stages * run.t * run.groups * interval
        return run.records * (per_record + (1 + stages) * loop_gap)
    interval = given("beats_per_row", design.row_packing.beats_per_word, "cycles/row")
    if run.mode == "row_fetch":
        return run.rows * interval
    load = (run.row_beats / run.passes).named("load_table", "cycles/pass")
    serve = (run.t * run.groups * interval).named("serve_rows", "cycles/pass")
    return run.passes * (maximum(load, serve) + loop_gap)


def shift_words(run: Run) -> Quantity:
    """Cycles in which the accumulators take in the block exponents of a call."""
    beats = given("beats_per_shift", run.design.block_shift_packing.beats_per_word)
    return (run.passes * beats).named("shift_words", "cycles")


def process_cycles(run: Run, timing: Timing, flattened: bool = False) -> dict[str, Quantity]:
    """Busy cycles of every process in a call: iterations of its loops times their interval."""
    design = run.design
    loop_gap = given("loop_gap", 0 if flattened else timing.loop_gap, "cycles", "assumed")
    index_interval = given("beats_per_index", design.index_packing.beats_per_word, "cycles/word")
    gather_steps = given("gather_steps", design.gather_steps, "cycles/position")
    out = {
        "read_parameters": run.parameter_beats,
        "read_input": run.x_beats,
        "scale": run.x_beats,
        "round": run.t * (run.in_beats + loop_gap),
        "gather": run.x_beats + run.acts * gather_steps,
        "repeat": run.items,
        "bursts": run.index_beats + run.row_beats,
        "unpack": run.records * (run.subs * index_interval + loop_gap),
        "rows": _row_cycles(run, loop_gap),
        "lookup": run.sums,
        "start": run.sums,
        "accumulate": shift_words(run) + run.sums + run.t * run.out_beats,
        "write_output": run.y_beats,
    }
    if design.search:
        words = given("words_per_beat", design.centroid_packing.per_beat, "words/beat")
        out["read_centroids"] = run.centroid_beats * words
        search_passes = given("search_passes", design.search_passes, "cycles/code")
        out["search"] = run.found * search_passes
    if run.mode != "online":
        out["route"] = run.items
        out["plan"] = 2 * (run.jobs - run.records)  # a row or table, sometimes indices with it
    return {name: cycles.named(name, "cycles") for name, cycles in out.items()}


def index_stalls(run: Run) -> Quantity:
    """Cycles in which look-ups wait for indices: the first token of a record takes them as they are
    unpacked, of which the stream ahead of the look-up holds only INDEX_FIFO words."""
    interval = given("beats_per_index", run.design.index_packing.beats_per_word, "cycles/word")
    return run.records * maximum(run.subs - INDEX_FIFO, 0) * (interval - 1)


@dataclass(frozen=True)
class Call:
    """A call in cycles of the kernel; `stream_parts` by process, `bytes` by memory argument.

    serial: load, drain and fill, in which nothing is looked up.
    """

    name: str
    mode: str
    load: Quantity
    stream_parts: dict[str, Quantity]
    stream: Quantity
    drain: Quantity
    fill: Quantity
    serial: Quantity
    cycles: Quantity
    bytes: dict[str, Quantity]

    @property
    def stream_bound(self) -> str:
        """What sets the pace of the stream phase, one of the values of BOUND_OF."""
        return BOUND_OF[max(self.stream_parts, key=lambda name: self.stream_parts[name].value)]

    @property
    def bound(self) -> str:
        return "serial gap" if self.serial.value > self.stream.value else self.stream_bound


@dataclass(frozen=True)
class Engine:
    """Engines of a design on a board: what a call costs.

    designs          all engines of the kernel set, in the order in which they take memory ports
    transfer_floats  activations in and out in a cycle; 0 = a beat
    sections         floats of a section of the results, by kind, where a decoder packs them for
                     its next step (decoder_steps.h pack_output); without, they are not packed
    """

    designs: Sequence[EngineDesign]
    memory: MemorySystem
    timing: Timing = ASSUMED_TIMING
    schedule: Schedule = EMITTED
    transfer_floats: int = 0
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
        """A call of `kind`; before: cycles in which the engine waited for it, to prefetch in."""
        run = Run(design, kind, tokens, mode, accumulators)
        load, drain = self._load(run), self._drain(run)
        fill = self._fill(run, load)
        busy = process_cycles(run, self.timing, self.schedule.flattened)
        gaps = [load, fill, drain, *([] if before is None else [before])]
        parts = self._stream_parts(run, busy, gaps)
        stream = maximum(*parts.values()).named(f"{kind.name}_stream", "cycles")
        serial = (load + drain + fill).named(f"{kind.name}_serial", "cycles")
        cycles = (serial + stream).named(f"{kind.name}_{mode}", "cycles")
        return Call(
            kind.name, mode, load, parts, stream, drain, fill, serial, cycles, self._bytes(run)
        )

    def best_call(
        self,
        design: EngineDesign,
        kind: LayerKind,
        tokens: int,
        before: Quantity | None = None,
    ) -> Call:
        """The call in whichever mode takes fewer cycles."""
        calls = [self.call(design, kind, tokens, mode, before) for mode in modes_of(design)]
        return min(calls, key=lambda call: call.cycles.value)

    # Phases ------------------------------------------------------------------------------------

    def _transfer(self, run: Run, floats_per_token: Quantity, beats: Quantity) -> Quantity:
        if not self.transfer_floats:
            return beats
        lanes = given("transfer_floats", self.transfer_floats, "floats/cycle")
        return run.t * ceil_div(floats_per_token, lanes)

    def _load(self, run: Run) -> Quantity:
        width = given("in_features", run.kind.in_features)
        load = self._transfer(run, width, run.x_beats)
        # the scale of a token is known after its last value, so the first waits for itself
        return (load * (1 + 1 / run.t)).named("load", "cycles")

    def _drain(self, run: Run) -> Quantity:
        width = (run.subs * given("lanes", run.design.lanes)).named("padded_outputs")
        drain = self._transfer(run, width, run.y_beats)
        if self.transfer_floats:
            return drain.named("drain", "cycles")
        floats = run.design.floats
        section = self.sections.get(run.kind.name.split("_v")[0], 0)
        if section % floats or (section and run.design.lanes % floats):
            drain = drain * given("values_per_beat", floats)  # packed a value at a time
        elif run.kind.bias and not run.accumulators:
            drain = drain + run.out_beats  # a beat of biases beside every beat of scales
        return drain.named("drain", "cycles")

    def _fill(self, run: Run, load: Quantity) -> Quantity:
        design, timing = run.design, self.timing
        chain = given("chain_channels", design.chain_channels)
        parts: list[Quantity] = [
            given("input_depth", timing.input_depth, "cycles", "assumed"),
            given("gather_steps", design.gather_steps, "cycles"),
            given("row_depth", timing.row_depth, "cycles", "assumed"),
            chain * given("lookup_depth", timing.lookup_depth, "cycles", "assumed"),
            given("output_depth", timing.output_depth, "cycles", "assumed"),
            given("call_gap", timing.call_gap, "cycles", "assumed"),
        ]
        if design.search:
            steps = design.config.search_chain + (design.config.search_segments - 1).bit_length()
            depth = given("search_depth", timing.search_depth, "cycles", "assumed")
            parts.append(given("search_steps", steps) * depth)
            parts.append(given("search_passes", design.search_passes, "cycles"))
        if not self.schedule.prefetch:
            parts.append(self._memory_latency())
        pipelines = total(parts).named("pipelines", "cycles")
        if self.schedule.prefetch:
            return pipelines.named("fill", "cycles")
        # the accumulators start when all block exponents are in, which follow the input scales
        exponents = (run.in_beats + shift_words(run)).named("exponents", "cycles")
        return maximum(pipelines, exponents - load).named("fill", "cycles")

    def _memory_latency(self) -> Quantity:
        latency = given("memory_latency_ns", self.timing.memory_latency_ns, "ns", "assumed")
        clock = given("clock_mhz", self.memory.clock_mhz, "MHz")
        return (latency * clock / 1000).named("memory_latency", "cycles")

    def _stream_parts(
        self, run: Run, busy: dict[str, Quantity], gaps: Sequence[Quantity]
    ) -> dict[str, Quantity]:
        parts = {name: busy[name] for name in BOUND_OF if name in busy}
        parts["gather"] = (busy["gather"] - run.x_beats).named("gather", "cycles")
        parts["port"] = self._port(run)
        ahead = given("read_ahead", run.design.config.read_ahead, "bursts")
        parts["burst_latency"] = (run.jobs * self._memory_latency() / ahead).named(
            "burst_latency", "cycles"
        )
        if not self.schedule.prefetch:
            parts["lookup"] = (busy["lookup"] + index_stalls(run)).named("lookup", "cycles")
            return parts
        held = given("beat_fifo", run.design.config.beat_fifo, "beats", "indices read before")
        hidden = minimum(held * self.memory.beat_cycles, total(gaps), run.index_beats).named(
            "hidden", "cycles"
        )
        for name in ("port", "bursts", "unpack"):
            parts[name] = maximum(parts[name] - hidden, 0).named(f"{name}_exposed", "cycles")
        return parts

    def _port(self, run: Run) -> Quantity:
        """Cycles of the busiest memory port."""
        memory = self.memory
        rows = memory.fetched if run.mode == "row_fetch" else memory.streamed
        channel = run.index_beats / memory.streamed + run.row_beats / rows
        load = {"channel": channel}
        if run.design.search:
            load["centroids"] = run.centroid_beats / memory.streamed
        beats = busiest_port(self.designs, run.design, memory.device.memory_ports, load)
        return (beats * memory.beat_cycles).named("port", "cycles")

    def _bytes(self, run: Run) -> dict[str, Quantity]:
        size = given("beat_bytes", run.design.beat_bytes, "B")
        out = {
            "channel": (run.index_beats + run.row_beats) * size,
            "parameters": run.parameter_beats * size,
        }
        if run.design.search:
            out["centroids"] = run.centroid_beats * size
        return {name: value.named(f"{name}_bytes", "B") for name, value in out.items()}
