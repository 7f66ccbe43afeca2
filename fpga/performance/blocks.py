"""What lies between two runs of an engine in the decoder kernel.

It follows the loops of fpga/hls/decoder_steps.h and the headers around it: streams of words of
float32 from an engine through a step and back, caches striped over kv_ports ports, a head of stored
rows or, behind a LUT linear, of some of them.

A step is counted from the last look-up of one linear until the last activation of the next lies in
the engine: results are drained, pass the step, are scaled and rounded token by token, all side by
side, so that the slowest sets the pace and the others add what the last token takes in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from fpga.decoder_design import STORED_BITS, DecoderDesign
from fpga.design import MIN_DISTANCE
from fpga.design import ceil_div as divide
from fpga.performance.engine import Drain, packing_unit
from fpga.performance.memory import MemorySystem
from fpga.performance.quantity import Number, Quantity, ceil_div, given, maximum, total
from fpga.performance.resources import Resources, UnitCosts, bram_of, uram_of
from fpga.performance.timing import Timing
from lutllm.model_config import ModelConfig

#: Interleaved sums of a norm (rms_norm.h NORM_PARTIALS) and of a logit (word_rows.h PARTIALS).
NORM_PARTIALS, PARTIALS = 64, 8
#: Most cycles in which a norm adds those up and takes the root (rms_norm.h INTERVAL).
ROOT_INTERVAL = 8
#: Most beats that are gated in a cycle (swiglu.h).
GATED_BEATS = 4
#: Standard deviations by which the busiest of many ports has more near words than the mean.
NEAR_SPREAD = 2.5
#: Float operations of an exponential (float_math.h).
EXPONENTIAL = 18


@dataclass(frozen=True)
class Blocks:
    """Cycles of the steps between engine runs, and what they take of the part, block by block.

    drain: the results that come from the engine before a step.
    """

    design: DecoderDesign
    memory: MemorySystem
    timing: Timing

    @property
    def model(self) -> ModelConfig:
        return self.design.model

    @property
    def _head_beats(self) -> Quantity:
        return given("head_beats", self.design.head_beats, "beats")

    @property
    def _hidden_beats(self) -> Quantity:
        return given("hidden_beats", self.design.beats(self.model.hidden_size), "beats")

    @property
    def _lanes(self) -> Quantity:
        return given("vector_lanes", self.design.config.vector_lanes, "beats/word")

    @property
    def _hidden_words(self) -> Quantity:
        return given("hidden_words", self.design.words(self.model.hidden_size), "words")

    def _root(self, words: int) -> Quantity:
        """From the last square of a vector to its factor."""
        return given("root", min(words, ROOT_INTERVAL), "cycles")

    @property
    def _depth(self) -> Quantity:
        depth = self.timing.step_depth
        return given("step_depth", depth, "cycles", "assumed")

    @property
    def _latency(self) -> Quantity:
        latency = given("memory_latency_ns", self.timing.memory_latency_ns, "ns", "assumed")
        clock = given("clock_mhz", self.memory.clock_mhz, "MHz")
        return (latency * clock / 1000).named("memory_latency", "cycles")

    @property
    def queries(self) -> int:
        """Queries that share every key that is read."""
        model, block = self.model, self.design.config.query_tokens
        return block * (model.num_attention_heads // model.num_key_value_heads)

    @property
    def kv_bytes(self) -> Quantity:
        """Bytes of the cache that a position takes in one layer."""
        beat = given("beat_bytes", self.design.beat_bytes, "B")
        heads = given("kv_heads", self.model.num_key_value_heads)
        return (2 * heads * self._head_beats * beat).named("kv_bytes", "B")

    def start(self) -> Quantity:
        """The norms of all vectors, from memory to the chip."""
        norms = given("norms", 2 * self.model.num_hidden_layers + 1)
        return (norms * self._hidden_words * self._lanes + self._latency).named("start", "cycles")

    def embed(self, tokens: int) -> Quantity:
        """Rows of the embedding to the residual."""
        row = self._hidden_words * self._lanes + self._latency
        return (given("tokens", tokens) * row).named("embed", "cycles")

    @cached_property
    def _stripe_cycles(self) -> Quantity:
        """Cycles from one stripe of keys, a position behind every port, to the next."""
        ports = divide(2 * self.design.config.kv_ports, self.memory.device.memory_ports)
        shared = given("caches_per_port", ports)
        read = self._head_beats * self.memory.beat_cycles * shared / self.memory.streamed
        softmax = given("softmax_interval", self.timing.softmax_interval, "cycles", "assumed")
        return maximum(read, softmax).named("cycles_per_stripe", "cycles")

    def _head_passes(
        self, tokens: int, context: int, words: Quantity | None = None
    ) -> tuple[Quantity, Quantity]:
        """The passes of a key head, one for every block of queries over the keys up to its last
        token; and what comes after them where it is the last head.

        The heads of a pass are collected beside the next one, which waits for them where it is the
        shorter. words: of a token, which go out behind the last key head.
        """
        config, step, head = self.design.config, self._stripe_cycles, self._head_beats
        group = self.model.num_attention_heads // self.model.num_key_value_heads
        size = words.value if words else 0
        read = waited_for = sent = 0
        for begin in range(0, tokens, config.query_tokens):
            end = min(begin + config.query_tokens, tokens)
            stripes = divide(context - tokens + end, config.kv_ports)
            queries = group * (end - begin)
            waits = queries * head.value + (end - begin) * size > stripes * step.value
            read += 0 if waits else stripes
            waited_for += queries if waits else 0
            sent += end - begin if waits else 0
        passes = given("stripes", read) * step + given("queries_waited_for", waited_for) * head
        outside = given("last_queries", queries) * head
        if words:
            passes = passes + given("tokens_waited_for", sent) * words
            outside = outside + given("tokens_of_last_block", end - begin) * words
        if waits:  # collecting sets the pace from the first pass on
            first = divide(context - tokens + min(config.query_tokens, tokens), config.kv_ports)
            outside = given("first_stripes", first) * step
        return passes.named("passes_of_head", "cycles"), outside.named("outside", "cycles")

    def _passes(self, tokens: int, context: int) -> Quantity:
        """All passes, up to the last word of attended heads."""
        others = given("kv_heads_but_one", self.model.num_key_value_heads - 1)
        each, _ = self._head_passes(tokens, context)
        last, outside = self._head_passes(tokens, context, self._attended_words)
        return (others * each + last + outside).named("passes", "cycles")

    def _turned(self, tokens: int, drain: Drain) -> Quantity:
        """Results to heads: narrowed to beats, normed, turned; weights and angles of the first
        token wait for them. Keys and values of a token come behind its queries."""
        model, head = self.model, self._head_beats
        t, kv = given("tokens", tokens), given("kv_heads", model.num_key_value_heads)
        heads = given("heads", model.num_attention_heads)
        angles = given("angle_beats", self.design.angle_beats, "beats")
        share = drain.last / (heads + 2 * kv)  # of a head
        queries = heads * head
        last = maximum(queries, share * heads + kv * head, share * (heads + kv) + kv * head)
        pace = maximum(drain.pace, queries + angles)
        norm = given("norm_of_heads", model.qk_norm) * (head + self._root(self.design.head_beats))
        return ((t - 1) * pace + last + norm + head).named("turned", "cycles")

    def attended(self, tokens: int, context: int) -> Quantity:
        """From the last head turned to the last word of attended heads."""
        # until the new rows are written, until the first are read
        written = 2 * self._latency
        return (written + self._passes(tokens, context)).named("attended", "cycles")

    @property
    def _attended_words(self) -> Quantity:
        beats = self.model.num_attention_heads * self.design.head_beats
        return given("attended_words", divide(beats, self.design.config.vector_lanes), "words")

    def _entered(self, words: Quantity) -> Quantity:
        """The last token of a step, rounded once its largest value is known."""
        return maximum(words, MIN_DISTANCE).named("entered", "cycles")

    def attention(self, tokens: int, context: int, drain: Drain) -> Quantity:
        """Causal attention of `tokens` queries, the last of which sees `context` positions."""
        return total(
            [
                self._turned(tokens, drain),
                self.attended(tokens, context),
                self._entered(self._attended_words),
                2 * self._depth,
            ]
        ).named("attention", "cycles")

    def added(self, tokens: int, drain: Drain) -> Quantity:
        """Results drained and added to the residual."""
        pace = maximum(drain.pace, self._entered(self._hidden_words))
        last = maximum(drain.last, self._hidden_words)
        return ((given("tokens", tokens) - 1) * pace + last).named("added", "cycles")

    def normed(self) -> Quantity:
        """The last token's norm, from its last square on."""
        root = self._root(self.design.words(self.model.hidden_size))
        return (root + self._hidden_words + self._depth).named("normed", "cycles")

    def norm(self, tokens: int, drain: Drain) -> Quantity:
        """A residual and its norm: a token is added up before it passes on."""
        entered = self._entered(self._hidden_words)
        return (self.added(tokens, drain) + self.normed() + entered).named("norm", "cycles")

    def gate(self, tokens: int, drain: Drain) -> Quantity:
        """Gate times up: gates come first, ups behind them."""
        words = self.design.words(self.model.intermediate_size)
        inner = given("intermediate_words", words, "words")
        step = given("cycles_per_word", divide(self.design.config.vector_lanes, GATED_BEATS))
        gated, entered = inner * step, self._entered(inner)
        pace = maximum(drain.pace, gated, entered)
        last = drain.last / 2 + maximum(drain.last / 2, gated)
        rest = (given("tokens", tokens) - 1) * pace
        return (rest + last + entered + self._depth).named("gate", "cycles")

    @cached_property
    def _row_beats(self) -> Quantity:
        beats = self.design.row_beats(self.design.head_kind)
        return given("row_beats", beats, "beats", f"a row of the head, {self.design.head_kind}")

    @cached_property
    def _row_cycles(self) -> Quantity:
        """A row of the head from its port."""
        ports = self.design.config.vocab_ports
        shared = given("ports_per_memory_port", divide(ports, self.memory.device.memory_ports))
        beat = self.memory.beat_cycles * shared / self.memory.streamed
        return (self._row_beats * beat).named("row_cycles", "cycles/row")

    def head(self) -> Quantity:
        """Rows behind every vocabulary port, side by side; some words a cycle to memory."""
        design, ports = self.design, self.design.config.vocab_ports
        rows = given("rows_per_port", design.vocab_rows)
        read = (rows * self._row_cycles).named("rows", "cycles")
        choices = given("words_chosen_from", math.gcd(design.floats, ports), "words/cycle")
        words = ceil_div(given("vocab_size", self.model.vocab_size), choices)
        # rounding looks for the largest value before it begins
        held = self._hidden_words if self.design.head_kind == "I8" else given("held", 0, "cycles")
        vector = held + self._hidden_beats
        latency = self._latency + self._depth
        return (vector + maximum(read, words) + latency).named("head", "cycles")

    # A head behind a LUT linear (screened_head.h) -------------------------------------------------

    @cached_property
    def _near_words(self) -> Quantity:
        share = given("near_share", self.timing.near_share, "", "assumed")
        return maximum(given("vocab_size", self.model.vocab_size) * share, 1).named("near_words")

    @cached_property
    def _near_rows(self) -> Quantity:
        """Rows of the busiest port: words lie behind ports at random."""
        ports = self.design.config.vocab_ports
        mean = self._near_words.value / ports
        most = min(self.design.vocab_rows, math.ceil(mean + NEAR_SPREAD * math.sqrt(mean)))
        busiest = most if ports > 1 else self._near_words.value
        return given("near_rows", busiest, "", "of the busiest port")

    def logits_written(self, words: int) -> Quantity:
        """Words of coarse logits to memory, a beat a cycle."""
        return (given("logit_words", words, "words") * self._lanes).named("written", "cycles")

    def screen(self) -> Quantity:
        """Coarse logits searched for near words, their rows read behind every port beside that."""
        model, design = self.model, self.design
        find = given("logit_words", design.words(model.vocab_size), "words")
        parts = given("beats_of_a_row_rounded", design.axi_bits // 8 // design.floats)
        held = maximum(self._hidden_beats, self._row_beats * parts)
        vector = (self._hidden_words + held).named("vector", "cycles")
        row = self._row_cycles
        last = find + row  # of the last word, if it is near
        rows = vector + self._near_rows * row
        latency = self._latency + self._depth
        return (maximum(last, rows, self._near_words) + latency).named("screen", "cycles")

    @cached_property
    def head_bytes(self) -> Quantity:
        """Bytes of the rows that are read."""
        words = given("vocab_size", self.model.vocab_size)
        rows = (self._near_words if self.design.screened else words) * self._row_beats
        return (rows * given("beat_bytes", self.design.beat_bytes, "B")).named("head_bytes", "B")

    def resources(self, costs: UnitCosts) -> dict[str, Resources]:
        """By block, named as a synthesis report does where there is one."""
        screen = {"screen": self._screen(costs)} if self.design.screened else {}
        return {
            "attend": self._attend(costs),
            "normalize": self._normalize(costs),
            "activate": self._activate(costs),
            "score_words": self._score_words(costs),
            **screen,
            "pack_output": self._pack_output(costs),
            "buffers": self._buffers(),
            "decoder ports": self._ports(costs),
        }

    def _operations(self, costs: UnitCosts, count: Quantity, **rest: Number) -> Resources:
        """Float operations, each a DSP with logic beside it."""
        lut = count * given("float_lut", costs.float_mac_lut, "lut", "fitted")
        return Resources.of(
            lut=lut + rest.pop("lut", 0.0),
            ff=count * given("float_ff", costs.float_mac_ff, "ff", "assumed"),
            dsp=count * costs.float_dsp,
            **rest,
        )

    @property
    def _floats(self) -> Quantity:
        return given("floats_per_beat", self.design.floats)

    @property
    def _wide_floats(self) -> Quantity:
        return given("floats_per_word", self.design.floats * self.design.config.vector_lanes)

    def _attend(self, costs: UnitCosts) -> Resources:
        """Scores and weights (a product and its sum for every float read), softmax; norm and turn.

        The softmax has the beats of a head to work on a stripe, so that its operators are shared.
        """
        model, design, axi_bits = self.model, self.design, self.design.axi_bits
        queries, floats, head = given("queries", self.queries), self._floats, self._head_beats
        ports = given("kv_ports", design.config.kv_ports)
        macs = (2 * queries * ports * floats).named("attention_macs", "MAC/cycle")
        of_score = head + given("operations_of_exponential", EXPONENTIAL) + 3
        stripe = queries * (ports * of_score + EXPONENTIAL + given("operations_of_division", 8))
        softmax = ceil_div(stripe, head).named("softmax_operators")
        decays = 2 * queries * floats
        turn = floats * given("operations_of_norm_and_turn", 2 * (4 + 3))
        blocks = divide(design.max_tokens, design.config.query_tokens)
        depth = blocks * model.num_key_value_heads * design.head_beats
        uram = queries * given("query_uram", uram_of(axi_bits, depth), "uram")
        select = given("select", 2 * 2 * costs.mux_lut(design.head_beats, 32) * design.floats)
        kept = given("held_heads", costs.memory_lut(axi_bits, 2 * design.head_beats), "lut")
        products = given("held_products", costs.memory_lut(32, 2 * design.head_beats), "lut")
        beats = given("beat_fifo", costs.memory_lut(axi_bits, 32), "lut", "in and out of a cache")
        fifos = queries * kept + queries * ports * products + 4 * ports * beats
        operations = 2 * macs + softmax + decays + turn
        return self._operations(costs, operations, lut=select + fifos, uram=uram)

    def _normalize(self, costs: UnitCosts) -> Resources:
        """Residual, sum of squares and product; the final norm passes the same."""
        root = given("operations_of_a_root", NORM_PARTIALS // ROOT_INTERVAL + 12)
        words, bits = self.design.words(self.model.hidden_size), 32 * self._wide_floats.value
        held = 2 * bram_of(int(bits), words)
        return self._operations(costs, 4 * self._wide_floats + root, bram36=held)

    def _activate(self, costs: UnitCosts) -> Resources:
        each = given("operations_of_silu", 14, "", "an exponential, a division, two products")
        beats = given("gated_beats", min(GATED_BEATS, self.design.config.vector_lanes))
        return self._operations(costs, beats * self._floats * each)

    def _score_words(self, costs: UnitCosts) -> Resources:
        """Per port: the products of a beat of stored values and their sum."""
        ports = given("vocab_ports", self.design.config.vocab_ports)
        bits = STORED_BITS[self.design.head_kind]
        values = given("values_per_beat", self.design.axi_bits // bits)
        depth = self.design.row_beats(self.design.head_kind)
        if self.design.head_kind == "I8":  # a product of 16 by 8 bits in a DSP each, their sum
            adders = values * costs.adder_lut(24) * costs.hls_overhead
            held = given("vector_bram", bram_of(16 * int(values.value), depth), "bram36")
            each = Resources.of(lut=adders, ff=adders * costs.ff_per_lut, dsp=values, bram36=held)
            return each.times(ports)
        kept = values.value * costs.memory_lut(32, depth)
        each = self._operations(costs, 2 * values + PARTIALS, lut=kept)
        return each.times(ports)

    def _screen(self, costs: UnitCosts) -> Resources:
        """The largest of a word of logits, twice, and every one against the least that is near; a
        slice of logits on its way to memory, near words on theirs."""
        design, floats = self.design, self._wide_floats
        compared = given("comparisons", 3, "", "twice the largest, once near") * floats
        largest = 2 * floats * (costs.mux_lut(2, 32) + costs.mux_lut(2, 16))
        lanes = given("lane_lut", int(floats.value) * 8, "lut", "the first near word of a word")
        lut = (compared * costs.adder_lut(32) + largest + lanes) * costs.hls_overhead
        bits, words = 32 * int(floats.value), design.slice_width // int(floats.value)
        picks = max(64, 8 * design.config.vocab_ports)
        held = bram_of(bits, words + 2) + bram_of(bits, 4) + bram_of(design.axi_bits + 32, picks)
        return Resources.of(
            lut=lut, ff=lut * costs.ff_per_lut, bram36=given("held", held, "bram36")
        )

    def _pack_output(self, costs: UnitCosts) -> Resources:
        """A piece of a word of results to its place in a word of a section: out of the one, into
        the other, by as many levels of shifting as there are places."""
        lanes, floats = self.design.config.vector_lanes, int(self._wide_floats.value)
        model = self.model
        sections = (model.head_dim, model.hidden_size, model.intermediate_size)
        each = []
        for engine in self.design.engines:
            unit = min(packing_unit(engine, lanes, size) for size in sections)
            shifts = 2 * costs.shifter_lut(32 * floats, (floats // unit - 1).bit_length())
            each.append(shifts * costs.hls_overhead)
        lut = given("pack_lut", sum(each), "lut")
        return Resources.of(lut=lut, ff=64 * floats * len(self.design.engines))

    def _buffers(self) -> Resources:
        """Residual of a run in two parts, all norms, the coarse logits of a token; attended heads
        of a part, normed and gated vectors that wait while the engine runs the other; heads, gates
        and ups of a token."""
        design, model = self.design, self.model
        hidden, inner = design.words(model.hidden_size), design.words(model.intermediate_size)
        head, tokens = design.words(model.head_dim), design.max_tokens
        sizes = {
            "hidden": 2 * tokens * hidden,
            "normed": tokens * hidden,
            "gated": tokens * inner,
            "attended": tokens * int(self._attended_words.value),
            "coarse": design.slices * design.words(design.slice_width),
            "norms": (2 * model.num_hidden_layers + 1) * hidden,
            "queries": model.num_attention_heads * head,
            "keys": model.num_key_value_heads * head,
            "values": model.num_key_value_heads * head,
            "gates": inner + 2,
            "ups": inner + 2,
        }
        parts = [
            given(f"{name}_uram", uram_of(design.axi_bits, words), "uram") * self._lanes
            for name, words in sizes.items()
            if words
        ]
        return Resources.of(uram=total(parts))

    def _ports(self, costs: UnitCosts) -> Resources:
        """Ports beside those of the engines."""
        axi_bits = self.design.axi_bits
        count = given("ports", len(self.design.image_beats()) + len(self.design.run_beats()))
        each = Resources.of(
            lut=given("port_lut", costs.port_lut(axi_bits), "lut", "fitted"),
            ff=given("port_ff", costs.port_ff(axi_bits), "ff", "fitted"),
            bram36=given("burst_buffer", costs.port_bram(axi_bits)),
        )
        return each.times(count)
