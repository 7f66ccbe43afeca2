"""The LUT linear before a head as the linears that an engine runs: its slices."""

from __future__ import annotations

import dataclasses

import numpy as np

from lutllm.lut_linear import LutLinear, pack_codes
from lutllm.model_config import LinearShape


def slice_linear(linear: LutLinear, shape: LinearShape, first: int) -> LutLinear:
    """Outputs `first` to first + shape.out_features of `linear`, whole groups.

    Outputs that it does not have are there with code 0 and scale 0: they give 0.
    """
    group, width = linear.config.group_size, shape.out_features
    assert first % group == width % group == 0, "a slice is whole groups"
    groups = slice(first // group, (first + width) // group)
    codes = linear.unpack_weight_codes()[..., first : first + width]
    return dataclasses.replace(
        linear,
        name=shape.name,
        out_features=width,
        weight_codebook=_filled(linear.weight_codebook[:, :, groups], 2, width // group),
        weight_codes=pack_codes(_filled(codes, 2, width), linear.config.code_bits),
        table_shift=_filled(linear.table_shift[..., groups], 3, width // group),
        output_scale=_filled(linear.output_scale[first : first + width], 0, width),
    )


def _filled(values: np.ndarray, axis: int, size: int) -> np.ndarray:
    pad = [(0, 0)] * values.ndim
    pad[axis] = (0, size - values.shape[axis])
    return np.pad(values, pad)
