"""lutllm bench: speed of an artifact on this machine, and what bounds it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, positive


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "bench", "measure speed on this machine", run)
    parser.add_argument("artifact", type=Path, metavar="ART")
    parser.add_argument("--prompt-tokens", type=positive, default=128, metavar="N")
    parser.add_argument("--decode-tokens", type=positive, default=64, metavar="N")
    parser.add_argument("--threads", type=positive, metavar="N")


def run(args: argparse.Namespace) -> Outcome:
    raise NotImplementedError
