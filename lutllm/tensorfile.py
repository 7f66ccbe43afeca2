"""Reading and writing safetensors files without copying: tensors are views of the mapped file.

The safetensors library checks the header (offsets, overlaps, sizes); this module only maps the
data behind it, because the library's numpy interface copies and has no bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lutllm.errors import LutLLMError

#: safetensors name -> numpy dtype of the stored bytes (bfloat16 is kept as its 16 bits)
STORED = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
}
_HEADER_LIMIT = 100 << 20


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """u16 bit patterns of bfloat16 -> f32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """f32 -> u16 bit patterns of bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class TensorFile:
    """A mapped safetensors file. Opening reads the header only.

    Raises `error` (a LutLLMError class) naming the file when it is missing, truncated or corrupt.
    """

    def __init__(self, path: Path, error: type[LutLLMError]):
        self.path = path
        self._error = error
        try:
            with safe_open(str(path), framework="numpy"):
                pass
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _HEADER_LIMIT:
                    raise error(f"{path}: header of {length} bytes; not a safetensors file")
                header = json.loads(file.read(length))
        except FileNotFoundError:
            raise error(f"{path}: file not found") from None
        except (SafetensorError, OSError, ValueError) as cause:
            raise error(
                f"{path}: not a complete safetensors file ({cause}); fetch it again"
            ) from None
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._header: dict[str, dict[str, Any]] = header
        self._data = np.memmap(path, np.uint8, "r", offset=8 + length) if header else None

    def names(self) -> list[str]:
        return list(self._header)

    def dtype(self, name: str) -> str:
        """The safetensors dtype, for example "BF16"."""
        return self._entry(name)["dtype"]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name)["shape"])

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._header:
            raise self._error(f"{self.path}: tensor {name!r} is missing")
        return self._header[name]

    def view(self, name: str) -> np.ndarray:
        """The stored values as a read-only view of the file; bfloat16 as u16 bit patterns."""
        entry = self._entry(name)
        if entry["dtype"] not in STORED:
            raise self._error(
                f"{self.path}: tensor {name!r} has unsupported dtype {entry['dtype']}"
            )
        start, end = entry["data_offsets"]
        assert self._data is not None
        raw = self._data[start:end]
        return raw.view(STORED[entry["dtype"]]).reshape(entry["shape"])

    def float32(self, name: str) -> np.ndarray:
        """The tensor converted to float32 (a copy)."""
        kind = self.dtype(name)
        if kind not in ("F32", "F16", "BF16"):
            raise self._error(f"{self.path}: tensor {name!r} is {kind}; a float type is needed")
        view = self.view(name)
        return bf16_to_f32(view) if kind == "BF16" else np.array(view, np.float32)


def write_tensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """Write name -> (safetensors dtype, array); same input, same bytes.

    BF16 arrays are given as u16 bit patterns. Written here rather than by the library, whose
    interface and order of tensors change between versions: widest type first, then by name, so
    that every tensor is aligned.
    """
    names = sorted(tensors, key=lambda n: (-np.dtype(STORED[tensors[n][0]]).itemsize, n))
    arrays = [np.ascontiguousarray(tensors[n][1], STORED[tensors[n][0]]) for n in names]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in zip(names, arrays, strict=True):
        start, end = end, end + array.nbytes
        shape = list(tensors[name][1].shape)
        header[name] = {"dtype": tensors[name][0], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays:
            file.write(array.data)
