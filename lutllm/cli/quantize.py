"""lutllm quantize: a checkpoint becomes an artifact."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from lutllm.cli.common import (
    Outcome,
    Result,
    add_command,
    add_texts,
    artifact_rows,
    format_bytes,
    natural,
    non_negative_number,
    positive,
    table,
)
from lutllm.config import METRICS, SCHEMES, LutConfig, QuantConfig
from lutllm.errors import ConfigError
from lutllm.progress import format_seconds
from lutllm.recipes import (
    AUTO,
    DEFAULT_RECIPE,
    HEAD_CHOICES,
    HEAD_MARGIN,
    RECIPES,
    recipe,
    with_head,
)

_HINT = "; the same command with --resume continues after the last finished layer"
#: option -> the field of LutConfig it sets, and what it is
_SIZES = {
    "vec-len": "channels per position",
    "act-centroids": "activation centroids per codebook",
    "weight-centroids": "weight centroids per codebook",
    "group-size": "output rows that share a weight codebook",
    "codebook-positions": "positions that share a weight codebook; best where inputs are rotated",
    "act-stages": "residual stages of the activation code",
    "weight-stages": "residual stages of the weight code",
    "rotation": "channels of a block that is rotated before coding, a power of two; 0: none",
}


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "quantize", "write a checkpoint as lookup tables", run, _HINT)
    parser.add_argument("source", metavar="SRC", help="Hugging Face folder, GGUF file or hub id")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="folder to write")
    setting = parser.add_argument_group("setting")
    setting.add_argument(
        "--recipe",
        default=DEFAULT_RECIPE,
        metavar="NAME",
        help="; ".join(f"{name}: {r.purpose}" for name, r in RECIPES.items())
        + f" (default {DEFAULT_RECIPE}); {AUTO}: the most accurate within --max-bits, --max-mb",
    )
    setting.add_argument(
        "--max-bits",
        type=non_negative_number,
        metavar="X",
        help=f"of --recipe {AUTO}: bits per weight, codebooks and scales included",
    )
    setting.add_argument(
        "--max-mb",
        type=non_negative_number,
        metavar="X",
        help=f"of --recipe {AUTO}: size of the artifact in MB",
    )
    setting.add_argument(
        "--scheme",
        choices=SCHEMES,
        help="co: code activations and weights; weight: code weights only",
    )
    setting.add_argument(
        "--metric",
        choices=METRICS,
        help="of the search for an activation's centroid: l2: squared distance (default); "
        "chebyshev: largest difference, an FPGA needs no multipliers for it",
    )
    setting.add_argument(
        "--token-scale",
        action=argparse.BooleanOptionalAction,
        help="of scheme co: code activations relative to the largest of their token; scheme weight "
        "always does",
    )
    for option, meaning in _SIZES.items():
        setting.add_argument(f"--{option}", type=int, metavar="N", help=meaning)
    setting.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="PATTERN:FIELD=VALUE",
        help="another value for the linears that match, e.g. '*.down_proj:weight_stages=2'; "
        "may be repeated",
    )
    setting.add_argument(
        "--head",
        choices=HEAD_CHOICES,
        help="embedding and output head: int8, one scale a row (default); source: as they are; "
        "lut: int8, and a LUT linear of 2 index bits that finds the words whose rows are read; "
        "engine: lut with a linear coded like the layers, for an FPGA",
    )
    setting.add_argument(
        "--head-margin",
        type=non_negative_number,
        metavar="X",
        help="of --head lut and engine: logits at most X below the largest are computed from rows "
        f"(default {HEAD_MARGIN:g}; less reads fewer rows)",
    )
    setting.add_argument(
        "--tie-head",
        action="store_true",
        help="store the rows of the head for the embedding as well, where the checkpoint holds "
        "both as roundings of one matrix",
    )
    setting.add_argument("--seed", type=natural, default=0, metavar="N")
    setting.add_argument(
        "--bits",
        type=non_negative_number,
        metavar="X",
        help="bits a weight on average, codebooks and scales included; weight stages of every "
        "linear are then chosen by measured sensitivity",
    )
    text = add_texts(parser)
    text.add_argument(
        "--calib-tokens",
        type=positive,
        metavar="N",
        help="how many of its tokens (default: 32768, or what it has)",
    )
    parser.add_argument(
        "--distill-minutes",
        type=natural,
        default=0,
        metavar="N",
        help="then train codebooks, scales and norms towards the float model for about N minutes",
    )
    parser.add_argument(
        "--plan", action="store_true", help="say whether it works, how long and how large; stop"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    choice = _choice(args)
    config = build_config(args)
    if args.plan:
        if args.bits is not None:
            raise ConfigError("--plan measures nothing; leave out --bits")
        found = api.plan(
            args.source, config, calib_tokens=args.calib_tokens, tie_head=args.tie_head
        )
        found |= choice
        return Outcome(found, _plan_text(found), 0 if found["supported"] else 1)
    if args.bits is not None and args.weight_stages is not None:
        raise ConfigError("--bits chooses the weight stages; leave out --weight-stages")
    if args.out is None:
        raise ConfigError("no output folder; add -o OUT (or --plan to only see the estimate)")
    report = api.quantize(
        args.source,
        args.out,
        config,
        calib=args.calib,
        calib_tokens=args.calib_tokens,
        eval_text=args.eval_text,
        eval_tokens=args.eval_tokens,
        bits=args.bits,
        distill_minutes=args.distill_minutes,
        tie_head=args.tie_head,
        resume=args.resume,
        progress=not args.quiet,
    )
    result = {k: v for k, v in report.items() if k != "layers"} | choice
    return Outcome(result, _text(args.out, report | choice))


def _choice(args: argparse.Namespace) -> Result:
    """With --recipe auto: put a recipe in its place, say why, and return "recipe_choice"."""
    limits = {"max_bits": args.max_bits, "max_mb": args.max_mb}
    if args.recipe != AUTO:
        if any(limit is not None for limit in limits.values()):
            raise ConfigError(f"--max-bits and --max-mb are a budget of --recipe {AUTO}")
        return {}
    if args.override or args.bits is not None or _changes(args):
        raise ConfigError(
            f"--recipe {AUTO} chooses the setting; leave out the options that change it, or name "
            "a recipe"
        )
    from lutllm import api

    choice = api.choose_recipe(args.source, head=args.head, tie_head=args.tie_head, **limits)
    args.recipe = choice["recipe"]
    if not args.quiet:
        print(f"recipe {choice['recipe']}: {choice['reason']}", file=sys.stderr)
    return {"recipe_choice": choice}


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of LutConfig that options of their own set."""
    names = ("scheme", "metric", "token_scale", *(o.replace("-", "_") for o in _SIZES))
    return {n: v for n in names if (v := getattr(args, n)) is not None}


