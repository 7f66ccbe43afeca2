"""A LUT linear in the order the kernels read it.

slot      a position as the kernels see it. Within a weight stage, slots are sorted: positions with
          equal accumulator exponents lie together, and such a run is padded to whole quads of
          slots. A padding slot has zero centroids, so it adds 0.
segment   at most SEGMENT consecutive slots of one weight stage with the same exponents.
tile      TILE outputs of one group. A group is padded to whole tiles.
panel     at most PANEL_TILES tiles of one group: the outputs that share a set of generated rows.

Everything that is streamed lies in the order panel, segment, (tile,) slot, so one token reads codes
and codebooks front to back.

A tile of one slot is 64 codes: 64 bytes, or 32 when a code fits 4 bits. Then output i of the 64
lies in byte 4 (i % 8) + 2 (i // 8 % 2) + i // 16 % 2, nibble i // 32: taking even and odd bytes of
a shuffle result apart, and then even and odd 16-bit words, leaves runs of 8 outputs. In quads, a
tile of four slots is 128 bytes: output i of slot s lies in byte 64 (i // 32) + 4 (i % 16) + s,
nibble i // 16 % 2, so that four neighbouring bytes are one output. Of wider codes it is 256 bytes:
byte 64 (i // 16) + 4 (i % 16) + s, with bit 6 set in the second slot of each two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lutllm.config import LutConfig
from lutllm.emulator.cpu import ISA
from lutllm.emulator.jit import kernel
from lutllm.lut_linear import LutLinear

TILE = 64
UNIT = 16
QUAD = 4
SEGMENT = 7 * UNIT
PANEL_TILES = 8
#: Index vectors of a tile: each is 16 outputs of a quad.
PARTS = TILE // 16
#: Slots whose activations are a cache line, and a row of an AMX tile.
LINE_SLOTS = 32
#: Bytes of the centroids that 16 outputs have in a segment: [quads, 2 channels, 64].
PART_BYTES = SEGMENT // QUAD * 128
#: Room for those of a tile, and behind them for the sums of AMX tiles and what a last row reads.
CENTROID_BYTES = 2 * PARTS * PART_BYTES
#: Entries of a row that fills a register.
LARGE = 64
#: Bytes between the codes in use and those asked for: codes are read once, front to back.
AHEAD = 8192
_LINE = 64  # bytes of a cache line


def record_type(fields: str, *floats: str) -> np.dtype:
    """A record of int64 fields (named in one text) and float32 fields."""
    kinds = [(name, np.int64) for name in fields.split()] + [(name, np.float32) for name in floats]
    return np.dtype(kinds)


#: What a kernel knows of a linear: sizes, flags, and the addresses of its arrays (0 = absent).
#: by_weight     1 in scheme "weight"
#: by_token      1 where every token has a scale; act_limit: the largest quantized activation
#: chebyshev     1 where the search is by the largest difference, else by squares
#: fast_*        1 where the layout is that of the vector kernels, see `Packing`
#: slots         of the longest weight stage, whole UNITs; stream_slots: of all segments
#: orders        slot orders: 1, or one for each weight stage
#: row_stride    bytes of one generated row in one plane; row_bias is added to each entry, and
#:               sum_bias is what that adds to every accumulator (modulo 2^32)
#: row_planes    1: entries are bytes. 2: the first `wide_stages` weight stages have wider ones,
#:               as a plane of rows of high bytes (signed) and, SEGMENT rows further, a plane of
#:               low bytes (unsigned)
#: exact         bit s is 1 where entries of weight stage s are dot products (`LutLinear.exact`)
#: factor_bytes  bytes of what is multiplied of a token: every segment in whole lines, and a start
#: multiplied    1 where those of all are, and codebooks lie as `products` multiplies with them
#: slot_bytes    bytes of the weight codebook of one slot; code_bytes, of one tile of one slot
#: perm, scale   i32 and f32[slots, v]: the channel of each element, and what it is multiplied with;
#:               channel_scale: the latter by channel, f32[D]
#: copies        for orders after the first: i32[orders - 1, slots], the slot there of a slot of the
#:               first order, -1 = none
LINEAR = record_type(
    """
    in_features out_features vec_len act_centroids weight_centroids act_stages weight_stages
    by_weight by_token act_limit rotation chebyshev
    table_bits wide_stages exact multiplied factor_bytes
    slots orders stream_slots groups segments panels tiles
    fast_search fast_rows fast_lookup row_stride row_planes row_bias sum_bias slot_bytes code_bytes
    perm scale channel_scale copies act_codebook weight_codebook shift codes segment_table
    panel_table output_scale bias
    """
)

#: Columns of `segment_table` before the shifts [Sa], and of `panel_table`; all int64. The place of
#: a segment is its first slot in the stream of all segments.
SEGMENT_COLUMNS = 5  # order, first slot, slots, place, weight stage
PANEL_COLUMNS = 5  # group, first output, outputs, first tile, offset into codes


@dataclass(frozen=True)
class Packing:
    """Which layouts a linear gets from a kernel set.

    search: activation codebook [Sa, slots / 16, Ka, 16, 2]; else [Sa, slots, Ka, v]
    rows:   weight codebook of two slots as 64 bytes: centroids 0-7 of the first, of the second,
            8-15 of the first, of the second (in quads, of four slots as 128 bytes); multipliers
            i16 2^(15 - shift); else [slot][Kw][v] and shifts u8. With more than 16 centroids one
            slot as 128 bytes: centroids 16 n to 16 n + 7 for n < 4, then the other halves
    products: weight codebook of four slots as 128 bytes: first channels [4, 16], second channels,
            + 128 as u8
    lookup: rows are 16 entries, + 128 as u8 unless in quads; else i8[Kw]; low bytes are u8 always.
            In quads, rows of more entries are i8[LARGE]
    quads:  codes of four slots lie together; else of one
    """

    search: bool
    rows: bool
    lookup: bool
    quads: bool
    products: bool

    @classmethod
    def choose(cls, linear: LutLinear, isa: str) -> Packing:
        config = linear.config
        vector = isa != "plain"
        pairs = vector and config.vec_len == 2
        quads = isa in ("amx", "avx512")
        short = vector and config.weight_centroids <= (LARGE if quads else 16)
        # 16 bits hold centroid - 2 x, and index below score needs 31 bits: two stages at most
        search = pairs and config.scheme == "co" and config.act_stages <= 2
        rows = pairs and short and not _some_exact(linear)
        exact = config.act_stages == 1 and all(_exact_stages(linear))
        products = quads and rows and exact and config.weight_centroids <= 16
        return cls(search, rows, lookup=short, quads=short and quads, products=products)

    def row_entries(self, weight_centroids: int) -> int:
        """Entries that a row has room for."""
        if not self.lookup:
            return weight_centroids
        return 16 if weight_centroids <= 16 else LARGE

    @property
    def row_bias(self) -> int:
        """What is added to every entry."""
        return 128 if self.lookup and not self.quads else 0


def _exact_stages(linear: LutLinear) -> list[bool]:
    return [linear.exact(s) for s in range(linear.config.weight_stages)]


def _some_exact(linear: LutLinear) -> bool:
    """Whether a weight stage has shifts of 0 beside others, for which multipliers have no room."""
    zero = (linear.table_shift == 0).any(axis=(0, 2, 3))
    return bool((zero & ~np.array(_exact_stages(linear))).any())


@dataclass(frozen=True)
class PackedLinear:
    """The arrays of a packed linear, kept alive for the addresses in `record`."""

    name: str
    record: np.ndarray  # LINEAR[1]
    slot_position: np.ndarray  # i32[orders, slots], -1 = padding
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

    Returns slot_position i32[orders, slots] and the table i64[segments, 5 + Sa].
    """
    config = linear.config
    block = np.arange(linear.num_positions) // config.block_positions
    shifts = linear.block_shift[:, :, block].astype(np.int64)  # [Sa, Sw, P]
    same = (shifts == shifts[:, :1]).all()
    orders: list[np.ndarray] = []
    table = []
    place = 0
    for stage in range(config.weight_stages):
        order = 0 if same else stage
        slot_position, cuts = _cut_stage(shifts[:, stage])
        if order == len(orders):
            orders.append(slot_position)
        for first, count, *own in cuts:
            table.append([order, first, count, place, stage, *own])
            place += count
    slots = -(-max(map(len, orders)) // UNIT) * UNIT
    padded = [np.pad(o, (0, slots - len(o)), constant_values=-1) for o in orders]
    return np.array(padded, np.int32), np.array(table, np.int64)


def _cut_stage(shifts: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
    """Sort positions by their shifts i64[Sa, P], the largest first.

    Returns slot_position i32[whole quads] and the segments: first slot, slots, shifts.
    """
    order = np.lexsort((*-shifts[::-1],))
    keys = shifts[:, order]
    changes = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
    runs, cuts = [], []
    slot = 0
    for run in np.split(order, changes):
        padded = -(-len(run) // QUAD) * QUAD
        runs.append(np.pad(run, (0, padded - len(run)), constant_values=-1))
        for first in range(0, padded, SEGMENT):
            count = min(SEGMENT, padded - first)
            cuts.append([slot + first, count, *shifts[:, run[0]]])
        slot += padded
    return np.concatenate(runs), cuts


def cut_panels(linear: LutLinear, stream_slots: int, code_bytes: int) -> tuple[np.ndarray, int]:
    """The table i64[panels, 5] and the number of tiles."""
    config = linear.config
    table = []
    tile = 0
    for group in range(linear.num_groups):
        start = group * config.group_size
        end = min(start + config.group_size, linear.out_features)
        for first in range(start, end, PANEL_TILES * TILE):
            outputs = min(PANEL_TILES * TILE, end - first)
            offset = tile * stream_slots * code_bytes
            table.append([group, first, outputs, tile, offset])
            tile += -(-outputs // TILE)
    return np.array(table, np.int64), tile


def pack(linear: LutLinear, arena: Arena | None = None, isa: str = ISA) -> PackedLinear:
    """Repack `linear` for the kernels of `isa`. The result shares no array with it."""
    arena = arena or Arena(0)
    config = linear.config
    packing = Packing.choose(linear, isa)
    slot_position, segments = cut_segments(linear)
    stream = _stream(slot_position, segments)
    row_entries = packing.row_entries(config.weight_centroids)
    centroids = row_entries if packing.rows else config.weight_centroids
    code_bytes = TILE // 2 if config.weight_centroids <= 16 else TILE
    panels, tiles = cut_panels(linear, len(stream[0]), code_bytes)
    scale = np.where(linear.input_perm < 0, np.float32(0), linear.input_scale)
    first = slot_position[0]
    arrays = {
        "perm": _by_slot(arena, np.maximum(linear.input_perm, 0), first, config.vec_len),
        "scale": _by_slot(arena, scale, first, config.vec_len),
        "channel_scale": _copy(arena, _by_channel(linear)),
        "copies": _copies(slot_position),
        "weight_codebook": _weight_codebook(arena, linear, stream, packing),
        "shift": _shifts(arena, linear, stream, packing),
        "codes": _codes(arena, linear, stream, segments, panels, tiles, packing.quads, code_bytes),
        "segment_table": segments,
        "panel_table": panels,
        "output_scale": _copy(arena, linear.output_scale),
    }
    if linear.act_codebook is not None:
        arrays["act_codebook"] = _act_codebook(arena, linear, first, packing)
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
        "by_token": int(config.scales_tokens),
        "act_limit": config.act_limit,
        "rotation": config.rotation,
        "chebyshev": int(config.metric == "chebyshev"),
        "table_bits": config.table_bits,
        "wide_stages": config.wide_stages,
        "exact": sum(1 << s for s, exact in enumerate(_exact_stages(linear)) if exact),
        "multiplied": int(packing.products),
        "factor_bytes": 2 * LINE_SLOTS * int((-(-segments[:, 2] // LINE_SLOTS)).sum() + 1),
        "slots": slot_position.shape[1],
        "orders": len(slot_position),
        "stream_slots": len(stream[0]),
        "groups": linear.num_groups,
        "segments": len(segments),
        "panels": len(panels),
        "tiles": tiles,
        "fast_search": int(packing.search),
        "fast_rows": int(packing.rows),
        "fast_lookup": int(packing.lookup),
        "row_stride": row_entries,
        "row_planes": _row_planes(config),
        "row_bias": packing.row_bias,
        "sum_bias": _sum_bias(config, segments) if packing.row_bias else 0,
        "slot_bytes": centroids * config.vec_len,
        "code_bytes": code_bytes,
    }
    record = np.zeros(1, LINEAR)
    for key, value in values.items():
        record[key] = value
    for key, array in arrays.items():
        record[key] = array.ctypes.data
    return PackedLinear(linear.name, record, slot_position, arrays)


def _by_channel(linear: LutLinear) -> np.ndarray:
    """`input_scale` in the order of the channels, f32[D]; every channel has one slot."""
    used = linear.input_perm >= 0
    scale = np.empty(linear.in_features, np.float32)
    scale[linear.input_perm[used]] = linear.input_scale[used]
    return scale


def product_bytes(record: np.ndarray, tokens: int) -> np.ndarray:
    """Room that products of so many tokens take with linears like `record` (LINEAR[n]): i64[n]."""
    each = 4 * TILE + record["factor_bytes"]
    return np.where(record["multiplied"] > 0, CENTROID_BYTES + each * tokens, 0)


def exchange_codebooks(packed: PackedLinear, linear: LutLinear, isa: str = ISA) -> None:
    """Put codebooks and output scale of `linear` into what `pack` made of it earlier.

    Codes, shifts and order of inputs must be those of then.
    """
    packing = Packing.choose(linear, isa)
    arena = Arena(0)
    stream = _stream(*cut_segments(linear))
    arrays = packed.arrays
    arrays["weight_codebook"][:] = _weight_codebook(arena, linear, stream, packing)
    arrays["output_scale"][:] = linear.output_scale
    if linear.act_codebook is not None:
        first = packed.slot_position[0]
        arrays["act_codebook"][:] = _act_codebook(arena, linear, first, packing)


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


def _stream(slot_position: np.ndarray, segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight stage and position (-1 = padding) of each place in the stream of all segments."""
    stage = np.repeat(segments[:, 4], segments[:, 2])
    position = [slot_position[o, f : f + n] for o, f, n in segments[:, :3]]
    return stage, np.concatenate(position)


def _row_planes(config: LutConfig) -> int:
    """Bytes of an entry of the widest weight stage."""
    return 1 if config.table_bits <= 8 else 2


def _sum_bias(config: LutConfig, segments: np.ndarray) -> int:
    """What kernels with biased entries add to every accumulator beside them.

    128 for each byte they add up, times 2^shift; quads beyond whole UNITs are filled up with zero
    entries. Low bytes carry no 128, but where a quad is filled up the fill does.
    """
    count, stage = segments[:, 2], segments[:, 4]
    bytes_added = UNIT * (count // UNIT + count % UNIT // QUAD)
    wide = (stage < config.wide_stages) & (_row_planes(config) == 2)
    each = np.where(wide, (bytes_added << 8) + bytes_added - count, bytes_added)
    return 128 * int((each[:, None] << segments[:, SEGMENT_COLUMNS:]).sum())


def _copies(slot_position: np.ndarray) -> np.ndarray:
    """i32[orders - 1, slots]: where the position of a slot of the first order lies in the others"""
    first = slot_position[0]
    out = np.full((len(slot_position) - 1, len(first)), -1, np.int32)
    for row, other in zip(out, slot_position[1:], strict=True):
        place = np.empty(first.max() + 1, np.int32)
        place[other[other >= 0]] = np.flatnonzero(other >= 0)
        row[first >= 0] = place[first[first >= 0]]
    return out


def _weight_codebook(
    arena: Arena, linear: LutLinear, stream: tuple[np.ndarray, np.ndarray], packing: Packing
) -> np.ndarray:
    """i8[B, stream slots, slot_bytes]."""
    config = linear.config
    stage, position = stream
    count = config.weight_centroids
    if packing.rows:
        count = packing.row_entries(count)
    out = arena.take((linear.num_groups, len(stage), count, config.vec_len), np.int8)
    if count > config.weight_centroids:
        out[:] = 0
    book = position // config.codebook_positions
    for group in range(linear.num_groups):
        out[group, :, : config.weight_centroids] = linear.weight_codebook[stage, book, group]
    out[:, position < 0] = 0
    if packing.products:  # [quad, slot, 16, channel] -> [quad, channel, slot, 16]
        quads = out.reshape(linear.num_groups, -1, QUAD * 16, 2)
        planes = quads.swapaxes(2, 3).reshape(out.shape)
        out[:] = (planes.view(np.uint8) ^ np.uint8(128)).view(np.int8)
    elif packing.rows:  # [some, slot, half, 8, 2] -> [some, half, slot, 8, 2]
        together = QUAD if packing.quads else 2
        some = out.reshape(linear.num_groups, -1, together * 32)
        some[:] = (
            some.reshape(linear.num_groups, -1, together, 2, 16).swapaxes(2, 3).reshape(some.shape)
        )
    return out


def _shifts(
    arena: Arena, linear: LutLinear, stream: tuple[np.ndarray, np.ndarray], packing: Packing
) -> np.ndarray:
    """[Sa, B, stream slots]: shifts u8, or the multipliers i16 2^(15 - shift).

    A two-element dot product is below 2^15, so a shift above 15 gives 0: multiplier 0. So does a
    shift of 0 (`LutLinear.exact`): kernels do not multiply then.
    """
    stage, position = stream
    shift = linear.table_shift[:, stage, position].swapaxes(1, 2)
    dtype = np.int16 if packing.rows else np.uint8
    out = arena.take(shift.shape, dtype)
    if packing.rows:
        power = 1 << (15 - np.clip(shift, 1, 15).astype(np.int64))
        out[:] = np.where((shift > 15) | (shift == 0), 0, power)
    else:
        out[:] = shift
    out[:, :, position < 0] = 1
    return out


def _codes(
    arena: Arena,
    linear: LutLinear,
    stream: tuple[np.ndarray, np.ndarray],
    segments: np.ndarray,
    panels: np.ndarray,
    tiles: int,
    quads: bool,
    code_bytes: int,
) -> np.ndarray:
    """u8, order panel, segment, tile, slot; one tile is `code_bytes`."""
    stage, position = stream
    out = arena.take(tiles * len(stage) * code_bytes, np.uint8)
    source = np.ascontiguousarray(linear.weight_codes)
    bits = linear.config.code_bits
    _pack_codes(source, bits, quads, code_bytes, stage, position, segments, panels, out)
    return out


@kernel
def _pack_codes(
    source: np.ndarray,
    bits: int,
    quads: bool,
    code_bytes: int,
    stages: np.ndarray,
    positions: np.ndarray,
    segments: np.ndarray,
    panels: np.ndarray,
    out: np.ndarray,
) -> None:
    codes = np.zeros(TILE, np.uint8)
    for panel in range(len(panels)):
        first_output, outputs = panels[panel, 1], panels[panel, 2]
        at = panels[panel, 4]
        tiles = (outputs + TILE - 1) // TILE
        for segment in range(len(segments)):
            count, place = segments[segment, 2], segments[segment, 3]
            for slot in range(count):
                stage, position = stages[place + slot], positions[place + slot]
                for tile in range(tiles):
                    valid = min(TILE, outputs - tile * TILE) if position >= 0 else 0
                    if valid > 0:
                        first = first_output + tile * TILE
                        _read_codes(source[stage, position], bits, first, valid, codes)
                    codes[valid:] = 0
                    if quads:
                        target = at + (tile * count + slot // QUAD * QUAD) * code_bytes
                        whole = out[target : target + QUAD * code_bytes]
                        _write_in_quad(codes, code_bytes, slot % QUAD, whole)
                    else:
                        target = at + (tile * count + slot) * code_bytes
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


@kernel
def _write_in_quad(codes: np.ndarray, code_bytes: int, slot: int, out: np.ndarray) -> None:
    if code_bytes == TILE:
        for i in range(TILE):
            out[64 * (i // 16) + 4 * (i % 16) + slot] = codes[i] | (slot % 2 << 6)
        return
    for half in range(2):
        for i in range(16):
            low, high = codes[32 * half + i], codes[32 * half + 16 + i]
            out[64 * half + 4 * i + slot] = low | (high << 4)
