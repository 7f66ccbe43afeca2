"""Designs from a model's shape and quantization alone: nothing of the weights is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fpga.decoder_design import DecoderConfig, DecoderDesign
from fpga.design import EngineConfig, EngineDesign, LayerKind, ceil_div
from fpga.engine_plan import plan_engines
from lutllm.config import QuantConfig
from lutllm.model_config import ModelConfig

HEAD = "lm_head"
DEFAULT_DECODER = DecoderConfig()


def model_engines(
    model: ModelConfig, quant: QuantConfig, config: EngineConfig
) -> list[EngineDesign]:
    """The engines of all linears of a model."""
    return plan_engines(model, quant, list(model.linears()), config)


def decoder_design(
    model: ModelConfig,
    quant: QuantConfig,
    engine: EngineConfig,
    config: DecoderConfig = DEFAULT_DECODER,
    stored: str = "BF16",
) -> DecoderDesign:
    """The decoder kernel of a model. stored: safetensors dtype of its float embedding and head."""
    engines = model_engines(model, quant, engine)
    kind = rows_kind(quant, stored)
    return DecoderDesign(config, model, kind, kind, tuple(engines))


def rows_kind(quant: QuantConfig, stored: str) -> str:
    """safetensors dtype of embedding and head in an artifact; `stored`: that of the checkpoint."""
    return "I8" if quant.int8_rows else stored


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
        first.lut.table_bits,
        False,
        tuple(f"{HEAD}.{i}" for i in range(slices)),
    )
    return [dataclasses.replace(first, kinds=(*first.kinds, head)), *engines[1:]]
