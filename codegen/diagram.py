"""Block diagrams of an engine and of the decoder, for `templates/design.svg.j2`."""

from __future__ import annotations

from dataclasses import dataclass

from fpga.decoder_design import DecoderDesign
from fpga.design import EngineDesign

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
        """x1, y1, x2, y2: from border to border, along a row or down a column."""
        a, b = self.source, self.target
        if a.row == b.row:
            return a.x + BOX_WIDTH, a.middle[1], b.x - 4, b.middle[1]
        if a.column == b.column:
            down = b.row > a.row
            start = a.y + (BOX_HEIGHT if down else 0)
            return a.middle[0], start, b.middle[0], b.y + (-4 if down else BOX_HEIGHT + 4)
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
    """The schedule of a token from top to bottom, beside the memory that a step reads."""
    model, config = decoder.model, decoder.config
    heads = f"{model.num_attention_heads} heads, {model.num_key_value_heads} of keys"
    vocab = f"{config.vocab_ports} ports: {decoder.head_kind} rows"
    caches = f"{2 * config.kv_ports} ports: {decoder.context} positions"
    norm = ("residual, norm", f"{model.hidden_size} values", "", "")
    screen = [("lm_head", f"{decoder.slices} slices, coarse logits", "engine ports", "tables")]
    steps = [
        ("embed", "one row a token", "vocab_*", vocab),
        norm,
        _projection(decoder, "qkv_proj"),
        ("rotary, attention", heads, "key, value caches", caches),
        _projection(decoder, "o_proj"),
        norm,
        _projection(decoder, "gate_up_proj"),
        ("SwiGLU", f"{model.intermediate_size} values", "", ""),
        _projection(decoder, "down_proj"),
        ("residual, final norm", f"{model.hidden_size} values", "", ""),
        *(screen if decoder.screened else []),
        ("head", f"{model.vocab_size} words", "vocab_*", vocab),
        ("arg-max", "the next token", "", ""),
    ]
    boxes: list[Box] = []
    arrows: list[Arrow] = []
    before: Box | None = None
    for row, (name, text, port, memory) in enumerate(steps):
        box = Box(name, text, 1, row)
        if before:
            arrows.append(Arrow(before, box, ""))
        if port:
            source = Box(port, memory, 0, row, "port")
            boxes.append(source)
            arrows.append(Arrow(source, box, ""))
        boxes.append(box)
        before = box
    title = f"{decoder.name}: from the first norm to down_proj for each of "
    return Diagram(f"{title}{model.num_hidden_layers} layers", boxes, arrows)


def _projection(decoder: DecoderDesign, name: str) -> tuple[str, str, str, str]:
    """The step of a linear: its size, and which engines run it in some layer."""
    shapes = [s for s in decoder.model.linears() if s.name.endswith(f".{name}")]
    owners = [e.name for e in decoder.engines if any(s.name in e.slots for s in shapes)]
    size = f"{shapes[0].in_features} -> {shapes[0].out_features}"
    return name, size, "engine ports", ", ".join(owners)
