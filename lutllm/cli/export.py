"""lutllm export: FPGA kernels, memory images and testbench of an artifact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, format_bytes, positive
from lutllm.cli.estimate import DESIGN_HELP


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "export", "write FPGA kernels and their testbench", run)
    parser.add_argument("artifact", type=Path, metavar="ART")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="v80", metavar="NAME", help="default v80")
    parser.add_argument("--design", type=Path, metavar="FILE", help=DESIGN_HELP)
    parser.add_argument(
        "--golden-layers",
        type=positive,
        default=1,
        metavar="N",
        help="decoder layers that C simulation can check (default 1)",
    )


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    found = api.export(
        args.artifact,
        args.out,
        device=args.device,
        design=args.design,
        golden_layers=args.golden_layers,
        progress=not args.quiet,
    )
    return Outcome(
        found,
        f"{args.out}: {len(found['files'])} files for {found['device']}, "
        f"{format_bytes(found['image_bytes'])} of memory images; next: lutllm csim {args.out}",
    )
