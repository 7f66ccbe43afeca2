"""lutllm csim: compile exported kernels with g++ and compare them with the emulator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, positive, table


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "csim", "simulate exported kernels and compare results", run)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what lutllm export wrote")
    parser.add_argument("--tokens", type=positive, metavar="N", help="tokens to run")
    parser.add_argument("--layers", type=positive, metavar="N", help="decoder layers to run")
    parser.add_argument(
        "--decoder",
        action="store_true",
        help="run the whole model on the golden prompt; N tokens are then those it chooses",
    )


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    if args.decoder:
        return _decoder(api.csim(args.folder, tokens=args.tokens, layers=args.layers, decoder=True))
    found = api.csim(args.folder, tokens=args.tokens, layers=args.layers, progress=not args.quiet)
    equal = found["integer_mismatches"] == 0 and found["first_divergence"] is None
    rows = [
        ("verdict", "equal to the last bit" if equal else "DIFFERENT"),
        ("integer mismatches", str(found["integer_mismatches"])),
        ("largest error", f"{found['max_abs_error']:g}"),
        ("tokens equal", f"{found['tokens_equal']} of {found['tokens_compared']}"),
    ]
    if found["first_divergence"] is not None:
        rows.append(("first divergence", str(found["first_divergence"])))
    return Outcome(found, table(rows), 0 if equal else 1)


def _decoder(found: dict[str, Any]) -> Outcome:
    equal = found["tokens_equal"] == found["tokens_compared"]
    sound = found["first_divergence"] is None
    verdict = "equal tokens" if equal else "other tokens, after a rounding that flipped"
    rows = [
        ("verdict", verdict if sound else "DIFFERENT"),
        ("tokens equal", f"{found['tokens_equal']} of {found['tokens_compared']}"),
        ("largest error of logits", f"{found['max_logit_error']:.2g} of their magnitude"),
        ("inputs rounded otherwise", str(found["flips"])),
        ("seconds", f"{found['simulated_seconds']:.1f}"),
    ]
    for key in ("first_flip", "first_divergence"):
        if found[key] is not None:
            rows.append((key.replace("_", " "), str(found[key])))
    return Outcome(found, table(rows), 0 if equal and sound else 1)
