"""The whole decoder as one kernel: every thread of a team runs `forward` from start to end.

Phases are separated by barriers; inside a phase members write disjoint outputs. Nothing here
depends on the kind of processor: the integer kernels come from `kernels`, float steps from
`floats`. Rows of buffers are one token each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.emulator.attention import attention, place_heads
from lutllm.emulator.floats import I8, read_row, rms_norm, scale_row, silu_product, stored_bytes
from lutllm.emulator.head import code_head, head_logits, prepare_head
from lutllm.emulator.jit import inline, kernel
from lutllm.emulator.linear import apply_tables, code_inputs
from lutllm.emulator.records import DOWN, GATE_UP, LINEARS, OUT, QKV
from lutllm.emulator.simd import load_f32, load_i64, store_f32, store_f64
from lutllm.emulator.team import barrier, share


@inline
def _norm_rows(
    dec: Any, buf: Any, weight: int, first: int, tokens: int, member: int, members: int
) -> None:
    low, high = share(tokens, member, members)
    for t in range(first + low, first + high):
        at = t * buf.h_bytes
        rms_norm(buf.h + at, weight, buf.normed + at, dec.hidden, dec.eps)


@inline
def _linear(
    lins: Any,
    index: int,
    buf: Any,
    which: int,
    tokens: int,
    arrivals: int,
    phase: int,
    member: int,
    members: int,
) -> None:
    """Both phases of linear `index` with the barriers phase + 1 and phase + 2 after them."""
    lin = lins[index]
    x, x_bytes, y, y_bytes = _operands(buf, which)
    scratch = buf.scratch + member * buf.scratch_bytes
    if buf.capture:
        _copy_rows(load_i64(buf.capture + 8 * index), x, x_bytes, lin.in_features, tokens, member)
    turns = buf.turns + 16 * index
    code_inputs(
        lin,
        tokens,
        x,
        x_bytes,
        buf.act,
        buf.act_bytes,
        buf.scales,
        0,
        scratch,
        turns,
        member,
        members,
    )
    barrier(arrivals, phase + 1, members)
    apply_tables(
        lin,
        tokens,
        buf.act,
        buf.act_bytes,
        buf.scales,
        y,
        y_bytes,
        load_i64(buf.sums + 8 * index) if buf.sums else 0,
        y == buf.h,
        scratch,
        turns + 8,
        member,
        members,
    )
    barrier(arrivals, phase + 2, members)


@inline
def _copy_rows(target: int, x: int, x_bytes: int, size: int, tokens: int, member: int) -> None:
    if member == 0 and target:
        for t in range(tokens):
            for i in range(size):
                store_f32(target + 4 * (t * size + i), load_f32(x + t * x_bytes + 4 * i))


@inline
def _gate(dec: Any, buf: Any, tokens: int, member: int, members: int) -> None:
    """product = silu(gate) * up."""
    size = dec.intermediate
    scratch = buf.scratch + member * buf.scratch_bytes
    if tokens > 1:
        first, end = share(tokens, member, members)
        low, high = 0, size
    else:
        first, end = 0, 1
        low, high = share((size + 7) // 8, member, members)
        low, high = 8 * low, min(8 * high, size)
    for t in range(first, end):
        gate = buf.gate_up + t * buf.gate_up_bytes
        product = buf.product + t * buf.product_bytes
        silu_product(gate, gate + 4 * size, product, low, high, scratch)


@inline
def _before(
    dec: Any, layer: Any, buf: Any, which: int, tokens: int, member: int, members: int
) -> bool:
    """Work between a barrier and the linear `which`; True if the linear must wait for it."""
    if which == QKV:
        _norm_rows(dec, buf, layer.input_norm, 0, tokens, member, members)
    elif which == GATE_UP:
        _norm_rows(dec, buf, layer.post_norm, 0, tokens, member, members)
    elif which == DOWN:
        _gate(dec, buf, tokens, member, members)
    return which != OUT


@inline
def _operands(buf: Any, which: int) -> tuple[int, int, int, int]:
    """Input rows, their stride, output rows, their stride, of a linear."""
    if which == QKV:
        return buf.normed, buf.h_bytes, buf.qkv, buf.qkv_bytes
    if which == OUT:
        return buf.mixed, buf.mixed_bytes, buf.h, buf.h_bytes
    if which == GATE_UP:
        return buf.normed, buf.h_bytes, buf.gate_up, buf.gate_up_bytes
    return buf.product, buf.product_bytes, buf.h, buf.h_bytes


@inline
def _embed(dec: Any, word: int, out: int) -> None:
    """out: f32[hidden], the embedding of a word."""
    row = dec.embed + word * dec.hidden * stored_bytes(dec.embed_kind)
    read_row(dec.embed_kind, row, dec.hidden, out)
    if dec.embed_kind == I8:
        scale_row(out, dec.hidden, load_f32(dec.embed_scale + 4 * word))


@kernel
def forward(
    decoder: np.ndarray,
    layers: np.ndarray,
    lins: np.ndarray,
    buffers: np.ndarray,
    tokens: int,
    sequences: int,
    wanted: int,
    logits: int,
    arrivals: int,
    member: int,
    members: int,
) -> None:
    """Run `tokens` tokens through the model, as many of each of the sequences, one after another.

    decoder DECODER[1], layers LAYER[L], lins LINEAR[4 L], one more where a LUT linear comes before
    the head, buffers BUFFERS[1]. The last `wanted` tokens get their final norm (see
    `prepare_head`) and, if `logits` is not 0, f32[wanted, vocab] there.
    """
    dec, buf = decoder[0], buffers[0]
    low, high = share(tokens, member, members)
    for t in range(low, high):
        _embed(dec, load_i64(buf.ids + 8 * t), buf.h + t * buf.h_bytes)
    phase = 0
    for index in range(LINEARS * dec.layers):
        layer, which = layers[index // LINEARS], index % LINEARS
        if _before(dec, layer, buf, which, tokens, member, members):
            phase += 1
            barrier(arrivals, phase, members)
        _linear(lins, index, buf, which, tokens, arrivals, phase, member, members)
        phase += 2
        if which == QKV:
            number = index // LINEARS
            place_heads(dec, layer, number, buf, tokens, member, members)
            barrier(arrivals, phase + 1, members)
            attention(dec, number, len(lins), buf, tokens, sequences, member, members)
            barrier(arrivals, phase + 2, members)
            phase += 2
    if wanted:
        last = tokens - wanted
        _norm_rows(dec, buf, dec.final_norm, last, wanted, member, members)
        if dec.screened:
            barrier(arrivals, phase + 1, members)
            code_head(dec, lins, buf, last, wanted, member, members)
            barrier(arrivals, phase + 2, members)
            phase += 2
        prepare_head(dec, buf, last, wanted, member, members)
        barrier(arrivals, phase + 1, members)
        if logits:
            head_logits(dec, lins, buf, last, wanted, logits, arrivals, phase + 1, member, members)


@kernel
def project(
    decoder: np.ndarray,
    lins: np.ndarray,
    buffers: np.ndarray,
    first: int,
    tokens: int,
    logits: int,
    targets: int,
    losses: int,
    arrivals: int,
    member: int,
    members: int,
) -> None:
    """Head of rows first ... of a run; then, with targets i64[tokens], losses f64[tokens].

    A loss is -log softmax(logits)[target], summed in float64.
    """
    dec, buf = decoder[0], buffers[0]
    phase = head_logits(dec, lins, buf, first, tokens, logits, arrivals, 0, member, members)
    barrier(arrivals, phase + 1, members)
    if not targets:
        return
    low, high = share(tokens, member, members)
    for t in range(low, high):
        row = logits + 4 * t * dec.vocab
        top = load_f32(row)
        for i in range(dec.vocab):
            top = max(top, load_f32(row + 4 * i))
        total = 0.0
        for i in range(dec.vocab):
            total += np.exp(np.float64(load_f32(row + 4 * i) - top))
        target = load_f32(row + 4 * load_i64(targets + 8 * t)) - top
        store_f64(losses + 8 * t, np.log(total) - target)
