"""What an artifact's folder tells Hugging Face tools: its own model type, and the code for it.

An artifact has a model type of its own, so that transformers without lutllm refuses it with a clear
message; under the source's type it would fill the model with random weights and only warn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lutllm.model_config import ARCHITECTURES, PREFIX

HUB_MODULE = "lutllm_hub"
HUB_FILE = f"{HUB_MODULE}.py"
_CODE = '''\
"""Lets transformers load this folder with trust_remote_code=True; `import lutllm.hf` does as well.

Nothing is defined here: the classes are those of the package lutllm, which must be installed.
"""

from lutllm.hf import {names}

__all__ = [{quoted}]
'''


def class_names(model_type: str) -> tuple[str, str]:
    """Names of the config and of the model class in `lutllm.hf`, for "qwen3" and the like."""
    stem = ARCHITECTURES[model_type].removesuffix("ForCausalLM")
    return f"LutLLM{stem}Config", f"LutLLM{stem}ForCausalLM"


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """A source's config.json as that of an artifact: model type, architectures, auto_map."""
    model_type = str(config["model_type"]).removeprefix(PREFIX)
    config_class, model_class = class_names(model_type)
    return config | {
        "architectures": [model_class],
        "model_type": PREFIX + model_type,
        "auto_map": {
            "AutoConfig": f"{HUB_MODULE}.{config_class}",
            "AutoModelForCausalLM": f"{HUB_MODULE}.{model_class}",
        },
    }


def write_hub_module(folder: Path, model_type: str) -> None:
    """Write the module that auto_map names."""
    names = class_names(model_type.removeprefix(PREFIX))
    text = _CODE.format(names=", ".join(names), quoted=", ".join(f'"{n}"' for n in names))
    (folder / HUB_FILE).write_text(text, encoding="utf-8")
