"""lutllm estimate: speed, size and fit on an FPGA before synthesis."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from lutllm.cli.common import (
    Outcome,
    Result,
    add_command,
    format_bytes,
    natural,
    non_negative_number,
    positive,
    table,
)
from lutllm.config import METRICS, SCHEMES, LutConfig, QuantConfig
from lutllm.recipes import DEFAULT_RECIPE, HEAD_CHOICES, RECIPES, recipe, with_head

_SIZES = (
    "vec_len",
    "act_centroids",
    "weight_centroids",
    "group_size",
    "codebook_positions",
    "act_stages",
    "weight_stages",
    "rotation",
)


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "estimate", "speed, size and fit on an FPGA", run)
    add_target(parser)
    parser.add_argument("--design", type=Path, metavar="FILE", help=DESIGN_HELP)
    parser.add_argument(
        "--clock-mhz",
        type=non_negative_number,
        default=0.0,
        metavar="X",
        help="of the kernels (default: the design's, else the device's)",
    )
    kernel = parser.add_argument_group("decoder kernel")
    kernel.add_argument(
        "--vector-lanes", type=positive, metavar="N", help="beats of vectors in a cycle"
    )
    kernel.add_argument("--vocab-ports", type=positive, metavar="N", help="for embedding and head")
    kernel.add_argument("--kv-ports", type=positive, metavar="N", help="for keys, and for values")
    kernel.add_argument("--query-tokens", type=positive, metavar="N", help="that share a key read")
    parser.add_argument(
        "--compare", type=Path, metavar="XML", help="a Vitis HLS report (csynth.xml) of the kernel"
    )
    parser.add_argument("--explain", action="store_true", help="print the formula of every number")
    add_quantization(parser)


DESIGN_HELP = "choices of engine, decoder kernel and clock, as lutllm explore writes them"
HEAD_HELP = (
    "source: as in the checkpoint; int8: int8 rows; lut, engine: a LUT linear before them, of its "
    "own kind or coded like the layers (default: the recipe's)"
)


def add_target(parser: argparse.ArgumentParser) -> None:
    """What is estimated, and for which work."""
    parser.add_argument(
        "source",
        metavar="ART|CONFIG|GGUF",
        help="artifact, folder with config.json, config.json, GGUF file, or a known model like "
        "qwen3-1.7b",
    )
    parser.add_argument("--device", default="v80", metavar="NAME", help="default v80")
    parser.add_argument("--prompt-tokens", type=positive, default=128, metavar="N")
    parser.add_argument(
        "--context", type=positive, default=160, metavar="N", help="positions seen by a decode step"
    )


def add_quantization(parser: argparse.ArgumentParser) -> None:
    """Quantization of a source that is not an artifact."""
    group = parser.add_argument_group("quantization", "of a model that is not an artifact yet")
    names = ", ".join(RECIPES)
    group.add_argument("--recipe", metavar="NAME", help=f"{names} (default {DEFAULT_RECIPE})")
    group.add_argument("--scheme", choices=SCHEMES)
    group.add_argument("--metric", choices=METRICS, help="of the centroid search")
    for name in _SIZES:
        group.add_argument(f"--{name.replace('_', '-')}", type=natural, metavar="N")
    group.add_argument("--table-bits", type=natural, metavar="N", help="of all linears")
    group.add_argument("--head", choices=HEAD_CHOICES, help=HEAD_HELP)


def quantization(args: argparse.Namespace) -> QuantConfig | None:
    """The quantization asked for; None where no option was given."""
    names = ("scheme", "metric", *_SIZES)
    changes = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.recipe is None and args.head is None and args.table_bits is None and not changes:
        return None
    base = recipe(args.recipe or DEFAULT_RECIPE)
    default = LutConfig.from_dict({**dataclasses.asdict(base.config), **changes})
    quant = narrow_tables(QuantConfig(default, base.overrides), args.table_bits)
    return with_head(quant, args.head or base.head)


def narrow_tables(quant: QuantConfig, table_bits: int | None) -> QuantConfig:
    """`quant` with tables of so many bits in all linears; None leaves it as it is."""
    if table_bits is None:
        return quant
    overrides = {
        pattern: {k: v for k, v in changes.items() if k != "table_bits"}
        for pattern, changes in quant.overrides.items()
    }
    default = quant.default.with_table_bits(table_bits)
    return dataclasses.replace(quant, default=default, overrides=overrides)


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    found = api.estimate(
        args.source,
        quantization(args),
        args.design,
        device=args.device,
        prompt_tokens=args.prompt_tokens,
        context=args.context,
        vector_lanes=args.vector_lanes,
        vocab_ports=args.vocab_ports,
        kv_ports=args.kv_ports,
        query_tokens=args.query_tokens,
        clock_mhz=args.clock_mhz,
        csynth=args.compare,
        explained=args.explain,
    )
    return Outcome(found, _text(found), 0 if found["fits"] else 1)


def _text(found: Result) -> str:
    parts = [_headline(found), _linears(found), _blocks(found)]
    if "comparison" in found:
        parts.append(_comparison(found["comparison"]))
    if "explanation" in found:
        parts.append("\n".join(found["explanation"]).rstrip())
    return "\n\n".join(parts)


def _headline(found: Result) -> str:
    decode = _shares(found["decode_parts_ms"])
    prefill = _shares(found["prefill_parts_ms"])
    memory = (
        f"{format_bytes(found['memory_bytes'])} of "
        f"{format_bytes(found['memory_capacity_bytes'])}; "
        f"{format_bytes(found['kv_bytes_per_token'])} a position, up to {found['max_context']:,}"
    )
    rows = [
        ("device", f"{found['device']}, {found['clock_mhz']:g} MHz"),
        (
            "decode",
            f"{found['decode_ms_per_token']:.3g} ms/token, {found['tokens_per_s']:.0f} tokens/s "
            f"at {found['context']} positions, head: {found['head']}",
        ),
        ("  goes to", decode),
        ("  grows by", f"{found['decode_ms_per_1024_positions']:.3g} ms per 1,024 positions"),
        ("prefill", f"{found['prefill_ms']:.4g} ms for {found['prompt_tokens']} tokens"),
        ("  goes to", prefill),
        ("bottleneck", f"{found['bottleneck']}; prefill: {found['prefill_bottleneck']}"),
        (
            "traffic",
            f"{found['decode_bytes'] / 1e6:.0f} MB/token, {found['decode_gb_per_s']:.0f} GB/s",
        ),
        ("memory", memory),
        ("power", f"{found['power_w']:.0f} W, {found['joule_per_token']:.3g} J/token"),
        ("fits", "yes" if found["fits"] else "NO"),
    ]
    rows += [("", problem) for problem in found["problems"]]
    rows += [("warning", warning) for warning in found["warnings"]]
    return table(rows)


def _shares(parts_ms: dict[str, float]) -> str:
    whole = sum(parts_ms.values())
    ordered = sorted(parts_ms.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {ms / whole:.0%}" for name, ms in ordered if ms > 0.005 * whole)


def _linears(found: Result) -> str:
    """Cycles of every projection, once a layer."""
    rows: list[tuple[str, ...]] = [
        ("linear", "call", "mode", "bound", "step", "stream", "fill", "cycles")
    ]
    for linear in found["linears"]:
        for phase in ("decode", "prefill"):
            call = linear[phase]
            numbers = [f"{call[k]:,}" for k in ("step", "stream", "fill", "cycles")]
            rows.append((linear["name"], phase, call["mode"], call["bound"], *numbers))
    return grid(rows, left=4)


def _blocks(found: Result) -> str:
    names = ("lut", "ff", "dsp", "bram36", "uram")
    rows: list[tuple[str, ...]] = [("block", *names)]
    rows += [
        (block, *(f"{used[name]:,}" for name in names)) for block, used in found["blocks"].items()
    ]
    rows.append(("total", *(f"{found['resources'][name]:,}" for name in names)))
    rows.append(("of the device", *(f"{found['utilisation'][name]:.1%}" for name in names)))
    return grid(rows, left=1)


def _comparison(comparison: list[Result]) -> str:
    rows: list[tuple[str, ...]] = [("block", "number", "estimate", "tool", "error")]
    for row in comparison:
        error = "" if row["error"] is None else f"{row['error']:+.0%}"
        rows.append(
            (row["block"], row["resource"], f"{row['estimate']:,.0f}", f"{row['tool']:,.0f}", error)
        )
    return grid(rows, left=2)


def grid(rows: list[tuple[str, ...]], left: int) -> str:
    """Aligned columns, the first `left` of them to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