def build_config(args: argparse.Namespace) -> QuantConfig:
    """The recipe with the values given on the command line."""
    base = recipe(args.recipe)
    values = {**dataclasses.asdict(base.config), **_changes(args)}
    overrides = {pattern: dict(fields) for pattern, fields in base.overrides.items()}
    for text in args.override:
        pattern, field, value = parse_override(text)
        overrides.setdefault(pattern, {})[field] = value
    config = QuantConfig(LutConfig.from_dict(values), overrides, args.seed)
    config = with_head(config, args.head or base.head)
    if args.head_margin is None:
        return config
    if not config.lut_head:
        raise ConfigError(
            f"--head-margin is {args.head_margin:g}, but head is {config.head!r}; it is of --head "
            "lut and engine"
        )
    return dataclasses.replace(config, head_margin=args.head_margin)


def parse_override(text: str) -> tuple[str, str, str | int | bool]:
    """ "PATTERN:FIELD=VALUE" -> its parts, the value a number or truth where it looks like one."""
    pattern, colon, setting = text.rpartition(":")
    field, equals, value = setting.partition("=")
    if not (pattern and colon and field and equals and value):
        raise ConfigError(f"override {text!r} is not of the form PATTERN:FIELD=VALUE")
    if value in ("true", "false"):
        return pattern, field, value == "true"
    return pattern, field, int(value) if value.lstrip("-").isdigit() else value


def _plan_text(found: Result) -> str:
    return table(
        [
            *_recipe_row(found),
            ("supported", "yes" if found["supported"] else "no"),
            ("time", "about " + format_seconds(found["estimated_seconds"])),
            ("peak memory", "up to " + format_bytes(found["estimated_peak_rss_bytes"])),
            ("artifact", "about " + format_bytes(found["estimated_artifact_bytes"])),
        ]
    )


def _text(out: Path, report: Result) -> str:
    worst = sorted(
        (linear for layer in report.get("layers", []) for linear in layer["linears"]),
        key=lambda linear: -linear["relative_error"],
    )[:3]
    rows = [
        *_recipe_row(report),
        *artifact_rows(out, report),
    ]
    rows += [("largest error", f"{w['name']} {w['relative_error']:.2%}") for w in worst]
    return table(rows)


def _recipe_row(found: Result) -> list[tuple[str, str]]:
    """The recipe, where it was chosen and not named."""
    choice = found.get("recipe_choice")
    return [("recipe", choice["recipe"])] if choice else []
