"""Memory images: the bytes behind every port of an engine, in the order its kernels read them.

`fpga/design.py` says how many beats each part has; here they are filled. All images are plain
bytes, words little-endian, padding zero unless the hardware needs otherwise (a padded table entry
is the offset-binary zero; a padded centroid repeats centroid 0, which then wins every tie).
"""

from __future__ import annotations

import numpy as np

from fpga.design import GATHER_INDEX_BITS, EngineDesign, LayerKind, Packing
from lutllm import intmath
from lutllm.lut_linear import LutLinear, pack_codes

NO_CHANNEL = (1 << GATHER_INDEX_BITS) - 1


def pack_words(words: np.ndarray, packing: Packing) -> np.ndarray:
    """Words to beats. words: u8[..., N, bytes of a word] -> u8[..., beats, beat bytes].

    Each run of N words starts on a beat.
    """
    *lead, count, size = words.shape
    beat_bytes = packing.axi_bits // 8
    beats = packing.beats(count)
    out = np.zeros((*lead, beats * packing.per_beat, packing.slot_bytes), np.uint8)
    if packing.bits > packing.axi_bits:
        out = np.zeros((*lead, count, packing.slot_bytes), np.uint8)
    out[..., :count, :size] = words
    return out.reshape(*lead, beats, beat_bytes)


def as_bytes(values: np.ndarray) -> np.ndarray:
    """The bytes of the last axis: dtype[..., n] -> u8[..., n * itemsize]."""
    return np.ascontiguousarray(values).view(np.uint8)


def _pad_axis(values: np.ndarray, axis: int, size: int, fill: int = 0) -> np.ndarray:
    width = [(0, 0)] * values.ndim
    width[axis] = (0, size - values.shape[axis])
    return np.pad(values, width, constant_values=fill)


