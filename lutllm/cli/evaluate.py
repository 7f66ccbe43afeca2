"""lutllm eval: perplexity or zero-shot accuracy of an artifact or a float checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lutllm.cli.common import Outcome, add_command, format_perplexity, positive
from lutllm.errors import ConfigError


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "eval", "measure perplexity on a text, or accuracy on a task", run
    )
    parser.add_argument("model", metavar="MODEL", help="artifact, or any source of quantize")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", type=Path, metavar="FILE", help="perplexity on a text")
    what.add_argument("--task", type=Path, metavar="FILE", help="zero-shot task, JSON lines")
    what.add_argument(
        "--tasks",
        metavar="LIST",
        help="tasks of lm-eval by name, or .jsonl files, joined by commas (artifacts only)",
    )
    parser.add_argument(
        "--tasks-path", type=Path, metavar="DIR", help="folder of lm-eval task files (YAML)"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="items of the task (default all)"
    )
    parser.add_argument(
        "--ctx", type=positive, default=512, metavar="N", help="tokens per window (default 512)"
    )
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="stop after this many")
    parser.add_argument(
        "--reference",
        metavar="SRC",
        help="the float checkpoint of an artifact: adds paired ratio, KL divergence, agreement",
    )

    parser.add_argument(
        "--record", action="store_true", help="keep the result in the artifact's report.json"
    )


def run(args: argparse.Namespace) -> Outcome:
    if args.tasks:
        return _run_lm_eval(args)
    outcome = _run_task(args) if args.task else _run_text(args)
    if args.record:
        from lutllm.ecosystem import record_measurement

        record_measurement(args.model, args.task or args.text, outcome.result)
    return outcome


def _run_text(args: argparse.Namespace) -> Outcome:
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


def _run_task(args: argparse.Namespace) -> Outcome:
    from lutllm import api

    found = api.evaluate_task(
        args.model,
        args.task,
        limit=args.limit,
        reference=args.reference,
        progress=not args.quiet,
    )
    text = f"accuracy {format_perplexity(found['accuracy'], found['accuracy_stderr'])}"
    text += f", per character {found['accuracy_norm']:.3f}, on {found['items']} items"
    if args.reference:
        change = format_perplexity(found["accuracy_change"], found["accuracy_change_stderr"])
        text += f"\nfloat model {found['reference_accuracy']:.3f}, change {change}"
    return Outcome(found, text)


def _run_lm_eval(args: argparse.Namespace) -> Outcome:
    from lutllm import ecosystem

    if args.reference or args.record:
        raise ConfigError("--tasks has neither --reference nor --record; use --task FILE for them")
    found = ecosystem.evaluate_lm_eval(
        args.model, args.tasks.split(","), tasks_path=args.tasks_path, limit=args.limit
    )
    lines = [
        f"{task}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        for task, metrics in found.items()
    ]
    return Outcome(found, "\n".join(lines))
