"""The local function `LutLinear`, one overload for each kind of linear, and its arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from codegen.onnx import steps
from codegen.onnx.body import DOMAIN, OPSET, Body
from codegen.onnx.weights import Weights
from lutllm.config import LutConfig
from lutllm.lut_linear import LutLinear

FUNCTION = "LutLinear"
#: Outputs: y f32[..., M]; acc i32[T, M]; codes u8[T, Sa, P] (scheme "co") or x_int i8[T, P, v].
OUTPUTS = ("y", "acc", "codes")


@dataclass(frozen=True)
class LinearKind:
    """What a function body depends on. levels: of `block_levels`."""

    config: LutConfig
    in_features: int
    out_features: int
    has_bias: bool
    levels: int

    @classmethod
    def of(cls, linear: LutLinear, levels: int) -> LinearKind:
        return cls(
            linear.config, linear.in_features, linear.out_features, linear.bias is not None, levels
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The arrays of docs/FORMAT.md that the function takes after x."""
        names = ["input_perm", "input_scale"]
        names += ["act_codebook"] * (self.config.scheme == "co")
        names += ["weight_codebook", "weight_codes", "table_shift", "block_shift", "output_scale"]
        return (*names, *["bias"] * self.has_bias)


def lut_linear(kind: LinearKind, name: str) -> onnx.FunctionProto:
    """y = W x + b through the tables: the steps of docs/FORMAT.md in order."""
    config = kind.config
    positions = config.num_positions(kind.in_features)
    g = Body()
    tokens = g("Reshape", "x", g.constant([-1, kind.in_features], np.int64))
    turned = steps.rotate(g, tokens, kind.in_features, config.rotation)
    x_int, token_scale = steps.quantize_activation(g, turned, "input_perm", "input_scale", config)
    vectors = steps.by_position(g, x_int, positions, config.vec_len)
    if config.scheme == "co":
        codes, activations = steps.search(g, vectors, "act_codebook", config)
    else:
        shaped = g.reshape(x_int, -1, positions, config.vec_len)
        codes, activations = g.cast(shaped, TensorProto.INT8), [vectors]
    acc = _accumulate(g, kind, activations, positions)
    g("Identity", acc, outputs=["acc"])
    g("Identity", codes, outputs=["codes"])
    bias = "bias" if kind.has_bias else None
    y = steps.dequantize(g, acc, "output_scale", token_scale, bias)
    leading = g("Shape", "x", end=-1)
    shape = g("Concat", leading, g.constant([kind.out_features], np.int64), axis=0)
    g("Reshape", y, shape, outputs=["y"])
    return helper.make_function(
        DOMAIN,
        name,
        ["x", *kind.inputs],
        list(OUTPUTS),
        g.nodes,
        [helper.make_opsetid("", OPSET)],
        doc_string=f"{kind.in_features} -> {kind.out_features}, {config.to_dict()}",
    )


def _accumulate(g: Body, kind: LinearKind, activations: list[str], positions: int) -> str:
    """Rows of every pair of stages, then their lookup. activations: f32[P, T, v] a stage."""
    config = kind.config
    groups = config.num_groups(kind.out_features)
    books = [steps.pick(g, "weight_codebook", s) for s in range(config.weight_stages)]
    if config.codebook_positions > 1:
        own = g.constant(np.arange(positions) // config.codebook_positions, np.int64)
        books = [g("Gather", book, own, axis=0) for book in books]
    every = steps.table_columns(g, "weight_codes", config, kind.out_features)
    columns = [steps.pick(g, every, s) for s in range(config.weight_stages)]
    rows, parts, shifts = [], [], []
    for t, activation in enumerate(activations):
        for s, book in enumerate(books):
            table_shift = steps.pick(g, "table_shift", t, s)
            found = steps.table_rows(g, activation, book, table_shift, config, s, groups)
            block_shift = steps.pick(g, "block_shift", t, s)
            shift = steps.position_shifts(g, block_shift, config, positions)
            for part, row in enumerate(found):
                rows.append(row)
                parts.append(columns[s])
                shifts.append(g("Add", shift, g.constant(part * steps.BYTE, np.int32)))
    return steps.lookup_accumulate(g, rows, parts, shifts, kind.levels)


class LinearFunctions:
    """The functions of a model: one for each `LinearKind` that occurs."""

    def __init__(self, levels: int):
        self.protos: list[onnx.FunctionProto] = []
        self._levels = levels
        self._names: dict[LinearKind, str] = {}

    def call(self, g: Body, x: str, linear: LutLinear, weights: Weights) -> str:
        """Add the node of a linear and its arrays; returns the name of y. See `add_taps`."""
        kind = LinearKind.of(linear, self._levels)
        arrays = linear.arrays() | {"weight_codes": linear.unpack_weight_codes()}
        for key in kind.inputs:
            name = f"{linear.name}.{key}"
            if key == "weight_codes":
                weights.add_codes(name, arrays[key])
            else:
                weights.add(name, arrays[key])
        y, _, _ = g(
            self._function(kind, linear.name.rsplit(".", 1)[-1]),
            x,
            *(f"{linear.name}.{key}" for key in kind.inputs),
            outputs=[f"{linear.name}.y", "", ""],
            name=linear.name,
            domain=DOMAIN,
        )
        return y

    def _function(self, kind: LinearKind, projection: str) -> str:
        """The function's name: LutLinear_qkv_proj, and a number where settings differ."""
        if kind not in self._names:
            stem = f"{FUNCTION}_{projection}"
            same = sum(name.startswith(stem) for name in self._names.values())
            self._names[kind] = f"{stem}_{same + 1}" if same else stem
            self.protos.append(lut_linear(kind, self._names[kind]))
        return self._names[kind]


def block_levels(linears: Iterable[LutLinear]) -> int:
    """One more than the largest left shift of some linears, that of a high byte included."""
    return 1 + max(
        int(linear.block_shift.max()) + (linear.config.table_bits > steps.BYTE) * steps.BYTE
        for linear in linears
    )


def add_taps(graph: onnx.GraphProto) -> None:
    """Make acc and codes of every LutLinear node outputs of the graph, as NAME.acc and NAME.codes.

    Ranks alone are declared: a function's outputs have the shapes of their linear.
    """
    for node in graph.node:
        if node.domain != DOMAIN:
            continue
        coded = any(name.endswith(".act_codebook") for name in node.input)
        kinds = (TensorProto.INT32, TensorProto.UINT8 if coded else TensorProto.INT8)
        inner = (["M"], ["Sa", "P"] if coded else ["P", "v"])
        for at, kind, dims in zip((1, 2), kinds, inner, strict=True):
            name = f"{node.name}.{OUTPUTS[at]}"
            node.output[at] = name
            shape = [f"{name}.{dim}" for dim in dims]
            graph.output.append(helper.make_tensor_value_info(name, kind, ["T", *shape]))
