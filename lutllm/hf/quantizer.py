"""The quantization method "lutllm" of transformers: LUT linears in the place of its linears."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.quantizers import (
    HfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from lutllm.config import QuantConfig
from lutllm.hf.int8_rows import Int8Embedding, Int8Head, ScreenedHead, TiedInt8Head
from lutllm.hf.module import Joined, LutLinear, Part
from lutllm.model_config import LinearShape, ModelConfig

_logger = logging.get_logger(__name__)


@register_quantization_config("lutllm")
class LutLLMConfig(QuantizationConfigMixin):
    """`quantization_config` of an artifact; its fields are those of docs/FORMAT.md, no others."""

    def __init__(self, **fields: Any):
        fields["quant_method"] = "lutllm"
        for key, value in QuantConfig.from_dict(fields).to_dict().items():
            setattr(self, key, value)

    @property
    def quant(self) -> QuantConfig:
        return QuantConfig.from_dict(self.to_dict())


@register_quantizer("lutllm")
class LutQuantizer(HfQuantizer):
    """Puts the modules of an artifact into a model before its weights are loaded.

    transformers only reads artifacts: `lutllm quantize` makes them.
    """

    requires_calibration = True
    quantization_config: LutLLMConfig

    def update_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        """Float steps are float32: in fewer bits activations would take other codes."""
        if dtype not in (None, torch.float32):
            _logger.info("lutllm computes in float32; dtype %s is not used", dtype)
        return torch.float32

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        insert_linears(model, self.quantization_config.quant)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for module in model.modules():
            if isinstance(module, LutLinear):
                module.prepare()
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def insert_linears(model: Any, quant: QuantConfig) -> None:
    """Replace the projections of every decoder layer by LutLinear modules without values."""
    config = ModelConfig.from_hf(model.config.to_dict())
    base = getattr(model, model.base_model_prefix, model)
    if quant.int8_rows:
        _insert_rows(model, base, config, quant)
    layers = base.layers
    for index, layer in enumerate(layers):
        for shape in config.layer_linears(index):
            with torch.device("meta"):
                linear = LutLinear(
                    shape.name,
                    quant.for_linear(shape.name),
                    shape.in_features,
                    shape.out_features,
                    shape.has_bias,
                )
            _insert(layer, shape, linear)


def _insert_rows(model: Any, base: Any, config: ModelConfig, quant: QuantConfig) -> None:
    """int8 rows in the place of the embedding and, where the model has one, of the head."""
    tied = config.tie_word_embeddings
    with torch.device("meta"):
        base.embed_tokens = Int8Embedding(config.vocab_size, config.hidden_size)
        if not hasattr(model, "lm_head"):
            return
        if quant.lut_head:
            rows = base.embed_tokens if tied else None
            model.lm_head = ScreenedHead(config.head_linear(), quant, rows)
        elif tied:
            model.lm_head = TiedInt8Head(base.embed_tokens)
        else:
            model.lm_head = Int8Head(config.vocab_size, config.hidden_size)
    if tied:
        model._tied_weights_keys = None
        model.all_tied_weights_keys = {}


def _insert(layer: nn.Module, shape: LinearShape, linear: LutLinear) -> None:
    """Put `linear` under its own name, and parts of it where its sources were."""
    block_name, name = shape.name.split(".")[-2:]
    block = layer.get_submodule(block_name)
    sources = [source.rsplit(".", 1)[-1] for source in shape.sources]
    sizes = [int(block.get_submodule(source).out_features) for source in sources]  # type: ignore[arg-type]
    block.add_module(name, linear)
    if sources == [name]:
        return
    joined, first = Joined(linear, len(sources)), 0
    for source, size in zip(sources, sizes, strict=True):
        block.add_module(source, Part(joined, first, first + size))
        first += size
