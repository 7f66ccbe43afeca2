"""The integer arithmetic of `lutllm.intmath` in standard ONNX operators, a function for a function.

Integers that lie far inside the exact range of a float type are computed in it, since ONNX has few
operators for integers; `exact_type` chooses the type by the largest magnitude that can occur. Every
result is therefore equal to the numpy definition to the bit.

Names of values are strings; T, P, v, Ka, Kw, B, M, Sa, Sw as in `lutllm.config`.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from codegen.onnx.body import Body
from lutllm import int8_rows
from lutllm.config import CENTROID_LIMIT, STAGE_BITS, TINY_INPUT, LutConfig
from lutllm.lut_linear import MAX_TABLE_SHIFT
from lutllm.rotation import steps

#: Bits of the parts in which entries are looked up and summed.
BYTE = 8


def exact_type(bound: int) -> int:
    """The float type in which integers up to `bound` in magnitude are exact."""
    if bound < 1 << 24:
        return TensorProto.FLOAT
    assert bound < 1 << 53
    return TensorProto.DOUBLE


def numpy_type(kind: int) -> type:
    return np.float32 if kind == TensorProto.FLOAT else np.float64


def gather_input(g: Body, x: str, perm: str) -> str:
    """x: f32[T, D], perm: i32[P*v] -> f32[T, P*v], zero at padding (perm -1)."""
    zero = g.constant(0, np.int32)
    channels = g("Gather", x, g("Max", perm, zero), axis=1)
    return g("Where", g("Less", perm, zero), g.constant(0, np.float32), channels)


def rotate(g: Body, x: str, channels: int, rotation: int) -> str:
    """`lutllm.rotation.rotate`. x: f32[T, D] -> f32[T, D]."""
    axis = g.constant([1], np.int64)
    for h, end in steps(channels, rotation):
        runs = g("Slice", x, g.constant([0], np.int64), g.constant([end], np.int64), axis)
        halves = g.reshape(runs, -1, end // (2 * h), 2, h)
        a, b = (g("Gather", halves, g.constant([i], np.int64), axis=2) for i in (0, 1))
        turned = g.reshape(g("Concat", g("Add", a, b), g("Sub", a, b), axis=2), -1, end)
        if end < channels:
            rest = g(
                "Slice", x, g.constant([end], np.int64), g.constant([channels], np.int64), axis
            )
            turned = g("Concat", turned, rest, axis=1)
        x = turned
    return x


def quantize_activation(
    g: Body, x: str, perm: str, scale: str, config: LutConfig
) -> tuple[str, str | None]:
    """x: rotated f32[T, D] -> x_int as f32[T, P*v]; f32[T, 1] where tokens have scales."""
    z = g("Mul", gather_input(g, x, perm), scale)
    limit = config.act_limit
    if not config.scales_tokens:
        return round_and_clip(g, z, limit), None
    top = g("ReduceMax", g("Abs", z), g.constant([1], np.int64), keepdims=1)
    most, unit = g.constant(limit, np.float32), g.constant(CENTROID_LIMIT, np.float32)
    tiny, none = g.constant(TINY_INPUT, np.float32), g.constant(0, np.float32)
    inverse = g("Where", g("Greater", top, tiny), g("Div", most, top), none)
    return round_and_clip(g, g("Mul", z, inverse), limit), g("Div", top, unit)


def round_and_clip(g: Body, z: str, limit: int) -> str:
    """clamp(rint(z), +-limit); Round takes halves to even as rint does."""
    low, high = g.constant(-limit, np.float32), g.constant(limit, np.float32)
    return g("Clip", g("Round", z), low, high)


def by_position(g: Body, x_int: str, positions: int, vec_len: int) -> str:
    """f32[T, P*v] -> f32[P, T, v], the order of batched matrix products."""
    return g("Transpose", g.reshape(x_int, -1, positions, vec_len), perm=[1, 0, 2])


def search(g: Body, x_int: str, act_codebook: str, config: LutConfig) -> tuple[str, list[str]]:
    """Nearest activation centroids. x_int: f32[P, T, v]; act_codebook: i8[Sa, P, Ka, v].

    Returns codes u8[T, Sa, P] and for every stage the chosen centroids f32[P, T, v].
    ArgMin takes the first on a tie.
    """
    stages = config.act_stages
    kind = exact_type(_distance_bound(config))
    rest = g.cast(x_int, kind)
    codes, chosen = [], []
    for t in range(stages):
        unit = 1 << (STAGE_BITS * (stages - 1 - t))
        book = g.cast(pick(g, act_codebook, t), kind)
        centroids = g("Mul", book, g.constant(unit, numpy_type(kind)))
        code = g("ArgMin", _distances(g, rest, centroids, config), axis=2, keepdims=0)
        index = g("Unsqueeze", code, g.constant([2], np.int64))
        chosen.append(g.cast(g("GatherND", book, index, batch_dims=1), TensorProto.FLOAT))
        rest = g("Sub", rest, g("GatherND", centroids, index, batch_dims=1))
        codes.append(g("Unsqueeze", g("Transpose", code, perm=[1, 0]), g.constant([1], np.int64)))
    joined = g("Concat", *codes, axis=1)
    return g.cast(joined, TensorProto.UINT8), chosen


def _distances(g: Body, rest: str, centroids: str, config: LutConfig) -> str:
    """rest: [P, T, v], centroids: [P, Ka, v] -> [P, T, Ka], from the nearest centroid up."""
    if config.metric == "chebyshev":
        return _largest_differences(g, rest, centroids, config.vec_len)
    return _squared_distances(g, rest, centroids, exact_type(_distance_bound(config)))


def _squared_distances(g: Body, rest: str, centroids: str, kind: int) -> str:
    """rest: [P, T, v], centroids: [P, Ka, v] -> |c|^2 - 2 rest . c, [P, T, Ka]."""
    last = g.constant([2], np.int64)
    squares = g("ReduceSum", g("Mul", centroids, centroids), last, keepdims=1)
    doubled = g("Mul", centroids, g.constant(-2, numpy_type(kind)))
    products = g("MatMul", rest, g("Transpose", doubled, perm=[0, 2, 1]))
    return g("Add", products, g("Transpose", squares, perm=[0, 2, 1]))


def _largest_differences(g: Body, rest: str, centroids: str, vec_len: int) -> str:
    """Chebyshev distances of the same. One channel at a time: a difference of all would have
    P*T*Ka*v elements.
    """
    by_channel = g("Transpose", centroids, perm=[0, 2, 1])
    differences = []
    for j in range(vec_len):
        at = g.constant([j], np.int64)
        x, c = g("Gather", rest, at, axis=2), g("Gather", by_channel, at, axis=1)
        differences.append(g("Abs", g("Sub", x, c)))
    return str(g("Max", *differences))


def _distance_bound(config: LutConfig) -> int:
    """Largest |c|^2 + 2 |rest . c|, or |rest| + |c|. A later rest is within the first one plus all
    centroids.
    """
    unit = 1 << (STAGE_BITS * (config.act_stages - 1))
    centroid = CENTROID_LIMIT * unit
    rest = config.act_limit + config.act_stages * centroid
    if config.metric == "chebyshev":
        return rest + centroid
    return config.vec_len * centroid * (centroid + 2 * rest)


def table_entry(g: Body, dot: str, shift: str, bits: int, kind: int) -> str:
    """saturate((dot - (dot < 0) + 2^(shift-1)) >> shift) to `bits` bits, dot where shift is 0.
    Everything is `kind`, but shift: u8.

    A right shift rounds down, as does the quotient by a power of two, which is exact.
    """
    limit = 1 << (bits - 1)
    real = numpy_type(kind)
    one = g.constant(1, np.uint32)
    step = g.cast(g("BitShift", one, g.cast(shift, TensorProto.UINT32), direction="LEFT"), kind)
    half = g("Floor", g("Mul", step, g.constant(0.5, real)))
    away = g("And", g("Less", dot, g.constant(0, real)), g("Greater", half, g.constant(0, real)))
    negative = g.cast(away, kind)
    rounded = g("Floor", g("Div", g("Add", g("Sub", dot, negative), half), step))
    low, high = g.constant(-limit, real), g.constant(limit - 1, real)
    return g("Clip", rounded, low, high)


def table_rows(
    g: Body,
    activation: str,
    weight_codebook: str,
    table_shift: str,
    config: LutConfig,
    weight_stage: int,
    groups: int,
) -> list[str]:
    """The rows of one pair of stages, i8[T, P, B*Kw]: one tensor, or two for entries wider than
    8 bits (`split_bytes`).

    activation: f32[P, T, v], centroids or x_int; weight_codebook: i8[P, B, Kw, v];
    table_shift: u8[P, B].
    """
    columns = groups * config.weight_centroids
    largest = CENTROID_LIMIT * CENTROID_LIMIT * config.vec_len
    kind = exact_type(largest + (1 << (MAX_TABLE_SHIFT - 1)) + 1)
    book = g.reshape(g.cast(weight_codebook, kind), 0, columns, config.vec_len)
    dot = g("MatMul", g.cast(activation, kind), g("Transpose", book, perm=[0, 2, 1]))
    grouped = g.reshape(dot, 0, 0, groups, config.weight_centroids)
    shift = g("Unsqueeze", table_shift, g.constant([1, 3], np.int64))
    bits = config.entry_bits(weight_stage)
    entries = table_entry(g, grouped, shift, bits, kind)
    rows = g.reshape(g("Transpose", entries, perm=[1, 0, 2, 3]), 0, 0, columns)
    return split_bytes(g, rows, kind) if bits > BYTE else [g.cast(rows, TensorProto.INT8)]


def split_bytes(g: Body, entries: str, kind: int) -> list[str]:
    """Integers of up to 16 bits as low and high i8 with entry = low + 2^8 high.

    MatMulInteger sums bytes. high = floor((entry + 128) / 256), so that low is -128 to 127.
    """
    real = numpy_type(kind)
    whole, half = g.constant(1 << BYTE, real), g.constant(1 << (BYTE - 1), real)
    high = g("Floor", g("Div", g("Add", entries, half), whole))
    low = g("Sub", entries, g("Mul", high, whole))
    return [g.cast(low, TensorProto.INT8), g.cast(high, TensorProto.INT8)]


def table_columns(g: Body, weight_codes: str, config: LutConfig, out_features: int) -> str:
    """The column of `table_rows` that each output takes: u4 or u8[Sw, P, M] -> i32[Sw, P, M]."""
    group = np.arange(out_features) // config.group_size
    first = g.constant(group * config.weight_centroids, np.int32)
    return g("Add", g.cast(weight_codes, TensorProto.INT32), first)


def lookup_accumulate(
    g: Body, rows: list[str], columns: list[str], shifts: list[str], levels: int
) -> str:
    """Integer sums over positions and pairs of stages, i32[T, M].

    rows: i8[T, P, B*Kw]; columns: i32[P, M]; shifts: i32[P] left shift of each position, below
    `levels`; a list entry for each part of each pair of stages. One token at a time (Scan): a
    lookup for all at once would need an index of T*P*M elements.
    """
    body = Body("token_")
    total = ""
    for i, (column, shift) in enumerate(zip(columns, shifts, strict=True)):
        picked = body("GatherElements", f"row_{i}", column, axis=1)
        part = sum_positions(body, picked, shift, levels)
        total = body("Add", total, part) if total else part
    result = body("Identity", total, outputs=["sums"])
    scan_inputs = [
        helper.make_tensor_value_info(f"row_{i}", TensorProto.INT8, ["P", "columns"])
        for i in range(len(rows))
    ]
    scan_outputs = [helper.make_tensor_value_info(result, TensorProto.INT32, ["M"])]
    graph = helper.make_graph(body.nodes, "one_token", scan_inputs, scan_outputs)
    return g("Scan", *rows, body=graph, num_scan_inputs=len(rows))


def sum_positions(g: Body, picked: str, shift: str, levels: int) -> str:
    """sum_p picked[p] << shift[p]. picked: i8[P, M]; shift: i32[P] -> i32[M].

    First the sums of positions with equal shift: a product with a 0/1 matrix, in int32.
    """
    powers = g.constant([[1 << level] for level in range(levels)], np.int32)
    level = g.constant([[level] for level in range(levels)], np.int32)
    chosen = g.cast(g("Equal", shift, level), TensorProto.UINT8)
    sums = g("MatMulInteger", chosen, picked)
    return g("ReduceSum", g("Mul", sums, powers), g.constant([0], np.int64), keepdims=0)


def position_shifts(g: Body, block_shift: str, config: LutConfig, positions: int) -> str:
    """u8[NB] -> i32[P]."""
    block = g.constant(np.arange(positions) // config.block_positions, np.int64)
    return g.cast(g("Gather", block_shift, block), TensorProto.INT32)


def dequantize(
    g: Body, acc: str, output_scale: str, token_scale: str | None, bias: str | None
) -> str:
    """i32[T, M] -> f32[T, M]; every product and sum is rounded by itself."""
    y = g("Mul", g.cast(acc, TensorProto.FLOAT), output_scale)
    if token_scale is not None:
        y = g("Mul", y, token_scale)
    return y if bias is None else g("Add", y, bias)


def pick(g: Body, value: str, *indices: int) -> str:
    """value[i, j, ...]."""
    for index in indices:
        value = g("Gather", value, g.constant(index, np.int64), axis=0)
    return value


def int8_head(g: Body, x: str, weight: str, scale: str, size: int) -> str:
    """`int8_rows.logits`. x: f32[T, H], weight: i8[V, H], scale: f32[V] -> f32[T, V].

    The integers of the hidden vector are cut into parts of so few bits that their products with a
    row add up exactly in float32.
    """
    limit = int8_rows.hidden_limit(size)
    top = g("ReduceMax", g("Abs", x), g.constant([1], np.int64), keepdims=1)
    least, none = g.constant(int8_rows.SMALLEST, np.float32), g.constant(0, np.float32)
    most = g.constant(limit, np.float32)
    factor = g("Where", g("GreaterOrEqual", top, least), g("Div", most, top), none)
    x_int = round_and_clip(g, g("Mul", x, factor), limit)
    bits = ((1 << 24) // (int8_rows.ROW_LIMIT * size)).bit_length() - 1
    base = g.constant(1 << bits, np.float32)
    rows = g.cast(weight, TensorProto.FLOAT)
    rest, largest, sums = x_int, limit, []
    while largest > 1 << bits:
        higher = g("Floor", g("Div", rest, base))
        sums.append(g("Gemm", g("Sub", rest, g("Mul", higher, base)), rows, transB=1))
        rest, largest = higher, -(-largest >> bits)
    total = g.cast(g("Gemm", rest, rows, transB=1), TensorProto.INT32)
    for part in reversed(sums):
        shifted = g("Mul", total, g.constant(1 << bits, np.int32))
        total = g("Add", shifted, g.cast(part, TensorProto.INT32))
    y = g("Mul", g.cast(total, TensorProto.FLOAT), scale)
    return g("Mul", y, g("Div", top, most))


def screen(g: Body, coarse: str, exact: str, margin: float) -> str:
    """`int8_rows.screen` of logits f32[T, V]. The graph computes all exact ones."""
    largest = g("ReduceMax", coarse, g.constant([1], np.int64), keepdims=1)
    least = g("Sub", largest, g.constant(margin, np.float32))
    return str(g("Where", g("GreaterOrEqual", coarse, least), exact, coarse))
