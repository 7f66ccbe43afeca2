"""The published accelerator, described by itself: what the method must reproduce.

Its source differs from ours in structure (INT4 tables streamed whole, a search of 4 x 16 elements
beside every port, attention in blocks of 16 keys), so it has a configuration of its own. Facts are
from its public source and reports; `score_block_cycles` is fitted on its published prefill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fpga.performance.quantity import Quantity, ceil_div, given, maximum, total
from fpga.performance.resources import Resources, UnitCosts

#: End-to-end latency in ms by (prompt tokens, output tokens), Qwen3-1.7B, as published.
PUBLISHED_MS = {
    (32, 16): 105.9,
    (32, 64): 351.1,
    (32, 256): 1331.8,
    (128, 16): 284.7,
    (128, 64): 529.9,
    (128, 256): 1510.7,
}
#: Positions in the cache during every published decode step: co-simulated once, then multiplied.
PUBLISHED_DECODE_CONTEXT = 32
#: Netlist of the published power report (INT8 tables, 220 MHz).
PUBLISHED_NETLIST = {
    "lut": 1_267_909,
    "ff": 1_046_647,
    "dsp": 4_162,
    "bram36": 1_537 / 2 + 32,
    "uram": 480,
}
#: Its split of 62.75 W, at 292 GB/s of memory traffic.
PUBLISHED_POWER_W = {
    "static": 22.0,
    "processor": 1.2,
    "clocks": 6.8,
    "logic": 7.9,
    "dsp": 3.2,
    "ram": 1.7,
    "memory": 19.3,
}
PUBLISHED_CLOCK_MHZ, PUBLISHED_MEMORY_GB_PER_S = 220.0, 292.0


@dataclass(frozen=True)
class PublishedConfig:
    """One decoder layer of Qwen3-1.7B in hardware, called once per layer.

    ports               memory channels; a round handles one position on each
    outputs_per_cycle   outputs that every port looks up in a cycle
    table_bits          4: what its top function instantiates and its timing report names
    centroid_cycles     cycles to load the 64 centroids of a position, one at a time
    pe_latency          of a search element and of a chain stage of the look-up
    norm_latency        of a row norm, beside 16 values a cycle
    rotary_latency      of a row of the rotary embedding, per key-value group
    score_block_cycles  16 queries against 16 keys; fitted
    value_step_cycles   16 values of one query; does not bind at the published points
    block_latency       softmax, trees and gating, once per layer
    attention_macs      float32 multiply-adds in parallel
    """

    hidden_size: int = 2048
    intermediate_size: int = 6144
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    layers: int = 28
    vec_len: int = 2
    act_centroids: int = 64
    weight_centroids: int = 16
    group_size: int = 512
    ports: int = 16
    outputs_per_cycle: int = 512
    table_bits: int = 4
    beat_bytes: int = 64
    centroid_cycles: int = 64
    search_elements: int = 64
    pe_latency: int = 9
    chain_latency: int = 8
    norm_latency: int = 60
    rotary_latency: int = 22
    score_block_cycles: float = 77.7
    value_step_cycles: float = 40.0
    block_latency: int = 700
    attention_macs: int = 1024
    clock_mhz: float = 250.0

    def linears(self) -> dict[str, tuple[int, int]]:
        """Projection -> inputs, outputs."""
        kv = 2 * self.kv_heads * self.head_dim
        return {
            "qkv": (self.hidden_size, self.heads * self.head_dim + kv),
            "o": (self.heads * self.head_dim, self.hidden_size),
            "gate_up": (self.hidden_size, 2 * self.intermediate_size),
            "down": (self.intermediate_size, self.hidden_size),
        }


PUBLISHED = PublishedConfig()
#: The netlist of the power report: INT8 tables, half the attention.
PUBLISHED_INT8 = dataclasses.replace(
    PUBLISHED, table_bits=8, attention_macs=512, clock_mhz=PUBLISHED_CLOCK_MHZ
)


@dataclass(frozen=True)
class PublishedModel:
    """Cycles of one layer, and latencies of the whole model as the paper adds them up."""

    config: PublishedConfig = PUBLISHED

    @cached_property
    def fill(self) -> Quantity:
        c = self.config
        ports = given("ports", c.ports)
        search = ports * given("pe_latency", c.pe_latency, "cycles", "assumed") + 6
        chain = ports * given("chain_latency", c.chain_latency, "cycles", "assumed")
        return (search + chain).named("fill", "cycles")

    def beats(self, outputs: int) -> Quantity:
        """Beats of table and indices of one position."""
        c = self.config
        groups = ceil_div(given("outputs", outputs), given("group_size", c.group_size)).named(
            "groups"
        )
        entries = given("act_centroids", c.act_centroids) * given(
            "weight_centroids", c.weight_centroids
        )
        table = groups * entries * given("table_bits", c.table_bits, "bit") / (8 * c.beat_bytes)
        indices = outputs * given("index_bits", 4, "bit") / (8 * c.beat_bytes)
        return (table.named("table_beats", "beats") + indices).named("beats", "beats")

    def linear(self, name: str, tokens: int) -> Quantity:
        """A projection: rounds times the slowest of streaming, centroid load and look-up."""
        c = self.config
        inputs, outputs = c.linears()[name]
        rounds = ceil_div(given("inputs", inputs), given("slots", c.vec_len * c.ports)).named(
            "rounds"
        )
        lookup = given("tokens", tokens) * ceil_div(
            outputs, given("outputs_per_cycle", c.outputs_per_cycle)
        )
        centroids = given("centroid_load", c.centroid_cycles, "cycles")
        step = maximum(self.beats(outputs), centroids, lookup.named("lookup", "cycles"))
        return (rounds * step + self.fill).named(name, "cycles")

    def attention(self, tokens: int, context: int) -> Quantity:
        """Scores in blocks of 16 keys, after the rotary embedding; values do not bind."""
        c = self.config
        t = given("tokens", tokens)
        rotary = given("kv_heads", c.kv_heads) * given("rotary_latency", c.rotary_latency) * t
        blocks = ceil_div(given("context", context), 16).named("key_blocks")
        per_block = given("score_block_cycles", c.score_block_cycles, "cycles", "fitted")
        heads = given("heads", c.heads)
        step = given("value_step_cycles", c.value_step_cycles, "cycles", "assumed")
        scores = heads * t * blocks * per_block + rotary
        values = heads * t * 4 * step
        return maximum(scores, values).named("attention", "cycles")

    def serial(self, tokens: int) -> Quantity:
        """Row norms and gating, which nothing runs beside."""
        c = self.config
        t = given("tokens", tokens)
        row = given("hidden_size", c.hidden_size) / 16 + given("norm_latency", c.norm_latency)
        gating = given("intermediate_size", c.intermediate_size) / 16
        latency = given("block_latency", c.block_latency, "cycles", "assumed")
        return (t * (3 * row + gating) + latency).named("serial", "cycles")

    def layer(self, tokens: int, context: int) -> Quantity:
        linears = [self.linear(name, tokens) for name in self.config.linears()]
        parts = [*linears, self.attention(tokens, context), self.serial(tokens)]
        return total(parts).named("layer", "cycles")

    def phase_ms(self, tokens: int, context: int) -> Quantity:
        clock = given("clock_mhz", self.config.clock_mhz, "MHz")
        layers = given("layers", self.config.layers)
        return (layers * self.layer(tokens, context) / (1000 * clock)).named("phase_ms", "ms")

    def end_to_end_ms(self, prompt: int, outputs: int) -> Quantity:
        """As published: prefill, then every output token at the cost of the same decode step."""
        prefill = self.phase_ms(prompt, prompt).named("prefill_ms", "ms")
        decode = self.phase_ms(1, PUBLISHED_DECODE_CONTEXT).named("decode_ms", "ms")
        return (prefill + given("outputs", outputs) * decode).named("end_to_end_ms", "ms")

    def validation(self) -> list[tuple[tuple[int, int], float, float]]:
        """((prompt, outputs), published ms, modelled ms) of the six published points."""
        return [(point, ms, self.end_to_end_ms(*point).value) for point, ms in PUBLISHED_MS.items()]

    def resources(self, costs: UnitCosts | None = None) -> dict[str, Resources]:
        """Blocks of the netlist."""
        return published_resources(self.config, costs or UnitCosts())


def published_resources(c: PublishedConfig, costs: UnitCosts) -> dict[str, Resources]:
    """Structure from the source, unit costs from UnitCosts; half the look-ups add in DSPs."""
    lanes, elements = c.ports * c.outputs_per_cycle, c.ports * c.search_elements
    packed = 4  # sums in a DSP adder
    mux = costs.mux_lut(c.weight_centroids, c.table_bits)
    adder = costs.adder_lut(c.table_bits + 4) / 2  # the other half of the chain adds in DSPs
    return {
        "search": Resources.of(
            lut=elements * costs.float_pe_lut,
            ff=elements * costs.float_pe_ff,
            dsp=elements * c.vec_len,
        ),
        "lookup": Resources.of(
            lut=lanes * (mux + adder) * costs.hls_overhead,
            ff=lanes * costs.lane_ff(c.table_bits),
            dsp=lanes / 2 / packed,
            bram36=c.ports * 64 / 2,
        ),
        "accumulate": Resources.of(dsp=c.outputs_per_cycle / 2, uram=256),
        "attention": Resources.of(
            lut=c.attention_macs * costs.float_mac_lut,
            ff=c.attention_macs * costs.float_mac_ff,
            dsp=c.attention_macs,
            bram36=512 / 2 + 32,
            uram=32,
        ),
        "norms and gating": Resources.of(
            lut=costs.vector_lut(16),
            ff=costs.vector_lut(16) * costs.vector_ff_per_lut,
            dsp=16 * costs.vector_dsp_per_float,
            uram=128 + 32 + 32,
        ),
        "ports": Resources.of(lut=28 * 2 * costs.port_lut(256), ff=28 * 2 * costs.port_ff(256)),
    }


def published_error(points: Sequence[tuple[tuple[int, int], float, float]]) -> float:
    """Largest relative error of `validation()`."""
    return max(abs(model / measured - 1) for _, measured, model in points)
