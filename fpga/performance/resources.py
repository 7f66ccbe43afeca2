"""LUT, FF, DSP, BRAM and URAM of every block of an engine, from the widths in its source.

Structure (how many adders, multiplexers, multipliers, how wide and deep each buffer) follows
fpga/hls; `UnitCosts` says what each of them costs on the part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fpga.design import EngineDesign, bits_for, ceil_div
from fpga.device import Device
from fpga.performance.quantity import Number, Quantity, given, total, value_of

NAMES = ("lut", "ff", "dsp", "bram36", "uram")
#: URAM: 4096 words of 72 bits. BRAM36: 1024 words of 36 bits, 512 of 72.
URAM_WORDS, URAM_BITS = 4096, 72
BRAM_WORDS, BRAM_BITS = 512, 72
#: FIFOs and buffers up to this depth are shift registers or LUT memory.
LUTRAM_DEPTH = 64
#: Beats of a read burst, and bursts under way, that the interface of a port buffers
#: (kernel.cpp: max_read_burst_length, num_read_outstanding).
BURST_BEATS, BURSTS_UNDER_WAY = 64, 16
#: Integer widths of engine.h.
STAGE_BITS, DSP_BITS, ACT_BITS = 3, 48, 10


@dataclass(frozen=True)
class Resources:
    """What a block takes of the part."""

    lut: Quantity
    ff: Quantity
    dsp: Quantity
    bram36: Quantity
    uram: Quantity

    @classmethod
    def of(
        cls,
        lut: Number = 0,
        ff: Number = 0,
        dsp: Number = 0,
        bram36: Number = 0,
        uram: Number = 0,
    ) -> Resources:
        values = (lut, ff, dsp, bram36, uram)
        return cls(*(_quantity(v).named(n, n) for n, v in zip(NAMES, values, strict=True)))

    def times(self, count: Quantity) -> Resources:
        return Resources(*(count * getattr(self, name) for name in NAMES))

    def to_dict(self) -> dict[str, int]:
        return {name: math.ceil(getattr(self, name).value - 1e-9) for name in NAMES}


def _quantity(x: Number) -> Quantity:
    return x if isinstance(x, Quantity) else Quantity(x, formula=f"{x:g}")


def add_up(parts: Mapping[str, Resources]) -> Resources:
    """The sum over blocks; formulas name the blocks."""
    return Resources(
        *(
            total(
                getattr(block, name).named(f"{key}_{name}".replace(" ", "_"), name)
                for key, block in parts.items()
            ).named(name, name)
            for name in NAMES
        )
    )


@dataclass(frozen=True)
class UnitCosts:
    """Cost of the pieces that blocks are made of.

    Fitted means: chosen so that the netlist of the published power report comes out; its blocks
    could share the total otherwise, so a single one is uncertain by about 20 %.

    mux_lut_per_bit     LUTs per input less one of a multiplexer, a bit: a LUT6 selects one of four
    hls_overhead        LUTs of generated logic over those of its operators; fitted
    ff_per_lut          registers beside logic that is not counted by width; assumed
    port_lut, port_ff   AXI interface of a 256-bit port; fitted
    float_pe_*          published search element, float32, two components; fitted
    float_mac_*         float32 multiply-add beside its DSP; fitted
    int_to_float_lut    int32 to float32; assumed
    float_add_dsp       DSPs of a float32 addition or multiplication (DSPFP32)
    vector_*            norms, rotary embedding, softmax, gating and control: what remains of the
                        netlist, which has 16 floats a cycle; the split into a fixed part and a
                        part per float is assumed
    """

    mux_lut_per_bit: float = 1 / 3
    hls_overhead: float = 1.4
    ff_per_lut: float = 0.9
    port_lut_256: float = 2250
    port_ff_256: float = 1500
    float_pe_lut: float = 430
    float_pe_ff: float = 400
    float_mac_lut: float = 110
    float_mac_ff: float = 200
    int_to_float_lut: float = 180
    float_dsp: float = 1
    vector_lut_fixed: float = 80_000
    vector_lut_per_float: float = 2_500
    vector_ff_per_lut: float = 1.0
    vector_dsp_per_float: float = 322 / 16

    def mux_lut(self, inputs: int, bits: int) -> float:
        """A multiplexer of `inputs` words of `bits` bits."""
        return bits * (inputs - 1) * self.mux_lut_per_bit

    def adder_lut(self, bits: int) -> float:
        return bits

    def shifter_lut(self, bits: int, select_bits: int) -> float:
        """A shift by a variable amount: 4:1 multiplexers, two select bits a level."""
        return bits * math.ceil(select_bits / 2)

    def memory_lut(self, bits: int, depth: int) -> float:
        """Two-port LUT memory: 14 bits, 32 deep, in 8 LUTs (RAM32M16)."""
        return bits * math.ceil(depth / 32) * 8 / 14

    def vector_lut(self, floats: int) -> float:
        return self.vector_lut_fixed + floats * self.vector_lut_per_float

    def lane_ff(self, table_bits: int) -> float:
        return 5 * table_bits

    def port_lut(self, axi_bits: int) -> float:
        return self.port_lut_256 * axi_bits / 256

    def port_bram(self, axi_bits: int) -> int:
        """Beats of the read bursts under way."""
        return bram_of(axi_bits, BURST_BEATS * BURSTS_UNDER_WAY)

    def port_ff(self, axi_bits: int) -> float:
        return self.port_ff_256 * axi_bits / 256


def uram_of(bits: int, depth: int) -> int:
    """URAMs of a buffer of `depth` words of `bits` bits."""
    return ceil_div(bits, URAM_BITS) * ceil_div(depth, URAM_WORDS)


def bram_of(bits: int, depth: int) -> int:
    """BRAM36s of a buffer, in whichever of 512 x 72 or 1024 x 36 takes fewer."""
    wide = ceil_div(bits, BRAM_BITS) * ceil_div(depth, BRAM_WORDS)
    return min(wide, ceil_div(bits, BRAM_BITS // 2) * ceil_div(depth, 2 * BRAM_WORDS))


def _buffer(costs: UnitCosts, bits: int, depth: int) -> dict[str, Number]:
    """A FIFO or kept array: LUT memory where shallow, else BRAM."""
    if depth <= LUTRAM_DEPTH:
        return {"lut": costs.memory_lut(bits, depth), "bram36": 0}
    return {"lut": 30, "bram36": bram_of(bits, depth)}


@dataclass(frozen=True)
class Block:
    """Instances of one function of the kernel library, as a synthesis report names it."""

    function: str
    count: Quantity
    each: Resources

    @property
    def all(self) -> Resources:
        return self.each.times(self.count)


class EngineResources:
    """Blocks of one engine, by the function that describes them in fpga/hls.

    lanes    beats of activations in and out in a cycle
    alone    a kernel of its own, whose activations go through memory; else part of a decoder
    """

    def __init__(
        self,
        design: EngineDesign,
        costs: UnitCosts | None = None,
        lanes: int = 1,
        alone: bool = False,
    ):
        self.design = design
        self.costs = costs or UnitCosts()
        self.lanes = lanes
        self.floats = design.floats * lanes
        self.alone = alone

    def blocks(self) -> list[Block]:
        design = self.design
        channels = given("channels", design.config.channels)
        one = given("instances", 1)
        blocks = [
            Block("lookup", channels, self._lookup()),
            Block("read_bursts", channels, self._bursts()),
            Block("unpack_words", channels, self._unpack()),
            Block("accumulate", one, self._accumulate()),
            Block("quantize_input", one, self._quantize_input()),
            *([Block("rotate_input", one, self._rotate_input())] if design.lut.rotation else []),
            Block("ports", given("ports", self._ports()), self._port()),
            Block(
                "read_parameters",
                given("parameter_ports", design.config.parameter_ports),
                self._read_parameters(),
            ),
        ]
        if design.search:
            ports = given("centroid_ports", design.centroid_ports)
            blocks.append(Block("centroid_search", channels, self._search()))
            blocks.append(Block("read_centroids", ports, self._read_centroids()))
        rows = "rows_online" if design.online_rows else "rows_from_tables"
        blocks.append(Block(rows, channels, self._rows()))
        return blocks

    def total(self) -> Resources:
        return add_up({block.function: block.all for block in self.blocks()})

    # Blocks ------------------------------------------------------------------------------------

    def _logic(self, lut: Number, **rest: Number) -> Resources:
        """Operators to generated logic: HLS overhead, registers beside it."""
        overhead = given("hls_overhead", self.costs.hls_overhead, "", "fitted")
        share = given("ff_per_lut", self.costs.ff_per_lut, "", "assumed")
        logic = (_quantity(lut).named("operators", "lut") * overhead).named("logic", "lut")
        ff = rest.pop("ff", None)
        return Resources.of(lut=logic, ff=logic * share if ff is None else ff, **rest)

    def _lane_bits(self) -> int:
        return self.design.lut.table_bits + bits_for(self.design.chain_channels)

    def _max_subs(self) -> int:
        design = self.design
        widest = max((design.subs(kind) for kind in design.kinds), default=4)
        return max(widest, ceil_div(design.config.max_outputs, design.lanes))

    def _max_groups(self) -> int:
        return ceil_div(self._max_subs(), self.design.subs_per_group)

    def _lookup(self) -> Resources:
        """A multiplexer over the row for every lane, packed sums in DSPs, kept indices."""
        design, lut, costs = self.design, self.design.lut, self.costs
        lanes = given("lanes", design.lanes)
        mux = given(
            "mux_lut", costs.mux_lut(lut.weight_centroids, lut.table_bits), "lut", "one of a row"
        )
        code_bits = bits_for(lut.weight_centroids)
        kept = given(
            "kept_indices", costs.memory_lut(design.lanes * code_bits, self._max_subs()), "lut"
        )
        per_word = given("lanes_per_dsp", DSP_BITS // self._lane_bits())
        lane_ff = given("lane_ff", costs.lane_ff(lut.table_bits), "ff", "fitted")
        return self._logic(
            lanes * mux + kept,
            ff=lanes * lane_ff,
            dsp=math.ceil(design.lanes / per_word.value) * given("dsp_per_word", 1),
        )

    def _search(self) -> Resources:
        """Multipliers of squares in DSPs; subtraction, sum, largest, comparison and selection in
        LUTs.
        """
        design, lut = self.design, self.design.lut
        chebyshev = lut.metric == "chebyshev"
        centroid = 8 + STAGE_BITS * (lut.act_stages - 1)
        act = ACT_BITS + STAGE_BITS * (lut.act_stages - 1) + (lut.act_stages > 1)
        if chebyshev:  # difference and magnitude; the larger of two is a comparison and a choice
            term = score = max(act, centroid) + 1
            operators = lut.vec_len * 2 * term + (lut.vec_len - 1) * term
        else:
            term = max(act + 1, centroid) + 1
            score = centroid + term + bits_for(lut.vec_len)
            operators = lut.vec_len * term + (lut.vec_len - 1) * score
        best = score + bits_for(lut.act_centroids) + 8 * lut.vec_len
        element = given(
            "element_lut",
            operators + score / 2 + best / 2,
            "lut",
            f"terms of {term} bits, scores of {score}",
        )
        pes = given("elements", design.pes)
        kept = design.search_passes * design.pes * 8 * lut.vec_len
        select = given("kept_centroids", kept / 4 if design.search_passes > 1 else 0, "lut")
        rest = self.costs.memory_lut(act * lut.vec_len, design.config.max_tokens)
        return self._logic(
            pes * element + select + given("rest_buffer", rest if lut.act_stages > 1 else 0, "lut"),
            dsp=pes * given("multipliers_per_element", 0 if chebyshev else lut.vec_len),
        )

    def _read_centroids(self) -> Resources:
        design = self.design
        wide = design.centroid_packing.beats_per_word * design.config.axi_bits
        depth = 2 * design.search_passes
        word = design.pes * 8 * design.lut.vec_len
        fifo = _buffer(self.costs, word, depth)
        share = given("centroid_share", design.centroid_share)
        lut = wide / 4 + share * _quantity(fifo["lut"]).named("fifo_lut", "lut")
        return self._logic(
            lut, bram36=share * _quantity(fifo["bram36"]).named("fifo_bram", "bram36")
        )

    def _read_parameters(self) -> Resources:
        """A FIFO of beats, and its part of a row on the way to words."""
        bits = self.design.config.axi_bits
        fifo = _buffer(self.costs, bits, self.design.config.beat_fifo)
        return self._logic(fifo["lut"] + bits, bram36=fifo["bram36"])

    def _bursts(self) -> Resources:
        """FIFOs behind every channel: two of beats, one of the words of indices read ahead."""
        config, costs, design = self.design.config, self.costs, self.design
        held = max(1, config.index_fifo // self._max_subs()) if design.online_rows else 1
        lead = max(config.beat_fifo, self._lead_beats() * held)
        parts = [_buffer(costs, config.axi_bits, depth) for depth in (config.beat_fifo, lead)]
        parts.append(_buffer(costs, design.index_packing.bits, config.index_fifo))
        return self._logic(
            sum(value_of(part["lut"]) for part in parts) / costs.hls_overhead + 200,
            bram36=sum(value_of(part["bram36"]) for part in parts),
        )

    def _lead_beats(self) -> int:
        """Beats of rows or codebooks that a channel takes in before its first index."""
        design = self.design
        groups = self._max_groups()
        if design.online_rows:
            shifts = design.lut.act_stages * design.shift_packing.beats(groups)
            return shifts + design.codebook_packing.beats(groups)
        return design.row_packing.beats(groups)

    def _unpack(self) -> Resources:
        design = self.design
        word = design.index_packing
        return self._logic(
            self.costs.mux_lut(word.per_beat, word.bits) + word.beats_per_word * 32,
            ff=word.beats_per_word * design.config.axi_bits + word.bits,
        )

    def _rows(self) -> Resources:
        design, lut, costs = self.design, self.design.lut, self.costs
        if not design.online_rows:
            depth = lut.act_centroids * design.row_packing.beats(self._max_groups())
            table = given("table_uram", uram_of(design.config.axi_bits, depth), "uram")
            select = costs.mux_lut(design.row_packing.per_beat, design.row_packing.bits)
            return self._logic(select + 150, uram=given("buffers", 2) * table)
        interval = max(design.codebook_packing.beats_per_word, min(4, design.subs_per_group))
        width = 16 + bits_for(lut.vec_len)
        entry = given(
            "entry_lut",
            costs.shifter_lut(width, 5) + 2 * width + lut.table_bits + width,
            "lut",
            "rounding, shift and saturation",
        )
        entries = given("entries_at_once", ceil_div(lut.weight_centroids, interval))
        bits = design.config.axi_bits
        kept = costs.memory_lut(lut.weight_centroids * lut.vec_len * 8, self._max_groups())
        shifts = 2 * lut.act_stages * design.shift_packing.beats(self._max_groups())
        routed = costs.memory_lut(bits, 4) + costs.memory_lut(bits, shifts)
        return self._logic(
            entries * entry + given("kept_codebooks", kept + routed, "lut"),
            dsp=entries * given("vec_len", lut.vec_len),
        )

    def _accumulate(self) -> Resources:
        design, costs, config = self.design, self.costs, self.design.config
        lanes, chains = given("lanes", design.lanes), given("chains", design.chains)
        term = given("shift_and_add", costs.shifter_lut(32, 5) + 32 + 12, "lut")
        floats = given("floats_per_cycle", self.floats)
        select = costs.mux_lut(ceil_div(design.lanes, self.floats), 32)
        output = given("float_output", select + costs.int_to_float_lut, "lut")
        depth = config.max_tokens * self._max_subs()
        store = given("sums_uram", uram_of(32 * design.lanes, depth), "uram", f"{depth} words")
        bias = any(kind.bias for kind in design.kinds)
        words = self._max_subs() * ceil_div(design.lanes, self.floats)
        scales = 2 * bram_of(32 * self.floats, words)  # as they come, and kept
        multiplies = 2 if design.token_scale else 1
        return self._logic(
            lanes * chains * term + lanes * 32 + floats * output,
            dsp=floats * given("float_operations", multiplies + bias) * costs.float_dsp,
            bram36=given("scale_buffers", 1 + bias) * scales,
            uram=store,
        )

    def _quantize_input(self) -> Resources:
        design, config, costs = self.design, self.design.config, self.costs
        floats = given("floats_per_cycle", self.floats)
        act = ACT_BITS + STAGE_BITS * (design.lut.act_stages - 1) if design.search else 8
        in_beats = max((design.in_beats(kind) for kind in design.kinds), default=4)
        in_words = ceil_div(in_beats, self.lanes)
        copies = given("copies", ceil_div(config.gather_lanes, 2))
        word = act * self.floats
        store = given("store_uram", uram_of(word, config.max_tokens * in_words), "uram")
        lanes = given("gather_lanes", config.gather_lanes)
        pick = given("pick_lut", costs.mux_lut(self.floats, act) + 40, "lut")
        slots = config.channels * design.lut.vec_len * act
        buffers = 2 * bram_of(32 * self.floats, in_words)
        return self._logic(
            floats * given("round_lut", 120, "lut", "assumed") + lanes * pick + slots / 2,
            dsp=floats
            * given("float_operations", 3 if design.token_scale else 2)
            * costs.float_dsp,
            bram36=buffers,
            uram=copies * store,
        )

    def _rotate_input(self) -> Resources:
        """An addition of every float in every step. Words of longer runs are held twice, as they
        come and until their pair is out, in memory made of LUTs: eight hold 64 words of 7 bits."""
        rotation, word = self.design.lut.rotation, 32 * self.floats
        steps = given("rotation_steps", rotation.bit_length() - 1)
        spans = [1 << n for n in range((rotation // self.floats).bit_length() - 1)]
        rows = sum(-(-span // 64) for span in spans)
        held = given("held_lut", 2 * rows * word * 8 / 7, "lut")
        floats = given("floats_per_cycle", self.floats)
        control = given("step_lut", 2 * word, "lut", "assumed")
        return self._logic(held + steps * control, dsp=steps * floats * self.costs.float_dsp)

    def _ports(self) -> int:
        config = self.design.config
        own = config.channels + self.design.centroid_ports + config.parameter_ports
        return own + (2 if self.alone else 0)

    def _port(self) -> Resources:
        axi_bits, costs = self.design.config.axi_bits, self.costs
        return Resources.of(
            lut=given("port_lut", costs.port_lut(axi_bits), "lut", "fitted"),
            ff=given("port_ff", costs.port_ff(axi_bits), "ff", "fitted"),
            bram36=given("burst_buffer", costs.port_bram(axi_bits)),
        )


def utilisation(used: Resources, device: Device) -> dict[str, float]:
    """Share of the device by resource."""
    have = {name: getattr(device, name) for name in NAMES}
    return {name: getattr(used, name).value / have[name] for name in NAMES}


def too_large(used: Resources, device: Device, limit: float = 1.0) -> list[str]:
    """What exceeds `limit` of the device, in words."""
    shares = utilisation(used, device)
    return [
        f"{name}: {shares[name]:.0%} of the {getattr(device, name):,} of {device.name}"
        for name in NAMES
        if shares[name] > limit
    ]


def rows_of(parts: Iterable[tuple[str, Resources]]) -> dict[str, Any]:
    """Resources by block as plain numbers."""
    return {name: block.to_dict() for name, block in parts}
