"""Table rows of pairs of channels, from the weight codebook, for the vector kernel sets."""

from __future__ import annotations

from typing import Any

from lutllm.emulator import plain
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import AHEAD, SEGMENT
from lutllm.emulator.plain import (
    segment_exact,
    segment_place,
    segment_slots,
    segment_vector,
    segment_wide,
)
from lutllm.emulator.simd import Vector, add, ashr, load, prefetch, splat, store, vmax, vmin


@inline
def outward(dot: Vector) -> Vector:
    """dot - (dot < 0), so that rounding halves up then rounds them away from zero."""
    return add(dot, ashr(dot, 15))


def make_make_rows(
    together: int,
    row_bytes: int,
    book: Vector,
    words: Vector,
    mask: Any,
    spread: Any,
    entries: Any,
    pack: Any,
    pack_low: Any,
) -> Any:
    """The function `make_rows` of a kernel set, `together` slots at a time.

    row_bytes  of a row in one plane; its centroids take twice as many
    book       type of a vector of half the centroids of the slots
    words      type of a vector of their entries
    spread     (factors, mask()) -> the multiplier of every entry in a vector
    entries    (one half, other half, vectors, multipliers, exact, mask()) -> dot products of both,
               rounded unless exact
    pack       both vectors, saturated to the bytes of rows
    pack_low   both vectors, their low bytes
    """
    half_bytes = row_bytes * together

    @inline
    def make_rows(
        lin: Any,
        group: int,
        segment: int,
        act: int,
        act_bytes: int,
        tokens: int,
        rows: int,
        rows_bytes: int,
    ) -> None:
        """As `plain.make_rows`: what tokens share is loaded once for all of them."""
        if not lin.fast_rows:
            plain.make_rows(lin, group, segment, act, act_bytes, tokens, rows, rows_bytes)
            return
        place = group * lin.stream_slots + segment_place(lin, segment)
        books = lin.weight_codebook + place * 2 * row_bytes
        quarters = mask()
        wide, exact = segment_wide(lin, segment), segment_exact(lin, segment)
        bits = lin.table_bits if wide else min(lin.table_bits, 8)
        top, low = splat(words, (1 << (bits - 1)) - 1), splat(words, -(1 << (bits - 1)))
        step = rows_bytes * lin.act_stages
        for act_stage in range(lin.act_stages):
            factors = lin.shift + 2 * (act_stage * lin.groups * lin.stream_slots + place)
            vectors = act + segment_vector(lin, segment, act_stage)
            for slot in range(0, segment_slots(lin, segment), together):
                at = books + 2 * row_bytes * slot
                if act_stage == 0:
                    for line in range(0, 2 * half_bytes, 64):
                        prefetch(at + AHEAD // 2 + line)
                book0, book1 = load(book, at), load(book, at + half_bytes)
                factor = spread(factors + 2 * slot, quarters)
                vector = vectors + 2 * slot
                row = rows + act_stage * rows_bytes + row_bytes * slot
                for t in range(tokens):
                    entry0, entry1 = entries(
                        book0, book1, vector + t * act_bytes, factor, exact, quarters
                    )
                    if bits != 8:  # to 8 bits they are packed with saturation
                        entry0 = vmax(vmin(entry0, top), low)
                        entry1 = vmax(vmin(entry1, top), low)
                    if wide:
                        store(row + t * step + SEGMENT * row_bytes, pack_low(entry0, entry1))
                        entry0, entry1 = ashr(entry0, 8), ashr(entry1, 8)
                    store(row + t * step, pack(entry0, entry1))

    return make_rows
