"""The command line: `lutllm COMMAND ...`.

Each command is a module with `add_parser` and `run`; the modules that do the work are imported
inside `run`, so that help and usage errors are instant.

Exit status: 0 done, 1 the answer is "no", 2 a user error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lutllm.cli import (
    bench,
    csim,
    distill,
    estimate,
    evaluate,
    explore,
    export,
    generate,
    push,
    quantize,
    report,
    serve,
    verify,
)
from lutllm.cli.common import run_command
from lutllm.errors import LutLLMError
from lutllm.version import __version__

COMMANDS = (
    quantize,
    distill,
    evaluate,
    generate,
    serve,
    bench,
    estimate,
    explore,
    export,
    csim,
    report,
    push,
    verify,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lutllm",
        description="Turn a large language model into lookup tables, run it, and export it "
        "as FPGA kernels.",
        epilog="Exit status: 0 done, 1 the answer is no (a mismatch), 2 an error of use.",
    )
    parser.add_argument("--version", action="version", version=f"lutllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. argv: the words after `lutllm`."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help, version or a usage error
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return run_command(args)
    except LutLLMError as error:
        return _fail(args, str(error))
    except MemoryError:
        return _fail(args, "out of memory; close other programs or use a smaller model")
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(args, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        hint = getattr(args, "interrupt_hint", "")
        print(f"\nlutllm {args.command}: interrupted{hint}", file=sys.stderr)
        return 130


def _fail(args: argparse.Namespace, message: str) -> int:
    print(f"lutllm {args.command}: error: {message}", file=sys.stderr)
    return 2
