"""The output head of some tokens: float rows, int8 rows, or those that a LUT linear picks."""

from __future__ import annotations

from typing import Any

from lutllm.emulator.floats import BF16, I8, head_rows, split_words
from lutllm.emulator.int8_head import (
    BLOCK,
    int8_head_rows,
    largest_logit,
    quantize_hidden,
    screened_rows,
)
from lutllm.emulator.jit import inline
from lutllm.emulator.linear import apply_tables, code_inputs
from lutllm.emulator.records import LINEARS
from lutllm.emulator.simd import load_f32, store_f32
from lutllm.emulator.team import barrier, share


@inline
def prepare_head(dec: Any, buf: Any, first: int, tokens: int, member: int, members: int) -> None:
    """Normed rows as the head wants them: in its order, or as integers with `head_scales`."""
    padded = (dec.hidden + BLOCK - 1) // BLOCK * BLOCK
    low, high = share(tokens, member, members)
    for t in range(first + low, first + high):
        row = buf.normed + t * buf.h_bytes
        if dec.head_kind == BF16:
            split_words(row, padded)
        elif dec.head_kind == I8:
            store_f32(buf.head_scales + 4 * t, quantize_hidden(row, padded, dec.head_limit))


@inline
def code_head(
    dec: Any, lins: Any, buf: Any, first: int, tokens: int, member: int, members: int
) -> None:
    """Normed rows as the LUT linear before the head wants them, in `act` and `scales`."""
    index = LINEARS * dec.layers
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


@inline
def head_logits(
    dec: Any,
    lins: Any,
    buf: Any,
    first: int,
    tokens: int,
    out: int,
    arrivals: int,
    phase: int,
    member: int,
    members: int,
) -> int:
    """Head of rows first ... to out: f32[tokens, vocab]; returns the barriers passed so far.

    phase: those before. Rows are split in fours.
    """
    fours = (dec.vocab + 3) // 4
    low, high = share(fours, member, members)
    low, high = 4 * low, min(4 * high, dec.vocab)
    hidden = buf.normed + first * buf.h_bytes
    scratch = buf.scratch + member * buf.scratch_bytes
    if dec.screened:
        _coarse_logits(dec, lins, buf, first, tokens, out, member, members)
        barrier(arrivals, phase + 1, members)
        _least_logits(dec, buf, first, tokens, out, member, members)
        barrier(arrivals, phase + 2, members)
        for t in range(tokens):
            screened_rows(
                dec.head,
                dec.head_scale,
                dec.hidden,
                low,
                high,
                load_f32(buf.least + 4 * (first + t)),
                hidden + t * buf.h_bytes,
                load_f32(buf.head_scales + 4 * (first + t)),
                out + 4 * t * dec.vocab,
                scratch,
            )
        return phase + 2
    if dec.head_kind == I8:
        int8_head_rows(
            dec.head,
            dec.head_scale,
            dec.hidden,
            low,
            high,
            tokens,
            hidden,
            buf.h_bytes,
            buf.head_scales + 4 * first,
            out,
            4 * dec.vocab,
            scratch,
        )
        return phase
    head_rows(
        dec.head_kind,
        dec.head,
        dec.hidden,
        low,
        high,
        tokens,
        hidden,
        buf.h_bytes,
        out,
        4 * dec.vocab,
        scratch,
    )
    return phase


@inline
def _coarse_logits(
    dec: Any, lins: Any, buf: Any, first: int, tokens: int, out: int, member: int, members: int
) -> None:
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


@inline
def _least_logits(
    dec: Any, buf: Any, first: int, tokens: int, out: int, member: int, members: int
) -> None:
    """`least` of each token: coarse logits from there on are computed from rows."""
    low, high = share(tokens, member, members)
    for t in range(low, high):
        most = largest_logit(out + 4 * t * dec.vocab, dec.vocab)
        store_f32(buf.least + 4 * (first + t), most - dec.head_margin)
