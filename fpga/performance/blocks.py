"""Attention, norms, rotary embedding and gating: as the kernel library has them, or as assumed.

`LibraryBlocks` follows the loops of fpga/hls/attention.h, rms_norm.h, rotary.h and swiglu.h:
float32 beats, one port for keys and one for values. `AssumedBlocks` is what a complete decoder
needs so that these blocks do not set its pace; nothing of it is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from fpga.design import ceil_div as divide
from fpga.device import Device
from fpga.performance.memory import MemorySystem
from fpga.performance.quantity import Quantity, ceil_div, given, maximum, total
from fpga.performance.resources import Resources, UnitCosts, uram_of
from fpga.performance.timing import DecoderConfig, Timing
from lutllm.model_config import ModelConfig


class Blocks(Protocol):
    """Cycles of a layer's float steps that nothing hides, and what they take of the part."""

    def attention(self, tokens: int, context: int) -> Quantity:
        """Causal attention of `tokens` queries, the last of which sees `context` positions."""

    def vector(self, tokens: int) -> Quantity:
        """Norms, rotary embedding, gating."""

    @property
    def kv_bytes(self) -> Quantity:
        """Bytes of the cache that a position takes in one layer."""

    def resources(self, costs: UnitCosts, chunk: int) -> dict[str, Resources]:
        """By block. chunk: tokens of a run."""


def _vector_resources(costs: UnitCosts, floats: int, uram: int) -> Resources:
    lanes = given("vector_lanes", floats, "floats/cycle")
    lut = given("vector_lut", costs.vector_lut_fixed, "lut", "fitted") + lanes * given(
        "vector_lut_per_float", costs.vector_lut_per_float, "lut", "assumed"
    )
    operations = given("vector_dsp_per_float", costs.vector_dsp_per_float, "dsp", "fitted")
    return Resources.of(
        lut=lut,
        ff=lut * costs.vector_ff_per_lut,
        dsp=lanes * operations * costs.float_dsp,
        uram=given("activation_uram", uram, "uram"),
    )


