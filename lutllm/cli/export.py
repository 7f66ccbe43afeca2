"""lutllm export: FPGA kernels, memory images and testbench of an artifact, or an ONNX model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, Result, add_command, format_bytes, natural, positive
from lutllm.cli.estimate import DESIGN_HELP
from lutllm.errors import ConfigError

FORMATS = ("hls", "onnx")
#: options of one format: the value that says "not given"
_ONLY: dict[str, dict[str, Any]] = {
    "hls": {"device": None, "design": None, "golden_layers": None, "explain": False},
    "onnx": {"layer": None, "check": 0},
}


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "export", "write FPGA kernels or an ONNX model", run)
    parser.add_argument("artifact", type=Path, metavar="ART")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="hls",
        help="hls (default): kernels and their testbench; onnx: a model for onnxruntime",
    )
    hls = parser.add_argument_group("format hls")
    hls.add_argument("--device", metavar="NAME", help="default v80")
    hls.add_argument("--design", type=Path, metavar="FILE", help=DESIGN_HELP)
    hls.add_argument(
        "--golden-layers",
        type=positive,
        metavar="N",
        help="decoder layers that C simulation can check (default 1)",
    )
    hls.add_argument(
        "--explain", action="store_true", help="name the block diagrams and print the memory map"
    )
    onnx = parser.add_argument_group("format onnx")
    onnx.add_argument("--layer", metavar="NAME", help="one linear instead of the model")
    onnx.add_argument(
        "--check",
        type=natural,
        default=0,
        metavar="N",
        help="run N tokens through onnxruntime and compare with the emulator",
    )


def run(args: argparse.Namespace) -> Outcome:
    _refuse_other_options(args)
    if args.format == "onnx":
        return _run_onnx(args)
    from lutllm import api

    found = api.export(
        args.artifact,
        args.out,
        device=args.device or "v80",
        design=args.design,
        golden_layers=args.golden_layers or 1,
        explained=args.explain,
        progress=not args.quiet,
    )
    done = (
        f"{args.out}: {len(found['files'])} files for {found['device']}, "
        f"{format_bytes(found['image_bytes'])} of memory images; next: lutllm csim {args.out}"
    )
    return Outcome(found, "\n".join([*found.get("explanation", []), done]))


def _refuse_other_options(args: argparse.Namespace) -> None:
    for owner, options in _ONLY.items():
        for name, absent in options.items():
            if owner != args.format and getattr(args, name) != absent:
                option = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{option} belongs to --format {owner}, not {args.format}: leave it out"
                )


def _run_onnx(args: argparse.Namespace) -> Outcome:
    from lutllm import ecosystem

    found = ecosystem.export_onnx(
        args.artifact, args.out, layer=args.layer, check_tokens=args.check
    )
    text = (
        f"{args.out}: ONNX opset {found['opset']}, {found['nodes']} nodes, "
        f"{format_bytes(found['model_bytes'])}; README.md shows how to run it"
    )
    if not args.check:
        return Outcome(found, text)
    wrong = found["integer_mismatches"]
    return Outcome(found, f"{text}\n{_check_text(found)}", 1 if wrong else 0)


def _check_text(found: Result) -> str:
    return (
        f"beside the emulator: {found['tokens_equal']} of {found['tokens_compared']} equal tokens, "
        f"largest difference of logits {found['max_abs_error']:.2g} "
        f"({found['max_abs_error_before_flip']:.2g} before a flip) "
        f"of {found['max_abs_logit']:.3g}, "
        f"{found['codes_flipped']} of {found['codes_compared']} codes flipped, "
        f"{found['integer_mismatches']} wrong integer sums"
    )
