"""Designs from a model's shape and quantization alone: nothing of the weights is needed."""

from __future__ import annotations

from fpga.decoder_design import DecoderConfig, DecoderDesign
from fpga.design import EngineConfig, EngineDesign
from fpga.engine_plan import plan_engines
from fpga.head_slices import slice_shapes
from lutllm.config import HEAD_LINEAR, QuantConfig
from lutllm.model_config import ModelConfig

DEFAULT_DECODER = DecoderConfig()


def model_engines(
    model: ModelConfig, quant: QuantConfig, config: EngineConfig
) -> list[EngineDesign]:
    """The engines of all linears of a model, the LUT linear before its head included."""
    shapes = list(model.linears())
    if quant.lut_head:
        shapes += slice_shapes(model, quant.for_linear(HEAD_LINEAR))
    return plan_engines(model, quant, shapes, config)


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
    return DecoderDesign(config, model, kind, kind, tuple(engines), head_margin=quant.head_margin)


def rows_kind(quant: QuantConfig, stored: str) -> str:
    """safetensors dtype of embedding and head in an artifact; `stored`: that of the checkpoint."""
    return "I8" if quant.int8_rows else stored
