"""A LUT linear in the order the kernels read it.

slot      a position as the kernels see it. Runs of positions whose accumulator exponents are equal
          are padded to a multiple of UNIT slots; a padding slot has zero centroids, so it adds 0.
segment   at most SEGMENT consecutive slots with the same exponents in every stage.
tile      TILE outputs of one group. A group is padded to whole tiles.
panel     at most PANEL_TILES tiles of one group: the outputs that share a set of generated rows.

Everything that is streamed lies in the order panel, segment, weight stage, (tile,) slot, so one
token reads codes and codebooks front to back.

A tile of one slot is 64 codes: 64 bytes, or 32 when a code fits 4 bits. Then output i of the 64
lies in byte 4 (i % 8) + 2 (i // 8 % 2) + i // 16 % 2, nibble i // 32: taking even and odd bytes of
a shuffle result apart, and then even and odd 16-bit words, leaves runs of 8 outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lutllm.emulator.cpu import ISA
from lutllm.emulator.jit import kernel
from lutllm.lut_linear import LutLinear

TILE = 64
UNIT = 16
SEGMENT = 7 * UNIT
PANEL_TILES = 8
_LINE = 64  # bytes of a cache line


def record_type(fields: str, *floats: str) -> np.dtype:
    """A record of int64 fields (named in one text) and float32 fields."""
    kinds = [(name, np.int64) for name in fields.split()] + [(name, np.float32) for name in floats]
    return np.dtype(kinds)


#: What a kernel knows of a linear: sizes, flags, and the addresses of its arrays (0 = absent).
#: by_weight     1 in scheme "weight"
#: fast_*        1 where the layout is that of the vector kernels, see `Packing`
#: row_stride    bytes of one generated row; row_bias is added to each entry, and sum_bias is what
#:               that adds to every accumulator (modulo 2^32)
#: slot_bytes    bytes of the weight codebook of one slot; code_bytes, of one tile of one slot
LINEAR = record_type(
    """
    in_features out_features vec_len act_centroids weight_centroids act_stages weight_stages
    by_weight table_bits slots groups segments panels tiles
    fast_search fast_rows fast_lookup row_stride row_bias sum_bias slot_bytes code_bytes
    perm scale act_codebook weight_codebook shift codes segment_table panel_table
    output_scale bias
    """
)

#: Columns of `segment_table` before the shifts [Sa, Sw], and of `panel_table`; all int64.
SEGMENT_COLUMNS = 2  # first slot, slots
PANEL_COLUMNS = 5  # group, first output, outputs, first tile, offset into codes


@dataclass(frozen=True)
class Packing:
    """Which layouts a linear gets from a kernel set.

    search: activation codebook [Sa, slots / 16, Ka, 16, 2]; else [Sa, slots, Ka, v]
    rows:   weight codebook of two slots as 64 bytes: centroids 0-7 of the first, of the second,
            8-15 of the first, of the second; multipliers i16 2^(15 - shift); else [slot][Kw][v]
            and shifts u8
    lookup: rows are 16 entries + 128 as u8; else i8[Kw]
    """

    search: bool
    rows: bool
    lookup: bool

    @classmethod
    def choose(cls, linear: LutLinear, isa: str) -> Packing:
        config = linear.config
        vector = isa != "plain"
        pairs = vector and config.vec_len == 2
        short = vector and config.weight_centroids <= 16
        # 16 bits hold centroid - 2 x, and index below score needs 31 bits: two stages at most
        search = pairs and config.scheme == "co" and config.act_stages <= 2
        return cls(search=search, rows=pairs and short, lookup=short)


@dataclass(frozen=True)
class PackedLinear:
    """The arrays of a packed linear, kept alive for the addresses in `record`."""

    name: str
    record: np.ndarray  # LINEAR[1]
    slot_position: np.ndarray  # i32[slots], -1 = padding
    arrays: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())


def aligned(shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray:
    """An uninitialised array that starts on a cache line."""
    return Arena(0).take(shape, dtype)


class Arena:
    """Arrays carved from large blocks, each array on a cache line of its own.

    Blocks of many megabytes get huge pages (NumPy asks for them), without which walking page
    tables costs more than reading the tables.
    """

    def __init__(self, block_bytes: int = 32 << 20):
        self._block_bytes = block_bytes
        self._free = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > len(self._free):
            raw = np.empty(max(size, self._block_bytes) + _LINE, np.uint8)
            self._free = raw[-raw.ctypes.data % _LINE :]
        out = self._free[:size].view(dtype).reshape(shape)
        self._free = self._free[-(-size // _LINE) * _LINE :]
        return out


def cut_segments(linear: LutLinear) -> tuple[np.ndarray, np.ndarray]:
    """Slots and segments of a linear.

    Returns slot_position i32[slots] and the table i64[segments, 2 + Sa Sw].
    """
    config = linear.config
    stages = config.act_stages * config.weight_stages
    shifts = linear.block_shift.reshape(stages, -1).astype(np.int64)
    changes = np.flatnonzero((shifts[:, 1:] != shifts[:, :-1]).any(axis=0)) + 1
    starts = np.concatenate([[0], changes]) * config.block_positions
    ends = np.append(starts[1:], linear.num_positions)
    slot_position: list[np.ndarray] = []
    table = []
    slot = 0
    for start, end in zip(starts, ends, strict=True):
        padded = -(-(end - start) // UNIT) * UNIT
        run = np.full(padded, -1, np.int32)
        run[: end - start] = np.arange(start, end)
        slot_position.append(run)
        for first in range(0, padded, SEGMENT):
            row = [slot + first, min(SEGMENT, padded - first)]
            table.append(row + list(shifts[:, start // config.block_positions]))
        slot += padded
    return np.concatenate(slot_position), np.array(table, np.int64)


def cut_panels(linear: LutLinear, slots: int, code_bytes: int) -> tuple[np.ndarray, int]:
    """The table i64[panels, 5] and the number of tiles."""
    config = linear.config
    table = []
    tile = 0
    for group in range(linear.num_groups):
        start = group * config.group_size
        end = min(start + config.group_size, linear.out_features)
        for first in range(start, end, PANEL_TILES * TILE):
            outputs = min(PANEL_TILES * TILE, end - first)
            offset = tile * slots * config.weight_stages * code_bytes
            table.append([group, first, outputs, tile, offset])
            tile += -(-outputs // TILE)
    return np.array(table, np.int64), tile


def pack(linear: LutLinear, arena: Arena | None = None, isa: str = ISA) -> PackedLinear:
    """Repack `linear` for the kernels of `isa`. The result shares no array with it."""
    arena = arena or Arena(0)
    config = linear.config
    packing = Packing.choose(linear, isa)
    slot_position, segments = cut_segments(linear)
    slots = len(slot_position)
    centroids = 16 if packing.rows else config.weight_centroids
    code_bytes = TILE // 2 if config.weight_centroids <= 16 else TILE
    panels, tiles = cut_panels(linear, slots, code_bytes)
    row_bias = 128 if packing.lookup else 0
    scale = np.where(linear.input_perm < 0, np.float32(0), linear.input_scale)
    arrays = {
        "perm": _by_slot(arena, np.maximum(linear.input_perm, 0), slot_position, config.vec_len),
        "scale": _by_slot(arena, scale, slot_position, config.vec_len),
        "weight_codebook": _weight_codebook(arena, linear, slot_position, segments, packing),
        "shift": _shifts(arena, linear, slot_position, segments, packing),
        "codes": _codes(arena, linear, slot_position, segments, panels, tiles, code_bytes),
        "segment_table": segments,
        "panel_table": panels,
        "output_scale": _copy(arena, linear.output_scale),
    }
    if linear.act_codebook is not None:
        arrays["act_codebook"] = _act_codebook(arena, linear, slot_position, packing)
    if linear.bias is not None:
        arrays["bias"] = _copy(arena, linear.bias)
    values = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "vec_len": config.vec_len,
        "act_centroids": config.act_centroids,
        "weight_centroids": config.weight_centroids,
        "act_stages": config.act_stages,
        "weight_stages": config.weight_stages,
        "by_weight": int(config.scheme == "weight"),
        "table_bits": config.table_bits,
        "slots": slots,
        "groups": linear.num_groups,
        "segments": len(segments),
        "panels": len(panels),
        "tiles": tiles,
        "fast_search": int(packing.search),
        "fast_rows": int(packing.rows),
        "fast_lookup": int(packing.lookup),
        "row_stride": 16 if packing.lookup else config.weight_centroids,
        "row_bias": row_bias,
        "sum_bias": row_bias * int((segments[:, 1:2] << segments[:, SEGMENT_COLUMNS:]).sum()),
        "slot_bytes": centroids * config.vec_len,
        "code_bytes": code_bytes,
    }
    record = np.zeros(1, LINEAR)
    for key, value in values.items():
        record[key] = value
    for key, array in arrays.items():
        record[key] = array.ctypes.data
    return PackedLinear(linear.name, record, slot_position, arrays)


def _copy(arena: Arena, values: np.ndarray) -> np.ndarray:
    out = arena.take(values.shape, values.dtype)
    out[...] = values
    return out


def _by_slot(arena: Arena, values: np.ndarray, slot_position: np.ndarray, v: int) -> np.ndarray:
    """[P*v] in position order -> [slots*v] in slot order, padding slots 0."""
    out = arena.take(len(slot_position) * v, values.dtype).reshape(-1, v)
    out[:] = values.reshape(-1, v)[slot_position]
    out[slot_position < 0] = 0
    return out.reshape(-1)


def _act_codebook(
    arena: Arena, linear: LutLinear, slot_position: np.ndarray, packing: Packing
) -> np.ndarray:
    """i8[Sa, slots, Ka, v], or i8[Sa, slots / 16, Ka, 16, 2] for the vector search."""
    assert linear.act_codebook is not None
    book = linear.act_codebook[:, slot_position]
    book[:, slot_position < 0] = 0
    if packing.search:
        stages, slots, count, v = book.shape
        book = book.reshape(stages, slots // UNIT, UNIT, count, v).swapaxes(2, 3)
    out = arena.take(book.shape, np.int8)
    out[:] = book
    return out


def _stream_order(segments: np.ndarray, stages: int) -> tuple[np.ndarray, np.ndarray]:
    """The (weight stage, slot) of each place in a stream ordered segment, stage, slot."""
    stage, slot = [], []
    for first, count in segments[:, :2]:
        for s in range(stages):
            stage.append(np.full(count, s))
            slot.append(np.arange(first, first + count))
    return np.concatenate(stage), np.concatenate(slot)


def _weight_codebook(
    arena: Arena,
    linear: LutLinear,
    slot_position: np.ndarray,
    segments: np.ndarray,
    packing: Packing,
) -> np.ndarray:
    """i8[B, slots * Sw, slot_bytes] in stream order."""
    config = linear.config
    stage, slot = _stream_order(segments, config.weight_stages)
    position = slot_position[slot]
    count = 16 if packing.rows else config.weight_centroids
    shape = (linear.num_groups, len(slot), count, config.vec_len)
    out = arena.take(shape, np.int8)
    if count > config.weight_centroids:
        out[:] = 0
    for group in range(linear.num_groups):
        out[group, :, : config.weight_centroids] = linear.weight_codebook[stage, position, group]
    out[:, position < 0] = 0
    if packing.rows:  # [pair, slot, half, 8, 2] -> [pair, half, slot, 8, 2]
        pairs = out.reshape(linear.num_groups, len(slot) // 2, 2, 2, 16)
        pairs[:] = pairs.swapaxes(2, 3).copy()
    return out


def _shifts(
    arena: Arena,
    linear: LutLinear,
    slot_position: np.ndarray,
    segments: np.ndarray,
    packing: Packing,
) -> np.ndarray:
    """[Sa, B, slots * Sw] in stream order: shifts u8, or the multipliers i16 2^(15 - shift).

    A two-element dot product is below 2^15, so a shift above 15 gives 0: multiplier 0.
    """
    stage, slot = _stream_order(segments, linear.config.weight_stages)
    position = slot_position[slot]
    shift = linear.table_shift[:, stage, position].swapaxes(1, 2)
    dtype = np.int16 if packing.rows else np.uint8
    out = arena.take(shift.shape, dtype)
    if packing.rows:
        out[:] = np.where(shift > 15, 0, 1 << (15 - np.minimum(shift, 15).astype(np.int64)))
    else:
        out[:] = shift
    out[:, :, position < 0] = 1
    return out


def _codes(
    arena: Arena,
    linear: LutLinear,
    slot_position: np.ndarray,
    segments: np.ndarray,
    panels: np.ndarray,
    tiles: int,
    code_bytes: int,
) -> np.ndarray:
    """u8, order panel, segment, weight stage, tile, slot; one tile is `code_bytes`."""
    config = linear.config
    out = arena.take(tiles * len(slot_position) * config.weight_stages * code_bytes, np.uint8)
    _pack_codes(
        np.ascontiguousarray(linear.weight_codes),
        config.code_bits,
        code_bytes,
        slot_position,
        segments,
        panels,
        out,
    )
    return out


@kernel
def _pack_codes(
    source: np.ndarray,
    bits: int,
    code_bytes: int,
    slot_position: np.ndarray,
    segments: np.ndarray,
    panels: np.ndarray,
    out: np.ndarray,
) -> None:
    codes = np.zeros(TILE, np.uint8)
    stages = source.shape[0]
    for panel in range(len(panels)):
        first_output, outputs = panels[panel, 1], panels[panel, 2]
        at = panels[panel, 4]
        tiles = (outputs + TILE - 1) // TILE
        for segment in range(len(segments)):
            slot0, count = segments[segment, 0], segments[segment, 1]
            for stage in range(stages):
                for slot in range(count):
                    position = slot_position[slot0 + slot]
                    for tile in range(tiles):
                        target = at + (tile * count + slot) * code_bytes
                        valid = min(TILE, outputs - tile * TILE) if position >= 0 else 0
                        if valid > 0:
                            first = first_output + tile * TILE
                            _read_codes(source[stage, position], bits, first, valid, codes)
                        codes[valid:] = 0
                        _write_tile(codes, code_bytes, out[target : target + code_bytes])
                at += tiles * count * code_bytes


@kernel
def _read_codes(row: np.ndarray, bits: int, first: int, count: int, codes: np.ndarray) -> None:
    """codes[:count] = codes `first`... of a row packed by `lutllm.lut_linear.pack_codes`."""
    if bits == 4 and first % 2 == 0:
        base = first // 2
        for i in range(count // 2):
            both = row[base + i]
            codes[2 * i] = both & 15
            codes[2 * i + 1] = both >> 4
        if count % 2:
            codes[count - 1] = row[base + count // 2] & 15
        return
    mask = (1 << bits) - 1
    for i in range(count):
        bit = (first + i) * bits
        word = np.int64(row[bit >> 3])
        if (bit & 7) + bits > 8:
            word |= np.int64(row[(bit >> 3) + 1]) << 8
        codes[i] = (word >> (bit & 7)) & mask


@kernel
def _write_tile(codes: np.ndarray, code_bytes: int, out: np.ndarray) -> None:
    if code_bytes == TILE:
        out[:] = codes
        return
    for i in range(TILE // 2):
        out[4 * (i % 8) + 2 * (i // 8 % 2) + i // 16 % 2] = codes[i] | (codes[32 + i] << 4)
