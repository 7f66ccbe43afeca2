"""lutllm report: an HTML page about artifacts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, format_bytes


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "report", "write an HTML page about artifacts", run)
    parser.add_argument(
        "artifacts", nargs="+", type=Path, metavar="ART", help="the first is shown in detail"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument("--device", default="v80", metavar="NAME", help="default v80")


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import ecosystem

    found = ecosystem.report(args.artifacts, args.out, device=args.device)
    counts = ", ".join(f"{count} {word}" for word, count in found["linears"].items())
    return Outcome(found, f"{args.out}: {format_bytes(found['bytes'])}; linears: {counts}")
