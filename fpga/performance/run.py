"""One run of a linear: sizes, transactions of its streams, busy cycles of its processes.

The formulas follow the loops of fpga/hls; the C simulation counts the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fpga.design import MIN_DISTANCE, EngineDesign, LayerKind
from fpga.performance.quantity import Number, Quantity, ceil_div, given, maximum, minimum
from fpga.performance.timing import Timing

MODES = ("table", "row_fetch", "online")


def modes_of(design: EngineDesign) -> tuple[str, ...]:
    """The ways in which a design can get its rows."""
    return ("online",) if design.online_rows else ("table", "row_fetch")


@dataclass(frozen=True)
class Run:
    """A linear of kind `kind` for `tokens` tokens: sizes and stream transactions.

    Transactions are those of one stream; the channels all have as many. accumulators: the integer
    sums are written beside the results, as verification does. lanes: beats of a word of
    activations.
    """

    design: EngineDesign
    kind: LayerKind
    tokens: int
    mode: str
    accumulators: bool = False
    lanes: int = 1

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
    def wide_floats(self) -> Quantity:
        return given("floats_per_word", self.design.floats * self.lanes)

    @cached_property
    def in_words(self) -> Quantity:
        """Input words of a token."""
        words = ceil_div(given("in_features", self.kind.in_features), self.wide_floats)
        return maximum(words, MIN_DISTANCE).named("in_words", "words")

    @cached_property
    def rotation_delay(self) -> Quantity:
        """Words that are under way in the steps of a rotation whose runs are longer than a word."""
        words = self.kind.rotation // (self.design.floats * self.lanes)
        return given("rotation_delay", max(0, words - 1), "words")

    @cached_property
    def out_words(self) -> Quantity:
        """Result words of a token."""
        per_sub = ceil_div(given("lanes", self.design.lanes), self.wide_floats)
        return (self.subs * per_sub.named("words_per_sub")).named("out_words", "words")

    # Transactions ------------------------------------------------------------------------------

    @cached_property
    def x_words(self) -> Quantity:
        return (self.t * self.in_words).named("x_words", "words")

    @cached_property
    def y_words(self) -> Quantity:
        words = self.t * self.out_words
        return (words * 2 if self.accumulators else words).named("y_words", "words")

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
    def index_fifo(self) -> Quantity:
        return given("index_fifo", self.design.config.index_fifo, "words")

    @cached_property
    def records_ahead(self) -> Quantity:
        """Records whose indices are asked for before the first row (row_source.h)."""
        held = self.design.config.index_fifo // self.design.subs(self.kind)
        return minimum(given("records_held", held), self.records).named("records_ahead")

    @cached_property
    def first_rows(self) -> Quantity:
        """Cycles of making rows that need neither code nor vector: a table loaded."""
        if self.mode != "table":
            return given("none", 0)
        return (self.row_beats / self.passes).named("first_table", "cycles")

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
    def parameter_ports(self) -> Quantity:
        return given("parameter_ports", self.design.config.parameter_ports, "beats/row")

    @cached_property
    def parameter_beats(self) -> Quantity:
        """Behind each parameter port."""
        return given("parameter_beats", self.design.parameter_beats(self.kind), "beats")

    @cached_property
    def in_rows(self) -> Quantity:
        """Rows of input scales."""
        return ceil_div(self.in_beats, self.parameter_ports).named("in_rows", "rows")

    @cached_property
    def out_rows(self) -> Quantity:
        """Rows of output scales; those of a sub-block start on one."""
        per_sub = ceil_div(given("beats_per_sub", self.design.out_beats), self.parameter_ports)
        return (self.subs * per_sub).named("out_rows", "rows")

    @cached_property
    def exponent_beats(self) -> Quantity:
        return given("exponent_beats", self.design.shift_beats(self.kind), "beats")

    @cached_property
    def gather_beats(self) -> Quantity:
        return given("gather_beats", self.design.gather_beats(self.kind), "beats")

    @cached_property
    def dealt(self) -> Quantity:
        """Cycles of dealing parameters out: rows of scales and biases, beats of what is narrow."""
        outputs = self.out_rows * (2 if self.kind.bias else 1)
        narrow = self.exponent_beats + self.gather_beats
        return (self.in_rows + narrow + outputs).named("dealt", "cycles")

    def widened(self, runs: Number, rows: Number, words: Number) -> Quantity:
        """Cycles of making words of rows, each run from one on."""
        lanes, ports = self.lanes, self.design.config.parameter_ports
        unit = min(lanes, ports)
        pieces = rows * given("pieces_of_a_row", ports // unit)
        return runs * maximum(pieces, words * given("pieces_of_a_word", lanes // unit))

    @cached_property
    def input_widened(self) -> Quantity:
        return self.widened(1, self.in_rows, self.in_words).named("widen_inputs", "cycles")

    @cached_property
    def output_widened(self) -> Quantity:
        rows, words = self.out_rows / self.subs, self.out_words / self.subs
        return self.widened(self.subs, rows, words).named("widen_scales", "cycles")

    def streams(self) -> dict[str, Quantity]:
        """Transactions by the name of the stream, as the C simulation counts them."""
        design, kind = self.design, self.kind
        zero = given("none", 0)
        search = design.search
        out = {
            "x_words": self.x_words,
            "input_words": self.in_words,
            "scale_words": self.out_words,
            "bias_words": self.out_words if kind.bias else zero,
            "z": self.x_words,
            "quantized": self.x_words,
            "largest": self.t,
            "token_scales": self.t,
            "parameters": self.parameter_beats,
            "input_scales": self.in_rows,
            "block_shifts": self.exponent_beats,
            "gather_beats": self.gather_beats,
            "output_scales": self.out_rows,
            "biases": self.out_rows if kind.bias else zero,
            "act": self.acts,
            "sums": self.sums,
            "totals": self.sums,
            "y_words": self.y_words,
            "index_beats": self.index_beats,
            "row_beats": self.row_beats,
            "jobs": self.jobs,
            "indices": self.indices,
            "rows": self.rows,
        }
        if design.lut.rotation:
            out["rotated"] = self.x_words
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
        return run.rows * interval
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


def process_cycles(run: Run, timing: Timing) -> dict[str, Quantity]:
    """Busy cycles of every process in a call: iterations of its loops times their interval."""
    design = run.design
    loop_gap = given("loop_gap", timing.loop_gap, "cycles", "assumed")
    index_interval = given("beats_per_index", design.index_packing.beats_per_word, "cycles/word")
    gather_steps = given("gather_steps", design.gather_steps, "cycles/position")
    out = {
        "read_parameters": run.parameter_beats,
        "deal_parameters": run.dealt,
        "read_input": run.x_words,
        "widen_inputs": run.input_widened,
        "widen_scales": run.output_widened,
        "scale": run.x_words,
        "round": run.x_words,
        "gather": run.x_words + run.acts * gather_steps,
        "repeat": run.items,
        "bursts": run.index_beats + run.row_beats,
        "unpack": run.records * run.subs * index_interval,
        "rows": _row_cycles(run, loop_gap),
        "lookup": run.sums,
        "start": run.sums,
        "accumulate": shift_words(run) + run.sums + run.t * run.out_words,
        "write_output": run.y_words,
    }
    if design.lut.rotation:
        out["within"] = run.x_words
    if design.search:
        words = given("words_per_beat", design.centroid_packing.per_beat, "words/beat")
        out["read_centroids"] = run.centroid_beats * words
        search_passes = given("search_passes", design.search_passes, "cycles/code")
        out["search"] = run.found * search_passes
    if run.mode == "online":
        out["route"] = run.row_beats
    else:
        out["route"] = run.items
        # a row or table, sometimes indices with it; before all the indices read ahead
        out["plan"] = 2 * (run.jobs - run.records) + run.records_ahead
    return {name: cycles.named(name, "cycles") for name, cycles in out.items()}


def index_stalls(run: Run) -> Quantity:
    """Cycles in which look-ups wait for indices: the first token of a record takes them as they are
    unpacked, of which the stream ahead of the look-up holds only index_fifo words."""
    interval = given("beats_per_index", run.design.index_packing.beats_per_word, "cycles/word")
    return run.records * maximum(run.subs - run.index_fifo, 0) * (interval - 1)
