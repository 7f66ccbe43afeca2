"""Arrays of a model, written to its external data file as they are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper

from lutllm.tensorfile import f32_to_bf16

#: Arrays below this many bytes stay in the model file.
INLINE_BYTES = 1024
#: Alignment of arrays in the data file: a page, so that a runtime can map them.
ALIGNMENT = 4096


class Weights:
    """Collects initializers; large ones go to the file `path` at once, so memory stays small."""

    def __init__(self, path: Path):
        self.tensors: list[onnx.TensorProto] = []
        self._path = path
        self._file: Any = None

    def __enter__(self) -> Weights:
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, name: str, array: np.ndarray, kind: int | None = None) -> str:
        """Add an array under its own dtype, or raw bits of another `kind` (bfloat16 as u16)."""
        array = np.ascontiguousarray(array)
        code = helper.np_dtype_to_tensor_dtype(array.dtype) if kind is None else kind
        return self._add(name, array.shape, code, array.tobytes())

    def add_codes(self, name: str, codes: np.ndarray) -> str:
        """u8 codes; as UINT4, two a byte with the first in the low nibble, if all are below 16."""
        if codes.size and codes.max() > 15:
            return self.add(name, codes)
        flat = np.zeros(codes.size + codes.size % 2, np.uint8)
        flat[: codes.size] = codes.reshape(-1)
        packed = flat[0::2] | (flat[1::2] << 4)
        return self._add(name, codes.shape, TensorProto.UINT4, packed.tobytes())

    def add_float(self, name: str, values: np.ndarray) -> str:
        """f32 values in the smallest float type that holds them exactly."""
        kind, stored = narrow(values)
        return self.add(name, stored, kind)

    def _add(self, name: str, shape: tuple[int, ...], kind: int, data: bytes) -> str:
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        tensor.raw_data = data
        if len(data) >= INLINE_BYTES:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(offset)
            self._file.write(data)
            external_data_helper.set_external_data(
                tensor, self._path.name, offset=offset, length=len(data)
            )
            tensor.ClearField("raw_data")
        self.tensors.append(tensor)
        return name


def narrow(values: np.ndarray) -> tuple[int, np.ndarray]:
    """ONNX type and stored bits: bfloat16 or float16 where no value changes, else float32."""
    values = np.ascontiguousarray(values, np.float32)
    if not (values.view(np.uint32) & 0xFFFF).any():
        return TensorProto.BFLOAT16, f32_to_bf16(values)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.array_equal(half.astype(np.float32), values):
        return TensorProto.FLOAT16, half
    return TensorProto.FLOAT, values