@dataclass(frozen=True)
class LibraryBlocks:
    """The float steps of the kernel library, one after the other between the engine's calls."""

    model: ModelConfig
    config: DecoderConfig
    memory: MemorySystem
    timing: Timing

    def _beats(self, name: str, floats: int) -> Quantity:
        return given(name, divide(floats, self.memory.axi_bits // 32), "beats")

    @property
    def _head_beats(self) -> Quantity:
        return self._beats("head_beats", self.model.head_dim)

    @property
    def queries(self) -> int:
        """Queries that share every key that is read."""
        model = self.model
        return self.config.query_tokens * (model.num_attention_heads // model.num_key_value_heads)

    @property
    def kv_bytes(self) -> Quantity:
        padded = self._head_beats * given("beat_bytes", self.memory.axi_bits // 8, "B")
        heads = given("kv_heads", self.model.num_key_value_heads)
        return (2 * heads * padded).named("kv_bytes", "B")

    def attention(self, tokens: int, context: int) -> Quantity:
        model, block = self.model, self.config.query_tokens
        first, blocks = context - tokens, divide(tokens, block)
        keys = sum(first + min((i + 1) * block, tokens) for i in range(blocks))
        t, kv = given("tokens", tokens), given("kv_heads", model.num_key_value_heads)
        heads = given("heads", model.num_attention_heads)
        latency = given("memory_latency_ns", self.timing.memory_latency_ns, "ns", "assumed")
        clock = given("clock_mhz", self.memory.clock_mhz, "MHz")
        append = t * kv * (self._head_beats + (latency * clock / 1000).named("write_latency"))
        queries_in = (t * heads * self._head_beats).named("queries_in", "cycles")
        step = maximum(
            self._head_beats * self.memory.beat_cycles / self.memory.streamed,
            given("softmax_interval", self.config.softmax_interval, "cycles/key", "assumed"),
        ).named("cycles_per_key", "cycles")
        read = kv * given("keys_of_all_blocks", keys) * step
        results = kv * given("blocks", blocks) * given("queries", self.queries) * self._head_beats
        return total(
            [
                maximum(append.named("append", "cycles"), queries_in),
                read.named("keys", "cycles"),
                results.named("results", "cycles"),
                queries_in.named("heads_out", "cycles"),
            ]
        ).named("attention", "cycles")

    def vector(self, tokens: int) -> Quantity:
        """Two norms that see a token before they pass it on, heads turned, gate times up."""
        model, t = self.model, given("tokens", tokens)
        heads = given("q_and_k_heads", model.num_attention_heads + model.num_key_value_heads)
        norms = 2 * (t + 1) * self._beats("hidden_beats", model.hidden_size)
        turned = t * heads * self._head_beats
        gated = 2 * t * self._beats("intermediate_beats", model.intermediate_size)
        depth = 4 * given("vector_depth", self.config.vector_depth, "cycles", "assumed")
        return (norms + turned + gated + depth).named("vector", "cycles")

    def resources(self, costs: UnitCosts, chunk: int) -> dict[str, Resources]:
        model, axi_bits = self.model, self.memory.axi_bits
        floats = given("floats_per_beat", axi_bits // 32)
        queries = given("queries", self.queries)
        # products and their sum; decay, weighting and sum of values; the sum over beats; exp
        operations = queries * (5 * floats + self._head_beats + 12)
        ports = given("kv_ports", 2)
        blocks = divide(chunk, self.config.query_tokens)
        beats = model.num_key_value_heads * divide(model.head_dim, axi_bits // 32)
        stores = queries * uram_of(axi_bits, blocks * beats)
        collected = uram_of(axi_bits, blocks * self.queries * beats)
        attention = Resources.of(
            lut=operations * costs.float_mac_lut + ports * costs.port_lut(axi_bits),
            ff=operations * costs.float_mac_ff + ports * costs.port_ff(axi_bits),
            dsp=operations * costs.float_dsp,
            uram=stores + given("collect_uram", collected, "uram"),
        )
        return {
            "attention": attention,
            "norms and gating": _vector_resources(costs, axi_bits // 32, 0),
        }


@dataclass(frozen=True)
class AssumedBlocks:
    """Attention spread over many ports, activations on chip, as `DecoderConfig` says."""

    model: ModelConfig
    config: DecoderConfig
    memory: MemorySystem
    device: Device

    @cached_property
    def kv_bytes(self) -> Quantity:
        bits = given("kv_bits", self.config.kv_bits, "bit", "assumed")
        return (2 * given("kv_size", self.model.kv_size) * bits / 8).named("kv_bytes", "B")

    def attention(self, tokens: int, context: int) -> Quantity:
        config, memory = self.config, self.memory
        macs = given("attention_macs", config.attention_macs, "MAC/cycle", "assumed")
        use = given("attention_use", config.attention_use, "", "assumed")
        t, kv = given("tokens", tokens), given("context", context)
        pairs = (t * kv - t * (t - 1) / 2).named("query_key_pairs")
        work = 2 * pairs * given("q_size", self.model.q_size)
        compute = (work / (macs * use)).named("attention_compute", "cycles")
        ports = given("kv_ports", min(config.kv_ports, self.device.memory_ports), "", "assumed")
        beats = kv * self.kv_bytes / given("beat_bytes", memory.axi_bits // 8, "B")
        read = beats * memory.beat_cycles / (ports * memory.streamed)
        return maximum(compute, read.named("kv_read", "cycles")).named("attention", "cycles")

    def vector(self, tokens: int) -> Quantity:
        """Two norms that sum up a token before they pass it on; what streams costs its latency."""
        lanes = given("vector_lanes", self.config.vector_lanes, "floats/cycle", "assumed")
        depth = given("vector_depth", self.config.vector_depth, "cycles", "assumed")
        hidden = given("hidden_size", self.model.hidden_size)
        return (2 * ceil_div(hidden, lanes) + 4 * depth).named("vector", "cycles")

    def resources(self, costs: UnitCosts, chunk: int) -> dict[str, Resources]:
        config, model, axi_bits = self.config, self.model, self.memory.axi_bits
        macs = given("attention_macs", config.attention_macs, "", "assumed")
        ports = given("kv_ports", config.kv_ports, "", "assumed")
        attention = Resources.of(
            lut=macs * costs.float_mac_lut + ports * costs.port_lut(axi_bits),
            ff=macs * costs.float_mac_ff + ports * costs.port_ff(axi_bits),
            dsp=macs * costs.float_dsp,
            uram=ports * uram_of(axi_bits, 4096),
        )
        width = model.intermediate_size + 3 * model.hidden_size
        depth = divide(chunk * width, config.vector_lanes)
        activations = uram_of(32 * config.vector_lanes, depth)
        return {
            "attention": attention,
            "norms and gating": _vector_resources(costs, config.vector_lanes, activations),
        }
