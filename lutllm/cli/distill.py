"""lutllm distill: a finished artifact is trained towards the float model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import (
    Outcome,
    add_command,
    add_texts,
    artifact_rows,
    non_negative_number,
    positive,
    table,
)

_HINT = "; the same command with --resume continues after the last saved step"


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "distill",
        "train codebooks, scales and norms of an artifact towards the float model",
        run,
        _HINT,
    )
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="what quantize wrote")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT", required=True, help="folder to write"
    )
    parser.add_argument(
        "--reference",
        metavar="SRC",
        required=True,
        help="the float checkpoint it was made of; it has to fit in memory",
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--minutes", type=non_negative_number, default=0, metavar="X", help="about how long"
    )
    budget.add_argument(
        "--steps",
        type=positive,
        default=0,
        metavar="N",
        help="how many steps of 1,024 tokens, or 512 up to 2.5 index bits: the same bytes on a "
        "machine of any speed",
    )
    parser.add_argument(
        "--learning-rate",
        type=non_negative_number,
        metavar="X",
        help="largest rate of the run; less suits an artifact that is trained already (default: "
        "by index bits, 0.002 at 2, 0.0006 at 4)",
    )
    add_texts(parser)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    report = api.distill(
        args.artifact,
        args.out,
        args.reference,
        minutes=args.minutes,
        steps=args.steps,
        learning_rate=args.learning_rate,
        calib=args.calib,
        eval_text=args.eval_text,
        eval_tokens=args.eval_tokens,
        resume=args.resume,
        progress=not args.quiet,
    )
    record = report["distillation"]
    rows = [
        *artifact_rows(args.out, report),
        ("steps", str(record["steps"])),
        ("divergence", f"{record['held_out_before']:.4f} to {record['held_out_after']:.4f} nats"),
    ]
    return Outcome({k: v for k, v in report.items() if k != "layers"}, table(rows))
