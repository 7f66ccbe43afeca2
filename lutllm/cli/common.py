"""What the commands share: options, the way results are printed, the exit status."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutllm.config import KV_DTYPES
from lutllm.progress import format_seconds

Result = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a command found: the object for --json, the text without it, the exit status."""

    result: Result
    text: str
    status: int = 0


Run = Callable[[argparse.Namespace], Outcome]


def add_command(
    commands: Any, name: str, summary: str, run: Run, interrupt_hint: str = ""
) -> argparse.ArgumentParser:
    """Add the sub-parser of a command with the options all commands have."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout and nothing else there"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=run, interrupt_hint=interrupt_hint)
    return parser


def run_command(args: argparse.Namespace) -> int:
    """Run the chosen command and print its outcome.

    With --json whatever the command prints goes to stderr, and stdout gets the one object.
    """
    if not args.json:
        outcome = args.run(args)
        if outcome.text:
            print(outcome.text)
        return outcome.status
    with contextlib.redirect_stdout(sys.stderr):
        outcome = args.run(args)
    print(json.dumps(plain(outcome.result), ensure_ascii=False, allow_nan=False))
    return outcome.status


def plain(value: Any) -> Any:
    """The value with numpy scalars, paths and numbers that are not finite made fit for JSON."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def table(rows: list[tuple[str, str]]) -> str:
    """Names and values in two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def format_bytes(count: float) -> str:
    """A size as people read it: "1.5 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def format_perplexity(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3f}" if stderr is None else f"{value:.3f} +- {stderr:.3f}"


def artifact_rows(out: Path, report: Result) -> list[tuple[str, str]]:
    """What was written to `out`, and what it took, from its report."""
    return [
        ("artifact", str(out)),
        ("hash", report["artifact_hash"]),
        ("size", format_bytes(report["artifact_bytes"])),
        ("bits per weight", f"{report['bits_per_weight']:.2f}, codebooks and scales included"),
        *((f"perplexity {when}", _perplexity(report, when)) for when in ("before", "after")),
        ("time", format_seconds(report["seconds"])),
        ("peak memory", format_bytes(report["peak_rss_bytes"])),
    ]


def _perplexity(report: Result, when: str) -> str:
    return format_perplexity(report[f"perplexity_{when}"], report.get(f"stderr_{when}"))


def positive(text: str) -> int:
    """argparse type: a whole number above zero."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """argparse type: a whole number, zero included."""
    return _whole(text, 0)


def _whole(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
    return value


def non_negative_number(text: str) -> float:
    """argparse type: a finite number of at least zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def add_texts(parser: argparse.ArgumentParser) -> Any:
    """--calib, --eval and --eval-tokens, in a group that is returned."""
    text = parser.add_argument_group("text")
    text.add_argument("--calib", type=Path, metavar="FILE", help="calibration text (default: ours)")
    text.add_argument(
        "--eval",
        type=Path,
        metavar="FILE",
        dest="eval_text",
        help="text for perplexity before and after (default: the unused end of the calibration "
        "text)",
    )
    text.add_argument(
        "--eval-tokens",
        type=natural,
        default=4096,
        metavar="N",
        help="tokens of it to use, 0 to skip",
    )
    return text


def add_kv(parser: argparse.ArgumentParser) -> None:
    """--kv: what keys and values are kept as."""
    parser.add_argument(
        "--kv",
        type=str.upper,
        choices=KV_DTYPES,
        default="F32",
        help="keys and values in single (default) or half precision",
    )
