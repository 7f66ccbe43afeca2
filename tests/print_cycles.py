"""Cycles of the model beside those that the C simulation counts, for linears of a real model.

python -m tests.print_cycles [--model qwen3-1.7b] [--scheme co] [--channels 16] [--tokens 1 32]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from fpga.design import EngineConfig
from fpga.device import load_device
from fpga.performance.commands import read_source
from fpga.performance.engine import Engine
from fpga.performance.memory import MemorySystem
from fpga.performance.run import Run, modes_of, process_cycles
from fpga.performance.timing import IDEAL, PERFECT_MEMORY
from lutllm.config import LutConfig
from tests.hls_timing import Counts, TimedSimulation
from tests.hls_tools import export_linears, make_engine


def print_run(run: Run, counts: Counts) -> None:
    memory = MemorySystem(load_device("v80"), 250, run.design.config.axi_bits, PERFECT_MEMORY)
    call = Engine([run.design], memory, IDEAL).call(
        run.design, run.kind, run.tokens, run.mode, accumulators=True
    )
    model = call.cycles.value
    channel = "channel_0/part/" if run.mode == "online" else "channel_0/"
    busy = process_cycles(run, IDEAL)
    worst = max(
        abs(busy[name].value / counts.busy[f"{channel}{name}"] - 1)
        for name in ("bursts", "unpack", "lookup")
    )
    print(
        f"| {run.kind.in_features} x {run.kind.out_features} | {run.tokens} | {run.mode} "
        f"| {counts.cycles:,} | {model:,.0f} | {model / counts.cycles - 1:+.1%} | {worst:.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen3-1.7b")
    parser.add_argument("--scheme", default="co")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 32])
    args = parser.parse_args()
    model = read_source(args.model).model
    shapes = [(s.in_features, s.out_features, False) for s in model.layer_linears(0)[:2]]
    config = EngineConfig(channels=args.channels)
    engine, linears = make_engine(LutConfig(scheme=args.scheme), config, shapes)
    print("| linear | tokens | rows | counted | model | error | worst process |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        export_linears(Path(folder), engine, linears, max(args.tokens))
        simulation = TimedSimulation(Path(folder), ("-O1",))
        for kind in engine.kinds:
            for tokens in args.tokens:
                for mode in modes_of(engine):
                    asked = "table" if mode == "online" else mode
                    counts = simulation.run(kind.name, tokens, asked)
                    print_run(Run(engine, kind, tokens, mode, accumulators=True), counts)


if __name__ == "__main__":
    main()
