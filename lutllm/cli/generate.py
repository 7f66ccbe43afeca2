"""lutllm generate: text from an artifact."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lutllm.cli.common import (
    Outcome,
    Result,
    add_command,
    add_kv,
    natural,
    non_negative_number,
    positive,
)


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
    add_kv(parser)
    parser.add_argument(
        "--record", action="store_true", help="keep prompt and text in the artifact's report.json"
    )


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    model = api.load(args.artifact, threads=args.threads, kv=args.kv)
    prompt: dict[str, Any] = {"prompt": args.prompt}
    if model.tokenizer.has_chat_template and not args.raw:
        prompt = {"messages": [{"role": "user", "content": args.prompt}]}
    found = model.generate(
        **prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        on_text=None if args.json else _print_piece,
    )
    if args.record:
        from lutllm.artifact import record

        record(args.artifact, "samples", {"prompt": args.prompt, "text": found.text})
    if not args.json:
        print()
    result = {
        "text": found.text,
        "tokens": len(found.tokens),
        "token_ids": found.tokens,
        "finish_reason": found.finish_reason,
        "prompt_tokens": found.prompt_tokens,
        "prefill_tokens_per_s": found.prefill_tokens_per_s,
        "decode_tokens_per_s": found.decode_tokens_per_s,
    }
    if not args.quiet:
        print(_speed(result), file=sys.stderr)
    return Outcome(result, "")


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _speed(result: Result) -> str:
    return (
        f"{result['prompt_tokens']} prompt tokens at {result['prefill_tokens_per_s']:.1f}/s, "
        f"{result['tokens']} new ones at {result['decode_tokens_per_s']:.1f}/s"
    )
