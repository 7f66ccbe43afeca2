"""lutllm eval: perplexity of an artifact or a float checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, format_perplexity, positive


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "eval", "measure perplexity on a text", run)
    parser.add_argument("model", metavar="MODEL", help="artifact, or any source of quantize")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--ctx", type=positive, default=512, metavar="N", help="tokens per window (default 512)"
    )
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="stop after this many")
    parser.add_argument(
        "--reference",
        metavar="SRC",
        help="the float checkpoint of an artifact: adds paired ratio, KL divergence, agreement",
    )


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    found = api.evaluate(
        args.model,
        args.text,
        ctx=args.ctx,
        max_tokens=args.max_tokens,
        reference=args.reference,
        progress=not args.quiet,
    )
    value = format_perplexity(found["perplexity"], found["stderr"])
    text = f"perplexity {value} over {found['tokens']} tokens in windows of {found['ctx']}"
    if args.reference:
        text += (
            f"\nratio to the float model {format_perplexity(found['ratio'], found['ratio_stderr'])}"
            f"\nKL divergence {format_perplexity(found['kl_divergence'], found['kl_stderr'])} nats"
            f"\nsame first rank {found['top1_agreement']:.1%} of positions"
        )
    return Outcome(found, text)
