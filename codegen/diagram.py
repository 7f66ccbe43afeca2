"""Block diagrams of an engine and of the decoder, for `templates/design.svg.j2`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fpga.decoder_design import DecoderDesign
from fpga.design import EngineDesign
from fpga.schedule import STEPS, TURNS, Turn, beside

BOX_WIDTH, BOX_HEIGHT = 172, 46
COLUMN, ROW = 256, 80
MARGIN = 24


@dataclass(frozen=True)
class Box:
    """A process or a memory port, at a column and row of the diagram."""

    name: str
    text: str
    column: int
    row: int
    kind: str = "process"

    @property
    def x(self) -> int:
        return MARGIN + self.column * COLUMN

    @property
    def y(self) -> int:
        return 2 * MARGIN + 16 + self.row * ROW

    @property
    def middle(self) -> tuple[int, int]:
        return self.x + BOX_WIDTH // 2, self.y + BOX_HEIGHT // 2


@dataclass(frozen=True)
class Arrow:
    """A stream from one box to another, and what an element of it is."""

    source: Box
    target: Box
    text: str

    @property
    def ends(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2: from border to border, down or up a column, or to the nearer side."""
        a, b = self.source, self.target
        if a.column == b.column:
            down = b.row > a.row
            start = a.y + (BOX_HEIGHT if down else 0)
            return a.middle[0], start, b.middle[0], b.y + (-4 if down else BOX_HEIGHT + 4)
        if a.column > b.column:
            return a.x, a.middle[1], b.x + BOX_WIDTH + 4, b.middle[1]
        return a.x + BOX_WIDTH, a.middle[1], b.x - 4, b.middle[1]


@dataclass(frozen=True)
class Diagram:
    title: str
    boxes: list[Box]
    arrows: list[Arrow]

    @property
    def width(self) -> int:
        return max(box.x for box in self.boxes) + BOX_WIDTH + MARGIN

    @property
    def height(self) -> int:
        return max(box.y for box in self.boxes) + BOX_HEIGHT + 2 * MARGIN


def _row_text(engine: EngineDesign) -> str:
    if engine.online_rows:
        return f"{engine.lut.weight_centroids} dot products a row"
    return f"{engine.lut.act_centroids} rows of {engine.lut.weight_centroids} entries"


def engine_diagram(engine: EngineDesign) -> Diagram:
    """Ports on the left and right, one channel of each chain in full."""
    config, lut = engine.config, engine.lut
    x = Box("x", "float32 input", 0, 0, "port")
    ports = "" if config.parameter_ports == 1 else f"{config.parameter_ports} x "
    parameters = Box("parameters", f"{ports}scales, exponents, gather", 0, 1, "port")
    memory = Box("channel ports", f"{config.channels} x {config.axi_bits} bits", 0, 3, "port")
    quantize = Box("quantize_input", f"{engine.floats} values a cycle", 1, 0)
    gather = Box(
        "gather", f"{config.gather_lanes} of {config.channels * lut.vec_len} a cycle", 2, 0
    )
    bursts = Box("plan, bursts", f"{config.read_ahead} bursts under way", 1, 3)
    rows = Box("rows", _row_text(engine), 2, 3)
    lookup = Box(
        "lookup",
        f"{engine.lanes} outputs a cycle",
        3,
        3,
    )
    accumulate = Box(
        "accumulate", f"chains of {engine.chain_channels} channels: {engine.chains}", 4, 3
    )
    y = Box("y", "float32 results", 4, 1, "port")
    boxes = [x, parameters, memory, quantize, gather, bursts, rows, lookup, accumulate, y]
    arrows = [
        Arrow(x, quantize, "beats"),
        Arrow(parameters, quantize, ""),
        Arrow(quantize, gather, "integers"),
        Arrow(memory, bursts, "beats"),
        Arrow(bursts, rows, "tables" if not engine.online_rows else "codebooks"),
        Arrow(rows, lookup, "rows"),
        Arrow(lookup, accumulate, "sums"),
        Arrow(accumulate, y, "results"),
    ]
    if engine.search:
        centroids = Box(
            "centroid ports", f"{engine.centroid_ports} x {config.axi_bits} bits", 0, 2, "port"
        )
        search = Box(
            "search",
            f"{engine.pes} elements, {engine.search_passes} cycles a code",
            2,
            2,
        )
        boxes += [centroids, search]
        arrows += [
            Arrow(gather, search, "positions"),
            Arrow(centroids, search, "centroids"),
            Arrow(search, rows, "codes" if not engine.online_rows else "centroids"),
        ]
    else:
        arrows.append(Arrow(gather, rows, "positions"))
    return Diagram(f"{engine.name}: {config.channels} channels", boxes, arrows)


