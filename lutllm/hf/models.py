"""Config and model classes of artifacts, registered with the Auto classes of transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import lutllm.hf.quantizer  # noqa: F401  (registers the method that loading needs)
from lutllm.artifact import read_json, write_json
from lutllm.hub_files import hub_config, write_hub_module


class _SavesArtifacts(PreTrainedModel):
    """save_pretrained writes what both transformers and lutllm load."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        config = hub_config(read_json(path))
        write_json(path, config)
        write_hub_module(path.parent, config["model_type"])


class LutLLMLlamaConfig(LlamaConfig):
    model_type = "lutllm_llama"


class LutLLMLlamaForCausalLM(_SavesArtifacts, LlamaForCausalLM):
    config_class = LutLLMLlamaConfig


class LutLLMQwen2Config(Qwen2Config):
    model_type = "lutllm_qwen2"


class LutLLMQwen2ForCausalLM(_SavesArtifacts, Qwen2ForCausalLM):
    config_class = LutLLMQwen2Config


class LutLLMQwen3Config(Qwen3Config):
    model_type = "lutllm_qwen3"


class LutLLMQwen3ForCausalLM(_SavesArtifacts, Qwen3ForCausalLM):
    config_class = LutLLMQwen3Config


for _config, _model in (
    (LutLLMLlamaConfig, LutLLMLlamaForCausalLM),
    (LutLLMQwen2Config, LutLLMQwen2ForCausalLM),
    (LutLLMQwen3Config, LutLLMQwen3ForCausalLM),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForCausalLM.register(_config, _model)
