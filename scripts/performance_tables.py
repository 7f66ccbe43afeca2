"""The tables of docs/PERFORMANCE_MODEL.md, as Markdown.

python scripts/performance_tables.py validation|netlist|steps|designs|metrics|models|devices
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fpga.device import device_names, load_device
from fpga.performance.commands import model_names, read_source
from fpga.performance.designs import decoder_design
from fpga.performance.estimate import Estimate, Setting
from fpga.performance.explore import Budget, Candidate, Space, explore
from fpga.performance.published import PUBLISHED_INT8, PUBLISHED_NETLIST, PublishedModel
from fpga.performance.resources import NAMES, add_up, utilisation
from lutllm.config import METRICS, QuantConfig
from lutllm.recipes import recipe, with_head

#: A head coded like the layers; `tiny` with entries of 8 bits, of which twice as many fit.
_NARROW = QuantConfig(recipe("tiny").config.with_table_bits(8))
QUANTS = {
    "paper": recipe("paper").quant(head="engine"),
    "tiny, 8 bits": with_head(_NARROW, "engine"),
}
#: The same with other heads, and with the entries of the recipe.
OTHERS = {
    "paper, int8 rows": recipe("paper").quant(),
    "tiny": recipe("tiny").quant(head="engine"),
    "tiny, 8 bits, int8 rows": with_head(_NARROW, "int8"),
}
MODEL = "qwen3-1.7b"
#: The goals for Qwen3-1.7B: 1.1 ms a token with the head, 55 ms for 128 tokens.
GOALS = Budget(decode_tokens_per_s=1000 / 1.1, prefill_ms=55)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def validation() -> None:
    rows = [
        (f"{prompt}, {outputs}", f"{ms:,}", f"{model:,.1f}", f"{model / ms - 1:+.1%}")
        for (prompt, outputs), ms, model in PublishedModel().validation()
    ]
    table(("prompt, output tokens", "published ms", "model ms", "error"), rows)


def netlist() -> None:
    used = add_up(PublishedModel(PUBLISHED_INT8).resources())
    rows = []
    for name in NAMES:
        value, published = getattr(used, name).value, PUBLISHED_NETLIST[name]
        rows.append((name, f"{published:,}", f"{value:,.0f}", f"{value / published - 1:+.1%}"))
    table(("resource", "published", "model", "error"), rows)


def steps() -> None:
    """The balanced design at 300 MHz, and what it would be with less."""
    rows = []
    v80, model = load_device("v80"), read_source(MODEL).model
    for name, quant in QUANTS.items():
        found = explore(model, v80, Space({name: quant}, (300.0,)), GOALS).chosen
        assert found is not None
        kernel, engine = found.design.config, found.engine
        one_port = dataclasses.replace(engine, parameter_ports=1)
        narrow = dataclasses.replace(kernel, vector_lanes=1)
        few = dataclasses.replace(kernel, vocab_ports=8)
        for label, head, sizes, config in (
            ("as chosen", quant, engine, kernel),
            ("parameters on one port", quant, one_port, kernel),
            ("a beat a cycle", quant, engine, narrow),
            ("8 vocabulary ports", quant, engine, few),
            ("int8 rows alone", with_head(quant, "int8"), engine, kernel),
        ):
            design = decoder_design(model, head, sizes, config)
            estimate = Estimate(design, Setting(v80, clock_mhz=300.0))
            top = sorted(estimate.decode.parts.items(), key=lambda part: -part[1].value)[:3]
            whole = estimate.decode.cycles.value
            rows.append(
                (
                    f"{name}, {label}",
                    f"{estimate.decode.ms.value:.2f}",
                    f"{estimate.prefill.ms.value:.0f}",
                    f"{estimate.kv_growth_ms():.1f}",
                    ", ".join(f"{part} {q.value / whole:.0%}" for part, q in top),
                )
            )
    table(("recipe, kernel", "decode ms", "prefill ms", "ms per 1,024", "decode goes to"), rows)


def _design_row(label: str, c: Candidate) -> tuple[str, ...]:
    engine = c.engine
    shape = f"{engine.channels} x {engine.lanes_per_cycle}, T {engine.max_tokens}"
    return (
        label,
        shape,
        f"{c.decode_ms:.3f}",
        f"{c.prefill_ms:.1f}",
        f"{c.watts:.0f}",
        f"{c.joule_per_token:.3f}",
        " / ".join(f"{c.shares[name]:.0%}" for name in ("lut", "dsp", "bram36", "uram")),
    )


_DESIGN_HEAD = (
    "design",
    "channels x lanes",
    "decode ms",
    "prefill ms",
    "W",
    "J/token",
    "LUT / DSP / BRAM / URAM",
)


def _missed(c: Candidate) -> list[str]:
    """The goals that a design does not meet."""
    met = {
        "decode": c.decode_ms <= 1000 / GOALS.decode_tokens_per_s,
        "prefill": c.prefill_ms <= GOALS.prefill_ms,
    }
    return [name for name, ok in met.items() if not ok]


def designs() -> None:
    """Per quantization and clock: the fastest decode of those that meet most goals."""
    model, v80 = read_source(MODEL).model, load_device("v80")
    rows = []
    for name, quant in {**QUANTS, **OTHERS}.items():
        for clock in (250.0, 300.0):
            found = explore(model, v80, Space({name: quant}, (clock,)), GOALS)
            best = min(found.candidates, key=lambda c: (len(_missed(c)), c.decode_ms))
            missed = _missed(best)
            met = f"; missed: {', '.join(missed)}" if missed else ""
            rows.append(_design_row(f"{name}, {clock:g} MHz{met}", best))
    table(_DESIGN_HEAD, rows)


def metrics() -> None:
    """What the search of the balanced `paper` design at 300 MHz takes, by metric."""
    rows = []
    v80, model = load_device("v80"), read_source(MODEL).model
    found = explore(model, v80, Space({"paper": QUANTS["paper"]}, (300.0,)), GOALS).chosen
    assert found is not None
    for metric in METRICS:
        lut = dataclasses.replace(recipe("paper").config, metric=metric)
        quant = with_head(QuantConfig(lut), "engine")
        design = decoder_design(model, quant, found.engine, found.design.config)
        estimate = Estimate(design, Setting(v80, clock_mhz=300.0))
        search = estimate.blocks["centroid_search"].to_dict()
        shares = utilisation(estimate.resources, v80)
        rows.append(
            (
                metric,
                *(f"{search[name]:,}" for name in ("lut", "ff", "dsp")),
                " / ".join(f"{shares[name]:.1%}" for name in ("lut", "dsp")),
                f"{estimate.power.watts.value:.0f}",
            )
        )
    heads = ("metric", "search LUT", "search FF", "search DSP", "whole kernel LUT / DSP", "W")
    table(heads, rows)


def _best_of(label: str, device: str, model: str, clock: float) -> list[str]:
    """The balanced design of the better recipe, or why there is none."""
    board, shape = load_device(device), read_source(model).model
    found = explore(shape, board, Space(QUANTS, (clock,)), Budget())
    if found.chosen is None:
        return [label, "does not fit", *[""] * 6]
    c = found.chosen
    estimate = Estimate(c.design, c.setting)
    return [
        *_design_row(f"{label}, {c.quant_name}", c),
        f"{estimate.memory_bytes / 1e9:.1f}",
    ]


def models() -> None:
    rows = [_best_of(name, "v80", name, 300.0) for name in model_names()]
    table((*_DESIGN_HEAD, "memory GB"), rows)


def devices() -> None:
    rows = []
    for name in device_names():
        for model in ("qwen2.5-0.5b", MODEL, "qwen3-8b"):
            rows.append(_best_of(f"{name}, {model}", name, model, 250.0))
    table((*_DESIGN_HEAD, "memory GB"), rows)


TABLES: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (validation, netlist, steps, designs, metrics, models, devices)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    TABLES[parser.parse_args().table]()


if __name__ == "__main__":
    main()
