"""Table rows of pairs of channels, from the weight codebook, for the vector kernel sets."""

from __future__ import annotations

from typing import Any

from lutllm.emulator import plain
from lutllm.emulator.jit import inline
from lutllm.emulator.layout import AHEAD, SEGMENT
from lutllm.emulator.plain import segment_place, segment_slots, segment_vector, segment_wide
from lutllm.emulator.simd import Vector, add, ashr, prefetch, splat, store, vmax, vmin


@inline
def outward(dot: Vector) -> Vector:
    """dot - (dot < 0), so that rounding halves up then rounds them away from zero."""
    return add(dot, ashr(dot, 15))


def make_make_rows(
    together: int,
    row_bytes: int,
    words: Vector,
    mask: Any,
    entries: Any,
    pack: Any,
    pack_low: Any,
) -> Any:
    """The function `make_rows` of a kernel set, `together` slots at a time.

    row_bytes  of a row in one plane; its centroids take twice as many
    words      type of a vector of entries: half of the centroids of the slots
    entries    (book, vectors, factors, mask()) -> both vectors of rounded dot products
    pack       both vectors, saturated to the bytes of rows
    pack_low   both vectors, their low bytes
    """

    @inline
    def make_rows(lin: Any, group: int, segment: int, act_stage: int, act: int, rows: int) -> None:
        """As `plain.make_rows`."""
        if not lin.fast_rows:
            plain.make_rows(lin, group, segment, act_stage, act, rows)
            return
        place = group * lin.stream_slots + segment_place(lin, segment)
        book = lin.weight_codebook + place * 2 * row_bytes
        factors = lin.shift + 2 * (act_stage * lin.groups * lin.stream_slots + place)
        vectors = act + segment_vector(lin, segment)
        spread = mask()
        wide = segment_wide(lin, segment)
        bits = lin.table_bits if wide else min(lin.table_bits, 8)
        for slot in range(0, segment_slots(lin, segment), together):
            at = book + 2 * row_bytes * slot
            for line in range(0, 2 * row_bytes * together, 64):
                prefetch(at + AHEAD // 2 + line)
            entry0, entry1 = entries(at, vectors + 2 * slot, factors + 2 * slot, spread)
            if bits != 8:  # to 8 bits they are packed with saturation
                top = splat(words, (1 << (bits - 1)) - 1)
                low = splat(words, -(1 << (bits - 1)))
                entry0 = vmax(vmin(entry0, top), low)
                entry1 = vmax(vmin(entry1, top), low)
            if wide:
                low_plane = rows + SEGMENT * row_bytes
                store(low_plane + row_bytes * slot, pack_low(entry0, entry1))
                entry0, entry1 = ashr(entry0, 8), ashr(entry1, 8)
            store(rows + row_bytes * slot, pack(entry0, entry1))

    return make_rows
