"""lutllm push: an artifact goes to the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "push", "upload an artifact to the Hugging Face hub", run)
    parser.add_argument("artifact", type=Path, metavar="ART")
    parser.add_argument("repo_id", metavar="NAME/REPO")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import ecosystem

    found = ecosystem.push(args.artifact, args.repo_id, private=args.private)
    return Outcome(found, f"{found['url']}: {len(found['files'])} files")
