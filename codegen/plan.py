"""Which engines an artifact needs and which linears each of them runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from fpga.design import EngineConfig, EngineDesign, LayerKind
from lutllm.artifact import Artifact
from lutllm.config import LutConfig
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
    indices = select_layers(artifact.model.num_hidden_layers, layers)
    return [shape for i in indices for shape in artifact.model.layer_linears(i)]


def _engine_key(config: LutConfig) -> LutConfig:
    """What linears of one engine share: everything but the number of stages."""
    return dataclasses.replace(config, act_stages=1, weight_stages=1)


def _kinds(members: Sequence[tuple[LinearShape, LutConfig, bool]]) -> tuple[LayerKind, ...]:
    groups: dict[tuple[str, tuple[int, int], tuple[int, int], bool], list[str]] = {}
    for shape, config, bias in members:
        suffix = shape.name.rsplit(".", 1)[-1]
        sizes = (shape.in_features, shape.out_features)
        stages = (config.act_stages, config.weight_stages)
        groups.setdefault((suffix, sizes, stages, bias), []).append(shape.name)
    kinds: list[LayerKind] = []
    for (suffix, sizes, stages, bias), names in groups.items():
        twins = sum(kind.name == suffix or kind.name.startswith(f"{suffix}_v") for kind in kinds)
        name = f"{suffix}_v{twins + 1}" if twins else suffix
        kinds.append(LayerKind(name, *sizes, *stages, bias, tuple(names)))
    return tuple(kinds)


def plan_engines(
    artifact: Artifact, shapes: Sequence[LinearShape], config: EngineConfig
) -> list[EngineDesign]:
    """One engine per distinct quantization (stages aside), in order of first use."""
    members: dict[LutConfig, list[tuple[LinearShape, LutConfig, bool]]] = {}
    for shape in shapes:
        lut = artifact.quant.for_linear(shape.name)
        bias = artifact.model.qkv_bias and shape.name.endswith(".qkv_proj")
        members.setdefault(_engine_key(lut), []).append((shape, lut, bias))
    engines = []
    for i, (key, linears) in enumerate(members.items()):
        most = dataclasses.replace(
            key,
            act_stages=max(lut.act_stages for _, lut, _ in linears),
            weight_stages=max(lut.weight_stages for _, lut, _ in linears),
        )
        name = "lut_linear" if len(members) == 1 else f"lut_linear_{i}"
        engines.append(EngineDesign(name, config, most, _kinds(linears)))
    return engines
