"""Attention of one layer: rotary embedding, the cache, scores, softmax, and values mixed."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutllm.emulator.floats import (
    KEYS,
    mix_values,
    rms_norm,
    rotate,
    score_keys,
    softmax,
    store_cached,
    store_key,
    stored_bytes,
)
from lutllm.emulator.jit import inline
from lutllm.emulator.records import QUERIES
from lutllm.emulator.simd import atomic_add, load_f32, load_i64, store_f32
from lutllm.emulator.team import share


@inline
def _keys(cache: int, number: int) -> int:
    """Address of the keys of layer `number` in the cache with the table `cache`."""
    return load_i64(cache + 8 + 16 * number)


@inline
def _values(cache: int, number: int) -> int:
    return load_i64(cache + 16 + 16 * number)


@inline
def place_heads(
    dec: Any, layer: Any, number: int, buf: Any, tokens: int, member: int, members: int
) -> None:
    """Norm and rotate queries in place; write keys and values to the cache. number: of the layer"""
    heads = dec.heads + 2 * dec.kv_heads
    size = dec.head_dim
    wide = (size + KEYS - 1) // KEYS * KEYS
    width = stored_bytes(dec.kv_kind)
    low, high = share(tokens * heads, member, members)
    for item in range(low, high):
        t, head = item // heads, item % heads
        position, cache = load_i64(buf.positions + 8 * t), load_i64(buf.caches + 8 * t)
        capacity = load_i64(cache)
        vector = buf.qkv + t * buf.qkv_bytes + 4 * size * head
        group = head - dec.heads
        if group >= dec.kv_heads:
            group -= dec.kv_heads
            target = _values(cache, number) + width * wide * (group * capacity + position)
            for i in range(size):
                store_cached(dec.kv_kind, target + width * i, load_f32(vector + 4 * i))
            continue
        weight = layer.q_norm if head < dec.heads else layer.k_norm
        if weight:
            rms_norm(vector, weight, vector, size, dec.eps)
        angle = 2 * size * position  # bytes: size / 2 float32 per position
        rotate(vector, dec.cos + angle, dec.sin + angle, size)
        if group >= 0:
            keys = _keys(cache, number) + width * size * group * capacity
            store_key(dec.kv_kind, vector, size, position, keys)


@inline
def _attend_queries(
    dec: Any,
    cache: int,
    number: int,
    buf: Any,
    group: int,
    first: int,
    count: int,
    start: int,
    room: int,
) -> None:
    """Up to QUERIES queries of one key-value head; query n is head n % share of token n // share.

    The cache is read once, KEYS keys at a time. A query's result does not depend on the others:
    keys it may not see get weight 0. start: position of token 0, were it of this sequence; room:
    see `scores` in BUFFERS.
    """
    size = dec.head_dim
    wide = (size + KEYS - 1) // KEYS * KEYS
    capacity = load_i64(cache)
    width = stored_bytes(dec.kv_kind)
    keys = _keys(cache, number) + width * size * group * capacity
    values = _values(cache, number) + width * wide * group * capacity
    outs = room + 4 * QUERIES * buf.score_row
    longest = _length(dec, first + count - 1, start)
    for key in range(0, longest, KEYS):
        _score_block(dec, buf, group, first, count, keys, key, room)
    for n in range(count):
        row = room + 4 * n * buf.score_row
        length = _length(dec, first + n, start)
        total = softmax(row, length, (longest + KEYS - 1) // KEYS * KEYS, dec.score_scale)
        target = _mixed(dec, buf, group, first + n)
        store_f32(target, np.float32(1) / total)  # kept there until the end
        for i in range(wide):
            store_f32(outs + 4 * (n * wide + i), np.float32(0))
    for key in range(0, longest, KEYS):
        _mix_block(dec.kv_kind, buf, count, values, wide, key, min(key + KEYS, longest), room, outs)
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
    row = 4 * buf.score_row
    size = dec.head_dim
    last = count - 1
    for n in range(0, count, 4):
        b = min(n + 1, last)
        q0 = _query(dec, buf, group, first + n)
        q1 = _query(dec, buf, group, first + b)
        if count - n <= 2:
            score_keys(dec.kv_kind, (q0, q1), (room + n * row, room + b * row), keys, size, key)
            continue
        c, d = min(n + 2, last), min(n + 3, last)
        q2 = _query(dec, buf, group, first + c)
        q3 = _query(dec, buf, group, first + d)
        rows = (room + n * row, room + b * row, room + c * row, room + d * row)
        score_keys(dec.kv_kind, (q0, q1, q2, q3), rows, keys, size, key)


@inline
def _mix_block(
    kind: int,
    buf: Any,
    count: int,
    values: int,
    wide: int,
    key: int,
    end: int,
    room: int,
    outs: int,
) -> None:
    """As `_score_block`. Repeated queries add to outputs beyond the last, which nobody reads."""
    row = 4 * buf.score_row
    step = 4 * wide
    for n in range(0, count, 4):
        at, out = room + n * row, outs + n * step
        if count - n <= 2:
            mix_values(kind, (at, at + row), (out, out + step), values, wide, key, end)
        else:
            rows = (at, at + row, at + 2 * row, at + 3 * row)
            targets = (out, out + step, out + 2 * step, out + 3 * step)
            mix_values(kind, rows, targets, values, wide, key, end)


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
def attention(
    dec: Any,
    number: int,
    lins: int,
    buf: Any,
    tokens: int,
    sequences: int,
    member: int,
    members: int,
) -> None:
    """Attention of layer `number`; every sequence has tokens / sequences of the tokens.

    Queries of several tokens are taken in turn, see `turns` in BUFFERS.
    """
    turns = buf.turns + 16 * lins + 8 * number
    each = tokens // sequences
    queries = dec.heads // dec.kv_heads * each
    size = min(QUERIES, queries)
    if each == 1:  # whole heads if that gives every member as much, else smaller parts
        while size > 2 and sequences * dec.kv_heads * ((queries + size - 1) // size) % members:
            size = (size + 1) // 2
    blocks = (queries + size - 1) // size
    items = sequences * dec.kv_heads * blocks
    room = buf.scores + member * buf.scores_bytes
    in_turn = tokens > 1
    item, end = share(items, member, members)
    if in_turn:
        item, end = atomic_add(turns, 1), items
    while item < end:
        sequence, group = item // blocks // dec.kv_heads, item // blocks % dec.kv_heads
        first = (blocks - 1 - item % blocks) * size  # the last queries see most keys: they begin
        count = min(size, queries - first)
        token = sequence * each
        start = load_i64(buf.positions + 8 * token) - token
        cache = load_i64(buf.caches + 8 * token)
        first += sequence * queries
        _attend_queries(dec, cache, number, buf, group, first, count, start, room)
        item = atomic_add(turns, 1) if in_turn else item + 1
