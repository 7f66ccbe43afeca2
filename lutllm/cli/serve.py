"""lutllm serve: an OpenAI-compatible HTTP endpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, add_kv, natural, positive


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "serve", "answer OpenAI-style HTTP requests", run)
    parser.add_argument("artifact", type=Path, metavar="ART")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDR", help="default 127.0.0.1")
    parser.add_argument("--port", type=natural, default=8000, metavar="N", help="0: any free one")
    parser.add_argument("--name", metavar="NAME", help="of the model (default: the folder's)")
    parser.add_argument(
        "--queue", type=natural, default=16, metavar="N", help="requests that may wait; default 16"
    )
    parser.add_argument(
        "--batch", type=positive, default=4, metavar="N", help="requests run together; default 4"
    )
    parser.add_argument("--context", type=positive, metavar="N", help="positions of a sequence")
    parser.add_argument("--threads", type=positive, metavar="N")
    add_kv(parser)


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    def ready(address: str) -> None:
        if not args.quiet:
            print(f"{address}/v1, end with Ctrl-C", file=sys.stderr, flush=True)

    api.serve(
        args.artifact,
        host=args.host,
        port=args.port,
        name=args.name,
        queue=args.queue,
        batch=args.batch,
        context=args.context,
        threads=args.threads,
        kv=args.kv,
        ready=ready,
    )
    return Outcome({}, "")
