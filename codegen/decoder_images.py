"""Memory images of the decoder: rows of head and embedding, rotary tables, norms.

`fpga/decoder_design.py` says where everything lies; here it is filled. Vectors start on a beat,
values are little-endian, padding is zero. An int8 row has its scale in its last four bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpga.decoder_design import DecoderConfig, DecoderDesign
from fpga.design import EngineDesign
from lutllm.artifact import EMBEDDING, HEAD, Artifact
from lutllm.errors import ConfigError
from lutllm.rope import rope_tables

FINAL_NORM = "model.norm.weight"
ROTARY = "rotary"


@dataclass(frozen=True)
class Span:
    """Where a tensor lies: `count` bytes at byte `offset` of each of `files`, and its hash.

    digest: sha256 of those bytes, file after file.
    """

    tensor: str
    files: tuple[str, ...]
    offset: int
    count: int
    digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        where = {"files": list(self.files), "offset": self.offset, "bytes": self.count}
        return {**where, "sha256": self.digest}


def head_name(decoder: DecoderDesign) -> str:
    return EMBEDDING if decoder.model.tie_word_embeddings else HEAD


def plan_decoder(
    artifact: Artifact, engines: list[EngineDesign], config: DecoderConfig
) -> DecoderDesign:
    """The decoder of an artifact whose linears `engines` run."""
    return DecoderDesign(
        config=config,
        model=artifact.model,
        embed_kind=artifact.stored(EMBEDDING)[0],
        head_kind=artifact.stored(artifact.head_name)[0],
        engines=tuple(engines),
        head_margin=artifact.quant.head_margin,
    )


def decoder_files(decoder: DecoderDesign) -> dict[str, int]:
    """path -> bytes of every image of the decoder, beside those of its engines."""
    return {
        f"images/{decoder.name}/{name}.bin": beats * decoder.beat_bytes
        for name, beats in decoder.image_beats().items()
    }


def spans(decoder: DecoderDesign) -> list[Span]:
    """Every tensor in the images, without hashes, in the order of the files."""
    model, beat = decoder.model, decoder.beat_bytes
    vocab = tuple(f"images/{decoder.name}/{name}.bin" for name in decoder.vocab_names)
    rows = decoder.vocab_rows
    out = [Span(head_name(decoder), vocab, 0, rows * decoder.row_beats(decoder.head_kind) * beat)]
    if not model.tie_word_embeddings:
        size = rows * decoder.row_beats(decoder.embed_kind) * beat
        out.append(Span(EMBEDDING, vocab, decoder.embed_base * beat, size))
    constants = (f"images/{decoder.name}/constants.bin",)
    out.append(Span(ROTARY, constants, 0, decoder.norm_base * beat))
    hidden, head = decoder.beats(model.hidden_size) * beat, decoder.head_beats * beat
    parts = [("input_layernorm", hidden), ("post_attention_layernorm", hidden)]
    if model.qk_norm:
        parts += [("self_attn.q_norm", head), ("self_attn.k_norm", head)]
    at = decoder.norm_base * beat
    for layer in range(model.num_hidden_layers):
        for part, size in parts:
            out.append(Span(f"model.layers.{layer}.{part}.weight", constants, at, size))
            at += size
    return [*out, Span(FINAL_NORM, constants, at, hidden)]


def _padded(values: np.ndarray, beat_bytes: int) -> bytes:
    """Rows [..., n] to bytes, each padded to whole beats."""
    extra = -values.shape[-1] * values.itemsize % beat_bytes // values.itemsize
    width = [(0, 0)] * (values.ndim - 1) + [(0, extra)]
    return np.ascontiguousarray(np.pad(values, width)).tobytes()


def _rotary(decoder: DecoderDesign) -> bytes:
    """Per position the cosines, then the sines."""
    cos, sin = rope_tables(decoder.model, decoder.context)
    angles = np.stack([cos, sin], axis=1).astype("<f4")
    return _padded(angles, decoder.beat_bytes)


def _contents(decoder: DecoderDesign, artifact: Artifact, span: Span) -> list[bytes]:
    """The bytes of a tensor in each of its files."""
    if span.tensor == ROTARY:
        return [_rotary(decoder)]
    if len(span.files) == 1 and not span.files[0].endswith("vocab_0.bin"):
        return [_padded(artifact.float32(span.tensor).astype("<f4"), decoder.beat_bytes)]
    artifact.float32(span.tensor)  # refuses values that are not finite
    kind, rows = artifact.stored(span.tensor)
    if kind == "I8":
        row_bytes = decoder.row_beats(kind) * decoder.beat_bytes
        rows = _rows_with_scales(rows, artifact.row_scales(span.tensor), row_bytes)
    ports = decoder.config.vocab_ports
    parts = (_padded(np.asarray(rows[p::ports]), decoder.beat_bytes) for p in range(ports))
    return [part.ljust(span.count, b"\0") for part in parts]


def _rows_with_scales(rows: np.ndarray, scales: np.ndarray, row_bytes: int) -> np.ndarray:
    """i8[V, H], f32[V] -> u8[V, row_bytes]: the row, zeros, the four bytes of its scale."""
    out = np.zeros((len(rows), row_bytes), np.uint8)
    out[:, : rows.shape[1]] = rows.view(np.uint8)
    out[:, -4:] = np.ascontiguousarray(scales, "<f4").view(np.uint8).reshape(-1, 4)
    return out


def write_decoder_images(root: Path, decoder: DecoderDesign, artifact: Artifact) -> list[Span]:
    """Write the images; returns every tensor's place and hash."""
    for path, size in decoder_files(decoder).items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.truncate(size)
    found = []
    for span in spans(decoder):
        digest = hashlib.sha256()
        for path, content in zip(span.files, _contents(decoder, artifact, span), strict=True):
            if len(content) != span.count:
                raise ConfigError(
                    f"{span.tensor}: {len(content)} bytes for {path}, which has {span.count}"
                )
            digest.update(content)
            with (root / path).open("r+b") as file:
                file.seek(span.offset)
                file.write(content)
        place = (span.tensor, span.files, span.offset, span.count)
        found.append(Span(*place, digest.hexdigest()))
    return found
