"""Designs from random linears, and unit runs of single engine headers, for the FPGA tests."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegen import render
from codegen.csim import compile_testbench
from codegen.export import write_design
from fpga.design import EngineConfig, EngineDesign, LayerKind
from fpga.device import load_device
from lutllm.config import LutConfig
from lutllm.lut_linear import LutLinear
from tests.helpers import random_input, random_linear

FOLDER = Path(__file__).parent / "hls"
#: in_features, out_features, bias
Shape = tuple[int, int, bool]


def kind_of(linear: LutLinear) -> LayerKind:
    return LayerKind(
        name=linear.name,
        in_features=linear.in_features,
        out_features=linear.out_features,
        act_stages=linear.config.act_stages,
        weight_stages=linear.config.weight_stages,
        table_bits=linear.config.table_bits,
        wide_stages=linear.config.wide_stages,
        token_scale=linear.config.scales_tokens,
        rotation=linear.config.rotation,
        bias=linear.bias is not None,
        names=(linear.name,),
    )


def make_engine(
    lut: LutConfig,
    config: EngineConfig,
    shapes: Sequence[Shape],
    seed: int = 0,
    exact: bool = False,
) -> tuple[EngineDesign, list[LutLinear]]:
    """An engine and one random linear per shape."""
    linears = [
        random_linear(lut, d, m, seed + i, bias=bias, name=f"linear_{i}", exact=exact)
        for i, (d, m, bias) in enumerate(shapes)
    ]
    return engine_for(linears, config), linears


def engine_for(linears: Sequence[LutLinear], config: EngineConfig) -> EngineDesign:
    most = dataclasses.replace(
        linears[0].config,
        act_stages=max(linear.config.act_stages for linear in linears),
        weight_stages=max(linear.config.weight_stages for linear in linears),
        table_bits=max(linear.config.table_bits for linear in linears),
    )
    return EngineDesign("lut_linear", config, most, tuple(kind_of(linear) for linear in linears))


def export_linears(
    root: Path,
    engine: EngineDesign,
    linears: Sequence[LutLinear],
    tokens: int,
    inputs: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Write a design of these linears with golden inputs of `tokens` tokens."""
    if inputs is None:
        inputs = {x.name: random_input(tokens, x.in_features) for x in linears}
    return write_design(
        root,
        [engine],
        linears,
        device="v80",
        model="random linears",
        artifact_hash="0" * 64,
        golden=inputs,
        golden_tokens=tokens,
    )


def to_words(values: Sequence[int], bits: int) -> bytes:
    """A stream for units.cpp: its length, then the elements in 64-bit words."""
    size = -(-bits // 64) * 8
    return len(values).to_bytes(8, "little") + b"".join(
        (v & ((1 << bits) - 1)).to_bytes(size, "little") for v in values
    )


def sums_to_words(sums: Sequence[Sequence[int]]) -> bytes:
    """A stream of packed sums: each element is a list of words of at most 64 bits."""
    flat = b"".join(word.to_bytes(8, "little") for element in sums for word in element)
    return len(sums).to_bytes(8, "little") + flat


def pack_fields(values: Sequence[int], bits: int) -> int:
    """Little-endian fields in one word."""
    mask = (1 << bits) - 1
    return sum((int(v) & mask) << (i * bits) for i, v in enumerate(values))


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def beats_of(image: np.ndarray, beat_bytes: int) -> list[int]:
    """The beats of a memory image, as integers."""
    raw = np.ascontiguousarray(image).tobytes()
    return [
        int.from_bytes(raw[i : i + beat_bytes], "little") for i in range(0, len(raw), beat_bytes)
    ]


class Units:
    """The unit program for several engines, compiled once."""

    def __init__(self, engines: Sequence[EngineDesign]):
        self.engines = list(engines)
        sources = {f"sim/{p.name}": p.read_text() for p in (render.LIBRARY / "sim").glob("*.h")}
        sources |= {f"sim/{name}": self._header(name) for name in render.library_headers()}
        sources["sim/CONFIGS.h"] = self._configs()
        sources["sim/units.cpp"] = (FOLDER / "units.cpp").read_text()
        self._program = compile_testbench(sources, "sim/units.cpp", ["-DLUTLLM_SEQUENTIAL"])

    @staticmethod
    def _header(name: str) -> str:
        return (render.LIBRARY / name).read_text()

    def _configs(self) -> str:
        parts, cases = [], []
        for i, engine in enumerate(self.engines):
            text = render.render(
                "config.h.j2",
                engine=engine,
                device=load_device("v80"),
                header="unit test",
                vector_lanes=1,
            )
            body = re.search(r"struct Config \{.*?\n\};\n", text, re.DOTALL)
            assert body
            parts.append(body[0].replace("struct Config ", f"struct Config{i} "))
            cases.append(f"if (config == {i}) run_command<Config{i}>(command, call);")
        dispatch = " ".join(cases).replace("config == ", "n == ")
        return "\n".join(["#pragma once", *parts, f"#define UNITS_DISPATCH(n) {dispatch}\n"])

    def run(self, command: str, index: int, data: bytes, **call: int) -> bytes:
        """Run one header. call: the fields of LinearCall that differ from 1 (flags: 0)."""
        fields = {
            "tokens": 1,
            "row_fetch": 0,
            "bias": 0,
            "rounds": 1,
            "groups": 1,
            "subs": 4,
            "act_stages": 1,
            "weight_stages": 1,
            "table_bits": 8,
            "wide_stages": 1,
            "in_beats": 4,
            "token_scale": 0,
            "rotation": 0,
            "in_features": 1,
        }
        assert set(call) <= set(fields)
        numbers = [str(v) for v in (fields | call).values()]
        found = subprocess.run(
            [str(self._program), command, str(index), *numbers],
            input=data,
            capture_output=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr.decode()
        return found.stdout


class Output:
    """Reads the streams that units.cpp wrote."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0

    def _word(self) -> int:
        value = int.from_bytes(self._data[self._at : self._at + 8], "little")
        self._at += 8
        return value

    def stream(self, bits: int) -> list[int]:
        words = -(-bits // 64)
        return [sum(self._word() << (64 * w) for w in range(words)) for _ in range(self._word())]

    def sums(self, words: int) -> list[list[int]]:
        return [[self._word() for _ in range(words)] for _ in range(self._word())]
