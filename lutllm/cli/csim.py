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
    parser.add_argument(
        "--artifact",
        type=Path,
        metavar="ART",
        help="of the decoder: compare each of its steps from the inputs that it had, too",
    )


def run(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    if args.decoder:
        found = api.csim(
            args.folder,
            tokens=args.tokens,
            layers=args.layers,
            decoder=True,
            artifact=args.artifact,
        )
        return _decoder(found)
    found = api.csim(
        args.folder,
        tokens=args.tokens,
        layers=args.layers,
        artifact=args.artifact,
        progress=not args.quiet,
    )
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
    replay, other = found["replay"], found["token_difference"]
    sound = found["first_divergence"] is None
    sound = sound and (replay is None or replay["first_divergence"] is None)
    verdict = "equal tokens" if other is None else f"another token: {other['verdict']}"
    rows = [
        ("verdict", verdict if sound else "DIFFERENT"),
        ("tokens equal", f"{found['tokens_equal']} of {found['tokens_compared']}"),
        ("largest error of logits", f"{found['max_logit_error']:.2g} of their magnitude"),
        ("inputs rounded otherwise", str(found["flips"])),
        ("seconds", f"{found['simulated_seconds']:.1f}"),
    ]
    if other is not None:
        rows.append(("first other token", _difference(other)))
    rows += _places(found, ("first_flip", "first_divergence"))
    if replay is not None:
        rows += [
            ("on the kernel's inputs", ""),
            ("  tokens equal", f"{replay['tokens_equal']} of {found['tokens_compared']}"),
            ("  largest error of inputs", f"{replay['max_input_error']:.2g} of their magnitude"),
            ("  largest error of logits", f"{replay['max_logit_error']:.2g} of their magnitude"),
            ("  inputs rounded otherwise", str(replay["flips"])),
        ]
        rows += [("  tie", _difference(tie)) for tie in replay["ties"]]
        rows += _places(replay, ("first_divergence",), "  ")
    # A text that differs by a tie or a flip is right where its steps have been shown to be.
    passed = sound and (equal or replay is not None)
    return Outcome(found, table(rows), 0 if passed else 1)


def _places(
    report: dict[str, Any], keys: tuple[str, ...], indent: str = ""
) -> list[tuple[str, str]]:
    found = [(key, report[key]) for key in keys if report[key] is not None]
    return [(indent + key.replace("_", " "), str(place)) for key, place in found]


def _difference(other: dict[str, Any]) -> str:
    return (
        f"number {other['token'] + 1}: {other['found']} in place of {other['expected']}, logits "
        f"{other['gap']:.2g} apart, error {other['error']:.2g}"
    )
