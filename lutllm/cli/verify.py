"""lutllm verify: is the artifact whole, and which is it?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "verify", "check every value and digest of an artifact", run)
    parser.add_argument("artifact", type=Path, metavar="ART")


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    found = api.verify(args.artifact)
    if found["ok"]:
        return Outcome(found, f"{args.artifact}: whole, hash {found['artifact_hash']}")
    return Outcome(found, "\n".join(found["problems"]), 1)
