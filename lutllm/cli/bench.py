"""lutllm bench: speed of an artifact on this machine, and what bounds it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, add_kv, natural, positive, table


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "bench", "measure speed on this machine", run)
    parser.add_argument("artifact", type=Path, metavar="ART")
    parser.add_argument("--prompt-tokens", type=positive, default=128, metavar="N")
    parser.add_argument("--decode-tokens", type=positive, default=64, metavar="N")
    parser.add_argument("--threads", type=positive, metavar="N")
    parser.add_argument(
        "--batch", type=natural, default=0, metavar="N", help="also decode N sequences together"
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="take its tokens, not random ones"
    )
    add_kv(parser)


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    found = api.bench(
        args.artifact,
        prompt_tokens=args.prompt_tokens,
        decode_tokens=args.decode_tokens,
        threads=args.threads,
        batch=args.batch,
        text=args.text,
        kv=args.kv,
    )
    share = found["decode_gb_per_s"] / found["memory_gb_per_s"]
    rows = [
        ("prefill", f"{found['prefill_tokens_per_s']:.1f} tokens/s"),
        ("decode", f"{found['decode_tokens_per_s']:.1f} tokens/s"),
        ("decode reads", f"{found['decode_gb_per_s']:.1f} GB/s, {share:.0%} of what memory gives"),
        ("memory", f"{found['memory_gb_per_s']:.1f} GB/s"),
        ("threads", str(found["threads"])),
    ]
    if args.batch:
        together = f"{found['batch_tokens_per_s']:.1f} tokens/s in {args.batch} sequences"
        rows.insert(2, ("batched decode", together))
    return Outcome(found, table(rows))
