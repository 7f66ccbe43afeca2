"""The whole decoder as one kernel: every thread of a team runs `forward` from start to end.

Phases are separated by barriers; inside a phase members write disjoint outputs. Nothing here
depends on the kind of processor: the integer kernels come from `kernels`, float steps from
`floats`. Rows of buffers are one token each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.emulator.floats import (
    BF16,
    I8,
    KEYS,
    LUT,
    head_rows,
    mix_values,
    read_row,
    rms_norm,
    rotate,
    scale_row,
    score_keys,
    silu_product,
    softmax,
    split_words,
    store_key,
    stored_bytes,
)
from lutllm.emulator.int8_head import BLOCK, int8_head_rows, quantize_hidden
from lutllm.emulator.jit import inline, kernel
from lutllm.emulator.layout import record_type
from lutllm.emulator.linear import apply_tables, code_inputs
from lutllm.emulator.simd import load_f32, load_i64, store_f32, store_f64
from lutllm.emulator.team import barrier, share

#: Linears of a layer, in the order they run.
QKV, OUT, GATE_UP, DOWN = 0, 1, 2, 3
LINEARS = 4
#: Queries that share the loads of keys and values.
QUERIES = 8

#: Sizes, constants and stored float tensors of a model. *_kind: `floats.KINDS`, or LUT for a head
#: that is the last of the linears; *_scale: of int8 rows, f32[vocab]; head_limit:
#: `int8_rows.hidden_limit`.
DECODER = record_type(
    """
    layers hidden intermediate heads kv_heads head_dim vocab
    embed embed_kind embed_scale head head_kind head_scale head_limit final_norm cos sin
    """,
    "eps",
    "score_scale",
)

#: Addresses of one layer: norms (q_norm and k_norm 0 where absent) and its part of `KVCache`.
LAYER = record_type("input_norm post_norm q_norm k_norm keys values")

#: Buffers of a run. Rows of one token: h and normed f32[hidden, padded to 16], qkv, mixed
#: (attention output), gate_up, product f32; act i8[Sa, orders, slots * v].
#: One per thread: scratch, scores. turns: i64[8 L], zero before a run.
#: capture and sums: 0, or tables i64[4 L] of addresses that receive every linear's input
#: f32[tokens, D] and accumulators i32[tokens, M].
BUFFERS = record_type(
    """
    capacity ids scales h h_bytes normed qkv qkv_bytes mixed mixed_bytes
    gate_up gate_up_bytes product product_bytes act act_bytes
    scratch scratch_bytes scores scores_bytes turns capture sums
    """
)


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
    barrier(arrivals, members * (phase + 1))
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
    barrier(arrivals, members * (phase + 2))


@inline
def _copy_rows(target: int, x: int, x_bytes: int, size: int, tokens: int, member: int) -> None:
    if member == 0 and target:
        for t in range(tokens):
            for i in range(size):
                store_f32(target + 4 * (t * size + i), load_f32(x + t * x_bytes + 4 * i))


@inline
def _place_heads(
    dec: Any, layer: Any, buf: Any, tokens: int, start: int, member: int, members: int
) -> None:
    """Norm and rotate queries in place; write keys and values to the cache."""
    heads = dec.heads + 2 * dec.kv_heads
    size = dec.head_dim
    wide = (size + KEYS - 1) // KEYS * KEYS
    low, high = share(tokens * heads, member, members)
    for item in range(low, high):
        t, head = item // heads, item % heads
        position = start + t
        vector = buf.qkv + t * buf.qkv_bytes + 4 * size * head
        group = head - dec.heads
        if group >= dec.kv_heads:
            group -= dec.kv_heads
            target = layer.values + 4 * wide * (group * buf.capacity + position)
            for i in range(size):
                store_f32(target + 4 * i, load_f32(vector + 4 * i))
            continue
        weight = layer.q_norm if head < dec.heads else layer.k_norm
        if weight:
            rms_norm(vector, weight, vector, size, dec.eps)
        angle = 2 * size * position  # bytes: size / 2 float32 per position
        rotate(vector, dec.cos + angle, dec.sin + angle, size)
        if group >= 0:
            store_key(vector, size, position, layer.keys + 4 * size * group * buf.capacity)


@inline
def _attend_queries(
    dec: Any,
    layer: Any,
    buf: Any,
    group: int,
    first: int,
    count: int,
    start: int,
    room: int,
) -> None:
    """Up to QUERIES queries of one key-value head; query n is head n % share of token n // share.

    The cache is read once, KEYS keys at a time. A query's result does not depend on the others:
    keys it may not see get weight 0. room: QUERIES rows of capacity float32, then outputs.
    """
    size = dec.head_dim
    wide = (size + KEYS - 1) // KEYS * KEYS
    keys = layer.keys + 4 * size * group * buf.capacity
    values = layer.values + 4 * wide * group * buf.capacity
    outs = room + 4 * QUERIES * buf.capacity
    longest = _length(dec, first + count - 1, start)
    for key in range(0, longest, KEYS):
        _score_block(dec, buf, group, first, count, keys, key, room)
    for n in range(count):
        row = room + 4 * n * buf.capacity
        length = _length(dec, first + n, start)
        total = softmax(row, length, (longest + KEYS - 1) // KEYS * KEYS, dec.score_scale)
        target = _mixed(dec, buf, group, first + n)
        store_f32(target, np.float32(1) / total)  # kept there until the end
        for i in range(wide):
            store_f32(outs + 4 * (n * wide + i), np.float32(0))
    for key in range(0, longest, KEYS):
        _mix_block(buf, count, values, wide, key, min(key + KEYS, longest), room, outs)
    for n in range(count):
        target = _mixed(dec, buf, group, first + n)
        factor = load_f32(target)
        for i in range(size):
            store_f32(target + 4 * i, load_f32(outs + 4 * (n * wide + i)) * factor)


@inline
def _score_block(
    dec: Any, buf: Any, group: int, first: int, count: int, keys: int, key: int, room: int
) -> None:
    """Four queries at a time, or two; the last one again where there are fewer."""
    row = 4 * buf.capacity
    size = dec.head_dim
    last = count - 1
    for n in range(0, count, 4):
        b = min(n + 1, last)
        q0 = _query(dec, buf, group, first + n)
        q1 = _query(dec, buf, group, first + b)
        if count - n <= 2:
            score_keys((q0, q1), (room + n * row, room + b * row), keys, size, key)
            continue
        c, d = min(n + 2, last), min(n + 3, last)
        q2 = _query(dec, buf, group, first + c)
        q3 = _query(dec, buf, group, first + d)
        rows = (room + n * row, room + b * row, room + c * row, room + d * row)
        score_keys((q0, q1, q2, q3), rows, keys, size, key)


@inline
def _mix_block(
    buf: Any, count: int, values: int, wide: int, key: int, end: int, room: int, outs: int
) -> None:
    """As `_score_block`. Repeated queries add to outputs beyond the last, which nobody reads."""
    row = 4 * buf.capacity
    step = 4 * wide
    for n in range(0, count, 4):
        at, out = room + n * row, outs + n * step
        if count - n <= 2:
            mix_values((at, at + row), (out, out + step), values, wide, key, end)
        else:
            rows = (at, at + row, at + 2 * row, at + 3 * row)
            targets = (out, out + step, out + 2 * step, out + 3 * step)
            mix_values(rows, targets, values, wide, key, end)


@inline
def _query(dec: Any, buf: Any, group: int, n: int) -> int:
    """Address of query n of a key-value head."""
    per_group = dec.heads // dec.kv_heads
    head = group * per_group + n % per_group
    return buf.qkv + n // per_group * buf.qkv_bytes + 4 * dec.head_dim * head


@inline
def _mixed(dec: Any, buf: Any, group: int, n: int) -> int:
    """Address of the attention output of query n."""
    per_group = dec.heads // dec.kv_heads
    head = group * per_group + n % per_group
    return buf.mixed + n // per_group * buf.mixed_bytes + 4 * dec.head_dim * head


@inline
def _length(dec: Any, n: int, start: int) -> int:
    """Keys that query n may see."""
    return start + n // (dec.heads // dec.kv_heads) + 1


@inline
def _attention(
    dec: Any, layer: Any, buf: Any, tokens: int, start: int, member: int, members: int
) -> None:
    queries = dec.heads // dec.kv_heads * tokens
    size = min(QUERIES, queries)
    if tokens == 1:  # whole heads if that gives every member as much, else smaller parts
        while size > 2 and dec.kv_heads * ((queries + size - 1) // size) % members:
            size = (size + 1) // 2
    blocks = (queries + size - 1) // size
    items = dec.kv_heads * blocks
    room = buf.scores + member * buf.scores_bytes
    # later tokens see more keys: dealing blocks out in turn shares the work evenly
    low, high = (member, items) if tokens > 1 else share(items, member, members)
    step = members if tokens > 1 else 1
    for item in range(low, high, step):
        first = item % blocks * size
        count = min(size, queries - first)
        _attend_queries(dec, layer, buf, item // blocks, first, count, start, room)


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
def _final_norm(
    dec: Any,
    lins: Any,
    buf: Any,
    first: int,
    tokens: int,
    arrivals: int,
    phase: int,
    member: int,
    members: int,
) -> None:
    """Normed rows as the head wants them: in its order, as integers with scales in `scales`, or
    coded in `act`.

    In the last case there is the barrier phase + 1 between the norm and the code.
    """
    _norm_rows(dec, buf, dec.final_norm, first, tokens, member, members)
    if dec.head_kind == LUT:
        index = LINEARS * dec.layers
        barrier(arrivals, members * (phase + 1))
        code_inputs(
            lins[index],
            tokens,
            buf.normed + first * buf.h_bytes,
            buf.h_bytes,
            buf.act + first * buf.act_bytes,
            buf.act_bytes,
            buf.scales + 4 * first,
            0,
            buf.scratch + member * buf.scratch_bytes,
            buf.turns + 16 * index,
            member,
            members,
        )
        return
    padded = (dec.hidden + BLOCK - 1) // BLOCK * BLOCK
    low, high = share(tokens, member, members)
    for t in range(first + low, first + high):
        row = buf.normed + t * buf.h_bytes
        if dec.head_kind == BF16:
            split_words(row, padded)
        elif dec.head_kind == I8:
            store_f32(buf.scales + 4 * t, quantize_hidden(row, padded, dec.head_limit))


@inline
def _logits(
    dec: Any, lins: Any, buf: Any, first: int, tokens: int, out: int, member: int, members: int
) -> None:
    """Head of rows first ... as `_final_norm` left them, to out: f32[tokens, vocab].

    Stored rows are split in fours.
    """
    if dec.head_kind == LUT:
        index = LINEARS * dec.layers
        apply_tables(
            lins[index],
            tokens,
            buf.act + first * buf.act_bytes,
            buf.act_bytes,
            buf.scales + 4 * first,
            out,
            4 * dec.vocab,
            0,
            False,
            buf.scratch + member * buf.scratch_bytes,
            buf.turns + 16 * index + 8,
            member,
            members,
        )
        return
    fours = (dec.vocab + 3) // 4
    low, high = share(fours, member, members)
    if dec.head_kind == I8:
        int8_head_rows(
            dec.head,
            dec.head_scale,
            dec.hidden,
            4 * low,
            min(4 * high, dec.vocab),
            tokens,
            buf.normed + first * buf.h_bytes,
            buf.h_bytes,
            buf.scales + 4 * first,
            out,
            4 * dec.vocab,
            buf.scratch + member * buf.scratch_bytes,
        )
        return
    head_rows(
        dec.head_kind,
        dec.head,
        dec.hidden,
        4 * low,
        min(4 * high, dec.vocab),
        tokens,
        buf.normed + first * buf.h_bytes,
        buf.h_bytes,
        out,
        4 * dec.vocab,
        buf.scratch + member * buf.scratch_bytes,
    )


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
    start: int,
    wanted: int,
    logits: int,
    arrivals: int,
    member: int,
    members: int,
) -> None:
    """Run `tokens` tokens at positions start ... through the model.

    decoder DECODER[1], layers LAYER[L], lins LINEAR[4 L], one more where the head is a LUT linear,
    buffers BUFFERS[1]. The last `wanted` tokens get their final norm (see `_final_norm`) and, if
    `logits` is not 0, f32[wanted, vocab] there.
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
            barrier(arrivals, members * phase)
        _linear(lins, index, buf, which, tokens, arrivals, phase, member, members)
        phase += 2
        if which == QKV:
            _place_heads(dec, layer, buf, tokens, start, member, members)
            barrier(arrivals, members * (phase + 1))
            _attention(dec, layer, buf, tokens, start, member, members)
            barrier(arrivals, members * (phase + 2))
            phase += 2
    if wanted:
        last = tokens - wanted
        _final_norm(dec, lins, buf, last, wanted, arrivals, phase, member, members)
        phase += 2 if dec.head_kind == LUT else 1
        barrier(arrivals, members * phase)
        if logits:
            _logits(dec, lins, buf, last, wanted, logits, member, members)


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
    _logits(dec, lins, buf, first, tokens, logits, member, members)
    barrier(arrivals, members)
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
