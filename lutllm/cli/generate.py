"""lutllm generate: text from an artifact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, natural, non_negative_number, positive


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "generate", "continue a prompt", run)
    parser.add_argument("artifact", type=Path, metavar="ART")
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument("--max-tokens", type=positive, default=128, metavar="N")
    parser.add_argument(
        "--temperature",
        type=non_negative_number,
        default=0.0,
        metavar="X",
        help="0 (default) takes the likeliest token",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N")
    parser.add_argument(
        "--raw", action="store_true", help="give the prompt as it is, without a chat template"
    )
    parser.add_argument("--threads", type=positive, metavar="N")


def run(args: argparse.Namespace) -> Outcome:
    raise NotImplementedError