def _by_channel(values: np.ndarray, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """Arrays per position [P, ...] to [channels, rounds, ...], zeros where a slot is padding."""
    positions = design.position_map(kind)
    out = values[np.maximum(positions, 0)]
    out[positions < 0] = 0
    return np.swapaxes(out, 0, 1)


def index_words(linear: LutLinear, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """Weight indices per channel: u8[channels, rounds, Sw, beats, beat bytes]."""
    codes = np.swapaxes(linear.unpack_weight_codes(), 0, 1)
    per_channel = _by_channel(codes, design, kind)
    lanes, subs = design.lanes, design.subs(kind)
    padded = _pad_axis(per_channel, -1, subs * lanes)
    words = pack_codes(padded.reshape(*padded.shape[:-1], subs, lanes), design.lut.code_bits)
    return pack_words(words, design.index_packing)


def table_rows(linear: LutLinear, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """Tables per channel: u8[channels, rounds, Sw, Sa, Ka, row beats, beat bytes]."""
    config = linear.config
    offset = 1 << (config.table_bits - 1)
    stages = []
    for t in range(config.act_stages):
        table = intmath.full_table(linear, t)  # i16[Ka, Sw, P, B, Kw]
        stages.append(np.moveaxis(table, 0, 2))  # [Sw, P, Ka, B, Kw]
    entries = np.moveaxis(np.stack(stages), (2, 1), (0, 1))  # [P, Sw, Sa, Ka, B, Kw]
    per_channel = _by_channel(entries, design, kind)
    padded = _pad_axis(per_channel, -2, design.groups(kind))
    biased = (padded.astype(np.int32) + offset).astype("<u2")
    return pack_words(_pack_entries(biased, config.table_bits), design.row_packing)


def _pack_entries(entries: np.ndarray, bits: int) -> np.ndarray:
    """As `pack_codes`, for up to 16 bits. u16[..., n] -> u8[..., bytes]."""
    if bits <= 8:
        return pack_codes(entries.astype(np.uint8), bits)
    flat = entries[..., None].view(np.uint8)
    used = np.unpackbits(flat, axis=-1, bitorder="little", count=bits)
    return np.packbits(used.reshape(*entries.shape[:-1], -1), axis=-1, bitorder="little")


def codebook_rows(
    linear: LutLinear, design: EngineDesign, kind: LayerKind
) -> tuple[np.ndarray, np.ndarray]:
    """What rows are computed from, per channel.

    Returns shifts u8[channels, rounds, Sw, Sa, beats, beat bytes] and codebooks
    u8[channels, rounds, Sw, beats, beat bytes].
    """
    groups = design.groups(kind)
    shifts = np.moveaxis(linear.table_shift, (2, 1), (0, 1))  # [P, Sw, Sa, B]
    shifts = _pad_axis(_by_channel(shifts, design, kind), -1, groups)
    codebook = np.swapaxes(linear.position_codebooks(), 0, 1)  # [P, Sw, B, Kw, v]
    codebook = _pad_axis(_by_channel(codebook, design, kind), 3, groups)
    codebook = _pad_axis(codebook, 4, design.lut.weight_centroids)
    words = as_bytes(codebook.reshape(*codebook.shape[:-2], -1))
    return (
        pack_words(shifts[..., None], design.shift_packing),
        pack_words(words, design.codebook_packing),
    )


def channel_image(linear: LutLinear, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """u8[channels, bytes]: per round and weight stage the indices, then what rows come from."""
    parts = [index_words(linear, design, kind)]
    if design.online_rows:
        shifts, codebooks = codebook_rows(linear, design, kind)
        parts += [shifts, codebooks]
    else:
        parts.append(table_rows(linear, design, kind))
    lead = parts[0].shape[:3]  # channels, rounds, Sw
    records = np.concatenate([part.reshape(*lead, -1) for part in parts], axis=-1)
    image = records.reshape(lead[0], -1)
    assert image.shape[1] == design.channel_beats(kind) * design.beat_bytes
    return image


def centroid_image(linear: LutLinear, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """u8[centroid ports, bytes]: words of one search pass of the channels of a port.

    Order: [round][act stage][pass][channel of the port][processing element][component].
    """
    assert linear.act_codebook is not None
    passes, pes = design.search_passes, design.pes
    codebook = np.swapaxes(linear.act_codebook, 0, 1)  # [P, Sa, Ka, v]
    padded = np.concatenate(
        [codebook, np.repeat(codebook[:, :, :1], passes * pes - codebook.shape[2], axis=2)], axis=2
    )
    per_channel = _by_channel(padded, design, kind)  # [channels, rounds, Sa, passes * pes, v]
    ports, share = design.centroid_ports, design.centroid_share
    split = per_channel.reshape(ports, share, *per_channel.shape[1:3], passes, pes, -1)
    ordered = np.moveaxis(split, 1, 4)  # [ports, rounds, Sa, passes, share, pes, v]
    words = as_bytes(ordered.reshape(ports, -1, share * pes * linear.config.vec_len))
    image = pack_words(words, design.centroid_packing).reshape(ports, -1)
    assert image.shape[1] == design.centroid_beats(kind) * design.beat_bytes
    return image


def parameter_image(linear: LutLinear, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """u8[parameter ports, bytes]: input scales by channel, block exponents, gather indices, output
    scales, biases. Beats take the ports in turn."""
    parts = [
        _input_scales(linear, design, kind),
        _block_shifts(linear, design, kind),
        _gather_indices(linear, design, kind),
        _output_params(linear.output_scale, design, kind),
    ]
    if linear.bias is not None:
        parts.append(_output_params(linear.bias, design, kind))
    rows = np.concatenate([_rows_of_beats(part, design) for part in parts])
    image = np.swapaxes(rows, 0, 1).reshape(design.config.parameter_ports, -1)
    assert image.shape[1] == design.parameter_beats(kind) * design.beat_bytes
    return image


def _rows_of_beats(part: np.ndarray, design: EngineDesign) -> np.ndarray:
    """Bytes of whole beats to u8[rows, parameter ports, beat bytes], padded to rows."""
    beats = part.reshape(-1, design.beat_bytes)
    rows = design.parameter_rows(len(beats))
    padded = _pad_axis(beats, 0, rows * design.config.parameter_ports)
    return padded.reshape(rows, -1, design.beat_bytes)


def _input_scales(linear: LutLinear, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """input_scale is per slot; the kernel multiplies before it gathers, so: per channel."""
    scales = np.zeros(design.in_beats(kind) * design.floats, np.float32)
    used = linear.input_perm >= 0
    scales[linear.input_perm[used]] = linear.input_scale[used]
    return as_bytes(scales)


def _block_shifts(linear: LutLinear, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """One word a pass, a byte a chain, in the order of the passes: [round][Sw][Sa]."""
    rounds, chains = design.rounds(kind), design.chains
    shifts = np.zeros((rounds, kind.weight_stages, kind.act_stages, chains), np.uint8)
    block = (np.arange(rounds) // design.rounds_per_block)[:, None] * chains + np.arange(chains)
    used = block < design.blocks(kind)
    stored = np.moveaxis(linear.block_shift, (2, 1), (0, 1))  # [NB, Sw, Sa]
    shifts = np.moveaxis(shifts, -1, 1)
    shifts[used] = stored[block[used]]
    words = np.moveaxis(shifts, 1, -1).reshape(-1, chains)
    return pack_words(words, design.block_shift_packing)


def _gather_indices(linear: LutLinear, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    v = linear.config.vec_len
    positions = design.position_map(kind)  # [rounds, channels]
    slots = np.maximum(positions, 0)[..., None] * v + np.arange(v)
    index = np.where(positions[..., None] >= 0, linear.input_perm[slots], -1)
    index = np.where(index < 0, NO_CHANNEL, index).astype("<u2")
    lanes = design.config.gather_lanes
    flat = _pad_axis(index.reshape(len(index), -1), 1, design.gather_steps * lanes, NO_CHANNEL)
    return pack_words(as_bytes(flat.reshape(-1, lanes)), design.gather_packing)


def _output_params(values: np.ndarray, design: EngineDesign, kind: LayerKind) -> np.ndarray:
    """Output scales or biases f32[M] in the order of results; a sub-block starts on a row."""
    lanes, subs = design.lanes, design.subs(kind)
    padded = _pad_axis(np.asarray(values, np.float32), 0, subs * lanes).reshape(subs, lanes)
    beats = design.parameter_rows(design.out_beats) * design.config.parameter_ports
    return as_bytes(_pad_axis(padded, 1, beats * design.floats))
