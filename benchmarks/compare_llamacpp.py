"""lutllm against llama.cpp on the same model, prompt and threads, in alternation.

    python benchmarks/compare_llamacpp.py ARTIFACT GGUF [--text FILE] [--threads N] [--json]

Needs `pip install llama-cpp-python`, built on the machine (its source package does that), so that
llama.cpp uses what the processor offers. Each round runs one engine after the other; figures are
medians over rounds, so a disturbance meets both alike. llama.cpp has a process of its own, stopped
while lutllm runs: its OpenMP threads may then wait actively, which is faster than the default on
machines where waking a thread takes long, and would cost lutllm a processor otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from calib.text import read_text
from lutllm.emulator import LutModel
from lutllm.emulator.bench import MemoryProbe, bench_ids, decode_bytes
from lutllm.emulator.cpu import available_threads, describe

#: Starts a sequence and returns a function that appends tokens to it.
Engine = Callable[[], Callable[[list[int]], Any]]


def lutllm_engine(model: LutModel) -> Engine:
    def start() -> Callable[[list[int]], Any]:
        model.reset()
        return model.prefill

    return start


def llamacpp_engine(path: Path, threads: int, context: int) -> Engine:
    try:
        from llama_cpp import Llama
    except ImportError:
        raise SystemExit("llama-cpp-python is missing: pip install llama-cpp-python") from None
    llama = Llama(
        str(path),
        n_ctx=context,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def start() -> Callable[[list[int]], Any]:
        llama.reset()
        return llama.eval

    return start


def time_engine(start: Engine, prompt: list[int], continuation: list[int]) -> tuple[float, float]:
    """Prefill and decode speed in tokens per second."""
    append = start()
    begin = time.perf_counter()
    append(prompt)
    ready = time.perf_counter()
    for token in continuation:
        append([token])
    end = time.perf_counter()
    return len(prompt) / (ready - begin), len(continuation) / (end - ready)


def _serve_llamacpp(pipe: Connection, path: Path, threads: int, context: int) -> None:
    """What the other process does: time a run whenever it gets a prompt and a continuation."""
    start = llamacpp_engine(path, threads, context)
    while True:
        pipe.send(time_engine(start, *pipe.recv()))


def _why_it_ended(exitcode: int | None) -> str:
    if exitcode == -signal.SIGSEGV:
        return (
            "llama.cpp crashed, as some versions do with AMX (ggml-org/llama.cpp#20824); "
            "build it without, see docs/BENCHMARKS.md"
        )
    return f"llama.cpp's process ended with status {exitcode}; see its message above"


class LlamaProcess:
    """llama.cpp in a process of its own that only runs while it is timed."""

    def __init__(self, path: Path, threads: int, context: int, wait: str):
        os.environ["OMP_WAIT_POLICY"] = wait  # read when the process loads OpenMP
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve_llamacpp, args=(theirs, path, threads, context), daemon=True
        )
        self._process.start()
        theirs.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.pid:
            os.kill(self._process.pid, number)

    def time(self, prompt: list[int], continuation: list[int]) -> tuple[float, float]:
        """As `time_engine`."""
        self._signal(signal.SIGCONT)
        self._pipe.send((prompt, continuation))
        try:
            speeds = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(_why_it_ended(self._process.exitcode)) from None
        self._signal(signal.SIGSTOP)
        return speeds

    def close(self) -> None:
        self._signal(signal.SIGKILL)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    threads = args.threads or available_threads()
    total = args.prompt_tokens + args.decode_tokens
    llama = LlamaProcess(args.gguf, threads, total + 8, args.wait)
    try:
        return _compare(args, LutModel.load(args.artifact, threads, kv=args.kv), llama)
    finally:
        llama.close()


def _compare(args: argparse.Namespace, model: LutModel, llama: LlamaProcess) -> dict[str, Any]:
    text = args.text and read_text(args.text)
    total = args.prompt_tokens + args.decode_tokens
    ids = [int(i) for i in bench_ids(model, text, total)]
    prompt, continuation = ids[: args.prompt_tokens], ids[args.prompt_tokens :]
    engines = {
        "lutllm": lambda *tokens: time_engine(lutllm_engine(model), *tokens),
        "llamacpp": llama.time,
    }
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for measure in engines.values():  # warm up
        measure(prompt[:16], continuation[:2])
    probe = MemoryProbe(model.team)
    memory = []
    for _ in range(args.rounds):
        memory.append(probe.gb_per_s())
        for name, measure in engines.items():
            speeds[name].append(measure(prompt, continuation))
    medians = {name: np.median(np.array(runs), axis=0) for name, runs in speeds.items()}
    moved = decode_bytes(model, args.prompt_tokens + args.decode_tokens // 2)
    return {
        "machine": describe(),
        "threads": model.threads,
        "wait": args.wait,
        "kv": args.kv,
        "rounds": args.rounds,
        "prompt_tokens": args.prompt_tokens,
        "decode_tokens": args.decode_tokens,
        **{f"{name}_prefill_tokens_per_s": float(m[0]) for name, m in medians.items()},
        **{f"{name}_decode_tokens_per_s": float(m[1]) for name, m in medians.items()},
        "prefill_ratio": float(medians["lutllm"][0] / medians["llamacpp"][0]),
        "decode_ratio": float(medians["lutllm"][1] / medians["llamacpp"][1]),
        "decode_gb_per_s": float(moved * medians["lutllm"][1] / 1e9),
        "memory_gb_per_s": float(np.median(memory)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--text", type=Path, help="take tokens from it, not random ones")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--wait",
        choices=("active", "passive"),
        default="active",
        help="how idle OpenMP threads of llama.cpp wait (default active)",
    )
    parser.add_argument(
        "--kv", choices=("F32", "F16"), default="F16", help="of lutllm; llama.cpp has F16 (default)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = compare(args)
    if args.json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}, {report['threads']} threads, {report['rounds']} rounds")
    for kind in ("prefill", "decode"):
        ours, theirs = (report[f"{n}_{kind}_tokens_per_s"] for n in ("lutllm", "llamacpp"))
        ratio = report[f"{kind}_ratio"]
        print(f"{kind:8} lutllm {ours:8.1f}  llama.cpp {theirs:8.1f} tokens/s  ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