def decoder_diagram(decoder: DecoderDesign) -> Diagram:
    """The ring of engines and steps with the memory behind them; below it the turns of a layer."""
    model, config = decoder.model, decoder.config
    heads = f"{model.num_attention_heads} heads, {model.num_key_value_heads} of keys"
    vocab = f"{config.vocab_ports} ports: {decoder.head_kind} rows"
    caches = f"{2 * config.kv_ports} ports: {decoder.context} positions"
    rows = f"rows near {decoder.slices} coarse slices" if decoder.screened else "every row"
    words = Box("vocab_*", vocab, 0, 0, "port")
    embed = Box("embed", "one row a token", 1, 0)
    residual = Box("residual", f"{model.hidden_size} values a token", 2, 0)
    norm = Box("norm", "RMSNorm", 3, 0)
    inputs = Box("inputs", "vectors in turn", 4, 0)
    stored = Box("key, value caches", caches, 1, 1, "port")
    attention = Box("rotary, attention", heads, 3, 1)
    gating = Box("SwiGLU", f"{model.intermediate_size} values", 3, 2)
    engine = Box(", ".join(e.name for e in decoder.engines), "reads ahead", 4, 3)
    ports = Box("engine ports", "tables, indices, scales", 5, 3, "port")
    results = Box("results", "to the steps that take them", 2, 3)
    head = Box("head", f"{model.vocab_size} words, {rows}", 5, 0)
    chosen = Box("arg-max", "the next token", 5, 1)
    boxes = [words, embed, residual, norm, inputs, stored, attention, gating, engine, ports]
    boxes += [results, head, chosen]
    arrows = [
        Arrow(words, embed, ""),
        Arrow(embed, residual, ""),
        Arrow(residual, norm, "words"),
        Arrow(norm, inputs, "normed"),
        Arrow(stored, attention, ""),
        Arrow(attention, inputs, ""),
        Arrow(gating, inputs, ""),
        Arrow(inputs, engine, "x"),
        Arrow(ports, engine, ""),
        Arrow(engine, results, "y"),
        Arrow(results, residual, "o, down"),
        Arrow(results, attention, ""),
        Arrow(results, gating, ""),
        Arrow(inputs, head, "final norm"),
        Arrow(head, chosen, ""),
    ]
    turns = _turn_boxes(decoder)
    arrows += [Arrow(a, b, "") for a, b in itertools.pairwise(turns) if a.row == b.row]
    title = (
        f"{decoder.name}: {model.num_hidden_layers} layers in a ring; below, the turns of a layer "
    )
    return Diagram(f"{title}of a prefill in two parts A and B", boxes + turns, arrows)


def _turn_boxes(decoder: DecoderDesign) -> list[Box]:
    """What an engine runs, and under it the step of the other part that runs beside."""
    first_row, per_row = 5, len(TURNS) // 2
    return [
        Box(
            f"{turn.projection} {'AB'[turn.part]}{', last layer' if turn.back else ''}",
            f"{_owners(decoder, turn.projection)}beside {_step_name(beside(at))}",
            at % per_row,
            first_row + at // per_row,
        )
        for at, turn in enumerate(TURNS)
    ]


def _step_name(turn: Turn) -> str:
    return f"{STEPS[turn.projection].split()[-1]} {'AB'[turn.part]}"


def _owners(decoder: DecoderDesign, name: str) -> str:
    """Which engines run a projection in some layer, where there are several."""
    if len(decoder.engines) == 1:
        return ""
    shapes = [s for s in decoder.model.linears() if s.name.endswith(f".{name}")]
    owners = [e.name for e in decoder.engines if any(s.name in e.slots for s in shapes)]
    return ", ".join(owners) + "; "
