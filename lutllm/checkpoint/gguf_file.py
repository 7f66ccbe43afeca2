"""Reading a GGUF file: metadata, tensor headers, and values one tensor at a time.

The header is parsed here, because that takes a fraction of a second and checks every length
against the file; the `gguf` package turns quantized blocks into floats.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.errors import CheckpointError
from lutllm.pages import release
from lutllm.tensorfile import bf16_to_f32

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
#: metadata value type -> little-endian numpy dtype
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
#: ggml types that need no dequantization: id -> (kind, bytes of one value)
_PLAIN = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2)}
_MAX_DIMS = 4
_MAX_DEPTH = 4
#: Values dequantized at a time, which bounds the temporary memory.
_CHUNK_VALUES = 1 << 22


def is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == _MAGIC


@dataclass(frozen=True)
class GgufTensor:
    """Header of a tensor: shape (slowest dimension first), ggml type, bytes in the file."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    kind: str
    row_bytes: int
    offset: int

    @property
    def num_rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64))


class _Cursor:
    """Reads values from a mapped file; leaving its end raises CheckpointError."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int) -> int:
        """Advance by `size` bytes and return where they start."""
        start = self.at
        if size > len(self.data) - start:
            raise CheckpointError(
                f"{self.path}: the header leaves the file at byte {start}; "
                "the file is truncated or damaged, fetch it again"
            )
        self.at += size
        return start

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        size = self.number("Q")
        start = self.take(size)
        return self.data[start : start + size].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A metadata value: number, bool, str, numpy array of numbers, or list."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(depth + 1)
        dtype = self._dtype(kind)
        start = self.take(dtype.itemsize)
        return np.frombuffer(self.data, dtype, 1, start)[0].item()

    def _array(self, depth: int) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind in (_STRING, _ARRAY):
            if depth > _MAX_DEPTH or count > len(self.data):
                raise CheckpointError(f"{self.path}: an array of {count} values cannot be read")
            return [self.value(kind, depth) for _ in range(count)]
        dtype = self._dtype(kind)
        start = self.take(count * dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, start).copy()

    def _dtype(self, kind: int) -> np.dtype:
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path}: unknown metadata type {kind}; the file is damaged")
        return np.dtype(_SCALARS[kind])


class GgufFile:
    """A mapped GGUF file. Opening reads and checks the header; no weight is touched."""

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(self._map, path)
        cursor.take(len(_MAGIC))
        version = cursor.number("I")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{path}: GGUF version {version} is not supported; lutllm reads little-endian "
                f"versions {', '.join(map(str, _VERSIONS))}"
            )
        tensors, entries = cursor.number("Q"), cursor.number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.number("I"))
        if self.metadata.get("split.count", 1) > 1:
            raise CheckpointError(
                f"{path}: one of {self.metadata['split.count']} parts of a split model; join them "
                "with: llama-gguf-split --merge FIRST_PART OUT.gguf"
            )
        self.tensors = self._read_tensors(cursor, tensors)
        self._data = np.frombuffer(self._map, np.uint8)

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, GgufTensor]:
        raw = []
        for _ in range(count):
            name, dims = cursor.string(), cursor.number("I")
            if not 0 < dims <= _MAX_DIMS:
                raise CheckpointError(f"{self.path}: tensor {name!r} has {dims} dimensions")
            shape = tuple(cursor.number("Q") for _ in range(dims))[::-1]
            raw.append((name, shape, int(cursor.number("I")), int(cursor.number("Q"))))
        align = self.metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1:
            raise CheckpointError(f"{self.path}: general.alignment is {align!r}")
        start = -(-cursor.at // align) * align
        out = {entry[0]: self._tensor(*entry, start) for entry in raw}
        if len(out) != len(raw):
            raise CheckpointError(f"{self.path}: two tensors have the same name")
        return out

    def _tensor(
        self, name: str, shape: tuple[int, ...], ggml_type: int, offset: int, data_start: int
    ) -> GgufTensor:
        kind, block, block_bytes = self._block(name, ggml_type)
        if shape[-1] % block:
            raise CheckpointError(
                f"{self.path}: {name} has rows of {shape[-1]} values, not a multiple of the "
                f"{kind} block of {block}; the file is damaged"
            )
        tensor = GgufTensor(
            name, shape, ggml_type, kind, shape[-1] // block * block_bytes, data_start + offset
        )
        rows = 1
        for size in shape[:-1]:  # Python integers: a product that leaves 64 bits stays exact
            rows *= size
        end = tensor.offset + rows * tensor.row_bytes
        if end > len(self._map):
            raise CheckpointError(
                f"{self.path}: {name} ends at byte {end} of a file of {len(self._map)} bytes; "
                "the file is truncated, fetch it again"
            )
        return tensor

    def _block(self, name: str, ggml_type: int) -> tuple[str, int, int]:
        """Kind, values and bytes of one block of a ggml type."""
        if ggml_type in _PLAIN:
            kind, size = _PLAIN[ggml_type]
            return kind, 1, size
        constants = self._gguf().constants
        try:
            kind = constants.GGMLQuantizationType(ggml_type)
        except ValueError:
            raise CheckpointError(
                f"{self.path}: {name} has ggml type {ggml_type}, which the installed gguf package "
                "does not know; run: pip install -U gguf"
            ) from None
        return kind.name, *constants.GGML_QUANT_SIZES[kind]

    def _gguf(self) -> Any:
        try:
            import gguf
            import gguf.quants
        except ImportError:
            raise CheckpointError(
                f"{self.path}: quantized GGUF tensors need the gguf package; "
                'run: pip install "lutllm[gguf]"'
            ) from None
        return gguf

    def check_readable(self, name: str) -> None:
        """Raise CheckpointError unless the type of tensor `name` can be turned into floats."""
        tensor = self.tensors[name]
        if tensor.ggml_type in _PLAIN:
            return
        _, _, size = self._block(name, tensor.ggml_type)
        try:
            self._dequantize(np.zeros((1, size), np.uint8), tensor)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: {name} has ggml type {tensor.kind}, which the installed gguf "
                "package cannot read; run: pip install -U gguf"
            ) from None

    def _dequantize(self, raw: np.ndarray, tensor: GgufTensor) -> np.ndarray:
        """u8[rows, row_bytes] -> f32[rows, columns]."""
        if tensor.kind == "F32":
            return raw.view(np.float32)
        if tensor.kind == "F16":
            return raw.view(np.float16).astype(np.float32)
        if tensor.kind == "BF16":
            return bf16_to_f32(raw.view(np.uint16))
        gguf = self._gguf()
        kind = gguf.constants.GGMLQuantizationType(tensor.ggml_type)
        with np.errstate(invalid="ignore", over="ignore"):  # damaged scales are found afterwards
            return gguf.quants.dequantize(raw, kind)

    def raw_rows(self, name: str) -> np.ndarray:
        """u8[rows, row_bytes], a read-only view of the file."""
        tensor = self.tensors[name]
        end = tensor.offset + tensor.num_rows * tensor.row_bytes
        return self._data[tensor.offset : end].reshape(tensor.num_rows, tensor.row_bytes)

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """Chosen rows as floats. index: i64[N] -> f32[N, columns]."""
        chosen = np.ascontiguousarray(self.raw_rows(name)[index])
        return self._dequantize(chosen, self.tensors[name])

    def chunks(self, name: str, order: np.ndarray | None) -> Iterator[tuple[slice, np.ndarray]]:
        """The tensor as (rows, f32[rows, columns]), a few million values at a time.

        order: i64[rows] gives the row of the file for each row of the result, or None.
        """
        tensor = self.tensors[name]
        step = max(1, _CHUNK_VALUES // max(1, tensor.shape[-1]))
        order = np.arange(tensor.num_rows) if order is None else order
        for start in range(0, tensor.num_rows, step):
            rows = order[start : start + step]
            yield slice(start, start + len(rows)), self.rows(name, rows)
        release(self._map, tensor.offset, tensor.num_rows * tensor.row_bytes)
