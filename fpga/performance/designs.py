"""Designs from a model's shape and quantization alone: nothing of the weights is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fpga.decoder_design import DecoderConfig, DecoderDesign
from fpga.design import EngineConfig, EngineDesign, LayerKind, ceil_div
from lutllm.config import LutConfig, QuantConfig
from lutllm.model_config import LinearShape, ModelConfig

HEAD = "lm_head"
DEFAULT_DECODER = DecoderConfig()


def model_engines(
    model: ModelConfig, quant: QuantConfig, config: EngineConfig
) -> list[EngineDesign]:
    """One engine per distinct quantization (stages aside), as an export plans them."""
    members: dict[LutConfig, list[tuple[LinearShape, LutConfig]]] = {}
    for shape in model.linears():
        lut = quant.for_linear(shape.name)
        key = dataclasses.replace(lut, act_stages=1, weight_stages=1)
        members.setdefault(key, []).append((shape, lut))
    engines = []
    for i, (key, linears) in enumerate(members.items()):
        most = dataclasses.replace(
            key,
            act_stages=max(lut.act_stages for _, lut in linears),
            weight_stages=max(lut.weight_stages for _, lut in linears),
        )
        name = "lut_linear" if len(members) == 1 else f"lut_linear_{i}"
        engines.append(EngineDesign(name, config, most, _kinds(model, linears)))
    return engines


def _kinds(
    model: ModelConfig, linears: list[tuple[LinearShape, LutConfig]]
) -> tuple[LayerKind, ...]:
    """Linears of one shape and depth of stages, in order of first use."""
    found: dict[tuple[str, int, int, int, int], list[str]] = {}
    for shape, lut in linears:
        suffix = shape.name.rsplit(".", 1)[-1]
        sizes = (shape.in_features, shape.out_features)
        key = (suffix, *sizes, lut.act_stages, lut.weight_stages)
        found.setdefault(key, []).append(shape.name)
    kinds: list[LayerKind] = []
    for (suffix, inputs, outputs, act_stages, weight_stages), names in found.items():
        twins = sum(kind.name.split("_v")[0] == suffix for kind in kinds)
        name = f"{suffix}_v{twins + 1}" if twins else suffix
        bias = model.qkv_bias and suffix == "qkv_proj"
        kinds.append(
            LayerKind(name, inputs, outputs, act_stages, weight_stages, bias, tuple(names))
        )
    return tuple(kinds)


def decoder_design(
    model: ModelConfig,
    quant: QuantConfig,
    engine: EngineConfig,
    config: DecoderConfig = DEFAULT_DECODER,
    stored: str = "BF16",
) -> DecoderDesign:
    """The decoder kernel of a model. stored: safetensors dtype of its embedding and head."""
    engines = model_engines(model, quant, engine)
    return DecoderDesign(config, model, stored, stored, tuple(engines))


def with_head(model: ModelConfig, engines: Sequence[EngineDesign]) -> list[EngineDesign]:
    """The engines with the output head as slices of the first engine's widest linear."""
    first = engines[0]
    width = max(kind.out_features for kind in first.kinds)
    slices = ceil_div(model.vocab_size, width)
    head = LayerKind(
        HEAD,
        model.hidden_size,
        width,
        first.lut.act_stages,
        first.lut.weight_stages,
        False,
        tuple(f"{HEAD}.{i}" for i in range(slices)),
    )
    return [dataclasses.replace(first, kinds=(*first.kinds, head)), *engines[1:]]
