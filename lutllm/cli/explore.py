"""lutllm explore: the best engine for a budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, Result, add_command, natural, non_negative_number, table
from lutllm.cli.estimate import HEAD_HELP, add_target, grid, narrow_tables
from lutllm.config import QuantConfig
from lutllm.recipes import HEAD_CHOICES, RECIPES, recipe, with_head

#: One recipe of either scheme.
DEFAULT_RECIPES = ("paper", "tiny")
#: Rows of the front that people see; --json has all.
_SHOWN = 12


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "explore", "the best FPGA design for a budget", run)
    add_target(parser)
    budget = parser.add_argument_group("budget")
    budget.add_argument("--decode-tokens-per-s", type=non_negative_number, default=0, metavar="X")
    budget.add_argument("--prefill-ms", type=non_negative_number, default=0, metavar="X")
    budget.add_argument(
        "--max-lut",
        type=non_negative_number,
        default=0.8,
        metavar="FRACTION",
        help="of LUTs and of any other resource of the device (default 0.8)",
    )
    budget.add_argument(
        "--max-perplexity-ratio",
        type=non_negative_number,
        default=0,
        metavar="X",
        help="of the quantized to the float model",
    )
    parser.add_argument(
        "--accuracy",
        nargs="+",
        default=(),
        metavar="FILE",
        help="where perplexity ratios come from: artifacts, their report.json, JSON tables "
        "{recipe: ratio} or a recorded model (default: an artifact's own, else SmolLM2's)",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the design chosen")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="image of the front (matplotlib)")
    space = parser.add_argument_group("space")
    space.add_argument(
        "--recipe",
        action="append",
        metavar="NAME",
        help=f"{', '.join(RECIPES)}; may be repeated (default {' and '.join(DEFAULT_RECIPES)})",
    )
    space.add_argument("--table-bits", type=natural, metavar="N", help="of all linears")
    space.add_argument("--head", choices=HEAD_CHOICES, help=HEAD_HELP)
    space.add_argument(
        "--clock-mhz",
        action="append",
        type=non_negative_number,
        metavar="X",
        help="may be repeated (default: the device's)",
    )


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    names = args.recipe or DEFAULT_RECIPES
    found = api.explore(
        args.source,
        {name: _quant(name, args) for name in names},
        decode_tokens_per_s=args.decode_tokens_per_s,
        prefill_ms=args.prefill_ms,
        max_share=args.max_lut,
        max_perplexity_ratio=args.max_perplexity_ratio,
        accuracy=args.accuracy,
        device=args.device,
        prompt_tokens=args.prompt_tokens,
        context=args.context,
        clocks_mhz=args.clock_mhz or (),
        out=args.out,
        plot=args.plot,
    )
    return Outcome(found, _text(found, args.out), 0 if found["chosen"] else 1)


def _quant(name: str, args: argparse.Namespace) -> QuantConfig:
    """The quantization of a recipe with the options of the space."""
    base = recipe(name)
    quant = narrow_tables(QuantConfig(base.config, base.overrides), args.table_bits)
    return with_head(quant, args.head or base.head)


def _text(found: Result, out: Path | None) -> str:
    rows = [
        ("device", found["device"]),
        ("tried", f"{found['tried']} designs, {found['fitting']} fit, {len(found['front'])} best"),
    ]
    rows += _accuracy(found["accuracy"])
    chosen = found["chosen"]
    if chosen is None:
        rows.append(("chosen", "none is within the budget"))
        for key in ("fastest_decode", "fastest_prefill"):
            if found[key]:
                rows.append((key.replace("_", " "), _speed(found[key])))
    else:
        rows += [
            ("chosen", f"{chosen['quantization']}, head: {chosen['head']}"),
            ("speed", _speed(chosen)),
            ("power", f"{chosen['power_w']:.0f} W, {chosen['joule_per_token']:.3g} J/token"),
            (
                "ratio",
                _ratio(chosen, "perplexity {:.4g} times that of the float model", "not known"),
            ),
        ]
        if out is not None:
            rows.append(("design", str(out)))
    return f"{table(rows)}\n\n{_front(found)}" if found["front"] else table(rows)


def _accuracy(known: Result) -> list[tuple[str, str]]:
    """Where perplexity ratios come from, and of what there is none."""
    rows = [("accuracy", f"ratios {known['source']}")] if known["ratios"] else []
    if known["unknown"]:
        names = ", ".join(known["unknown"])
        rows.append(
            ("not known", f"accuracy of {names}: within no limit, compared with itself only")
        )
    return rows


def _ratio(design: Result, known: str, unknown: str) -> str:
    ratio = design["perplexity_ratio"]
    return unknown if ratio is None else known.format(ratio)


def _speed(design: Result) -> str:
    return (
        f"decode {design['decode_ms_per_token']:.3g} ms/token, prefill "
        f"{design['prefill_ms']:.4g} ms at {design['clock_mhz']:g} MHz"
    )


def _front(found: Result) -> str:
    heads = ("recipe", "rows", "ratio", "channels", "lanes", "tokens", "MHz", "decode ms")
    rows: list[tuple[str, ...]] = [(*heads, "prefill ms", "J/token", "W", "LUT", "DSP", "URAM")]
    shown = found["front"]
    step = max(1, -(-len(shown) // _SHOWN))
    picked = shown[::step]
    if found["chosen"] and found["chosen"] not in picked:
        picked = [found["chosen"], *picked]
    for design in picked:
        engine, used = design["engine"], design["utilisation"]
        mark = "*" if design == found["chosen"] else ""
        rows.append(
            (
                f"{design['quantization']}{mark}",
                engine["rows"],
                _ratio(design, "{:.3f}", "?"),
                str(engine["channels"]),
                str(engine["lanes_per_cycle"]),
                str(engine["max_tokens"]),
                f"{design['clock_mhz']:g}",
                f"{design['decode_ms_per_token']:.2f}",
                f"{design['prefill_ms']:.1f}",
                f"{design['joule_per_token']:.3f}",
                f"{design['power_w']:.0f}",
                *(f"{used[name]:.0%}" for name in ("lut", "dsp", "uram")),
            )
        )
    return grid(rows, left=2)
