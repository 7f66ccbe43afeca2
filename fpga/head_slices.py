"""The LUT linear before a head, cut into slices that an engine has room for.

A vocabulary is many times as wide as the widest projection of a layer. Slices have the same inputs,
and each as many outputs; the last is filled up with words that do not exist.
"""

from __future__ import annotations

import math

from fpga.design import ceil_div
from lutllm.config import HEAD_LINEAR, LutConfig
from lutllm.model_config import LinearShape, ModelConfig

#: Most floats of a word of vectors on chip. A slice is whole words, so that the logits of one
#: follow those of another without a gap.
WORD_FLOATS = 128


def slice_name(index: int) -> str:
    return f"{HEAD_LINEAR}.{index}"


def kind_name(linear: str) -> str:
    """What linears of one kind share: the last part of a name; of slices HEAD_LINEAR."""
    return HEAD_LINEAR if is_slice(linear) else linear.rsplit(".", 1)[-1]


def is_slice(linear: str) -> bool:
    return linear.startswith(f"{HEAD_LINEAR}.")


def slice_shapes(model: ModelConfig, lut: LutConfig) -> list[LinearShape]:
    """The slices in the order of the words: whole groups, where possible no wider than a layer's
    widest linear, which accumulators hold for many tokens."""
    unit = math.lcm(lut.group_size, WORD_FLOATS)
    widest = max(shape.out_features for shape in model.layer_linears(0))
    units = ceil_div(model.vocab_size, unit)
    count = ceil_div(units, max(1, widest // unit))
    width = ceil_div(units, count) * unit
    source = model.head_linear()
    return [
        LinearShape(slice_name(i), source.sources, source.in_features, width)
        for i in range(ceil_div(model.vocab_size, width))
    ]
