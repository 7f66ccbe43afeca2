"""A design in words: where its block diagrams are, and what lies behind every memory port."""

from __future__ import annotations

from pathlib import Path

from codegen.manifest import Design, read_design
from codegen.render import Connection, connections, decoder_connections
from fpga.decoder_design import PROJECTIONS, DecoderDesign
from fpga.schedule import describe_turns


def explain(folder: str | Path) -> list[str]:
    """Lines for `lutllm export --explain`."""
    design = read_design(folder)
    kernels = [engine.name for engine in design.engines]
    lines = []
    if design.decoder is not None:
        decoder = design.decoder.design
        kernels.insert(0, decoder.name)
        lines += _schedule(decoder)
        lines += _memory_map(f"{decoder.name}, the whole model", _decoder_map(design), design)
    engines = ", ".join(engine.name for engine in design.engines)
    own = connections(design.engines, design.device)
    lines += _memory_map(f"{engines}, single linears", own, design)
    diagrams = [f"block diagram of {name}: {design.path / name}.svg" for name in kernels]
    return [*diagrams, "", *lines]


def _schedule(decoder: DecoderDesign) -> list[str]:
    """What the engines run in a layer, and the step beside it."""
    most = decoder.max_tokens
    return [
        f"schedule of {decoder.name}: up to {most} tokens take {', '.join(PROJECTIONS)} of every "
        "layer in turn;",
        f"up to {2 * most} do in two parts, A and B, each step beside the engine's work on the "
        "other part:",
        *(f"  {line}" for line in describe_turns()),
        "",
    ]


def _decoder_map(design: Design) -> list[Connection]:
    assert design.decoder is not None
    return decoder_connections(design.decoder.design, design.device)


def _memory_map(title: str, wanted: list[Connection], design: Design) -> list[str]:
    """Port by port: arguments and bytes behind it, and the share of its region."""
    by_port: dict[str, list[Connection]] = {}
    for connection in wanted:
        by_port.setdefault(connection.port, []).append(connection)
    lines = [f"memory of {title}: regions of {design.device.region_bytes >> 20} MiB"]
    for port, behind in by_port.items():
        total = sum(c.bytes for c in behind)
        names = ", ".join(f"{c.argument} {c.bytes:,}" for c in behind)
        lines.append(f"  {port:<6} {total / design.device.region_bytes:6.1%}  {names}")
    return [*lines, ""]
