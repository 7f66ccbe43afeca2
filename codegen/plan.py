"""Which linears of an artifact an export covers."""

from __future__ import annotations

from collections.abc import Iterable

from fpga.head_slices import slice_shapes
from lutllm.artifact import Artifact
from lutllm.config import HEAD_LINEAR
from lutllm.errors import ConfigError
from lutllm.model_config import LinearShape


def select_layers(count: int, layers: int | Iterable[int] | None) -> list[int]:
    """Layer indices: all of `count`, the first N, or those named. ConfigError when out of range."""
    if layers is None:
        return list(range(count))
    if isinstance(layers, int):
        if not 1 <= layers <= count:
            raise ConfigError(f"layers is {layers}; the model has 1 to {count}")
        return list(range(layers))
    chosen = sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise ConfigError(f"layers {chosen}: the model has layers 0 to {count - 1}")
    return chosen


def select_linears(artifact: Artifact, layers: int | Iterable[int] | None) -> list[LinearShape]:
    """Those of the layers; with all layers the slices of a LUT linear before the head, too."""
    model, quant = artifact.model, artifact.quant
    indices = select_layers(model.num_hidden_layers, layers)
    shapes = [shape for i in indices for shape in model.layer_linears(i)]
    if quant.lut_head and len(indices) == model.num_hidden_layers:
        shapes += slice_shapes(model, quant.for_linear(HEAD_LINEAR))
    return shapes
