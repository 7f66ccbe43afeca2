"""lutllm turns a large language model into lookup tables.

    import lutllm

    lutllm.quantize("models/SmolLM2-135M", "smol-lut")
    print(lutllm.load("smol-lut").generate("Once upon a time"))

Every command of the command line is a function here. Names are imported when first used, so that
`import lutllm` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lutllm.version import __version__

# Idle threads of an OpenMP pool spin by default, which on a busy machine slows every parallel loop
# many times over. Sleeping costs microseconds. It must be set before the library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from lutllm.api import (
        bench,
        choose_recipe,
        csim,
        distill,
        estimate,
        evaluate,
        evaluate_task,
        explore,
        export,
        load,
        plan,
        quantize,
        serve,
        verify,
    )
    from lutllm.checkpoint import open_checkpoint
    from lutllm.config import LutConfig, QuantConfig
    from lutllm.ecosystem import compare_onnx, evaluate_lm_eval, export_onnx, push, report
    from lutllm.errors import LutLLMError

__all__ = [
    "LutConfig",
    "LutLLMError",
    "QuantConfig",
    "__version__",
    "bench",
    "choose_recipe",
    "compare_onnx",
    "csim",
    "distill",
    "estimate",
    "evaluate",
    "evaluate_lm_eval",
    "evaluate_task",
    "explore",
    "export",
    "export_onnx",
    "load",
    "open_checkpoint",
    "plan",
    "push",
    "quantize",
    "report",
    "serve",
    "verify",
]

_HOME = {
    "LutConfig": "lutllm.config",
    "QuantConfig": "lutllm.config",
    "LutLLMError": "lutllm.errors",
    "compare_onnx": "lutllm.ecosystem",
    "evaluate_lm_eval": "lutllm.ecosystem",
    "export_onnx": "lutllm.ecosystem",
    "push": "lutllm.ecosystem",
    "report": "lutllm.ecosystem",
    "open_checkpoint": "lutllm.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lutllm' has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "lutllm.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
