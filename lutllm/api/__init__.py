"""The commands as functions: the one place that joins calibration, quantizer, emulator, export.

Heavy modules are imported inside the functions.
"""

from lutllm.api.evaluating import evaluate, evaluate_task
from lutllm.api.hardware import csim, estimate, explore, export, golden_run
from lutllm.api.quantizing import choose_recipe, distill, plan, quantize
from lutllm.api.running import bench, load, serve, verify

__all__ = [
    "bench",
    "choose_recipe",
    "csim",
    "distill",
    "estimate",
    "evaluate",
    "evaluate_task",
    "explore",
    "export",
    "golden_run",
    "load",
    "plan",
    "quantize",
    "serve",
    "verify",
]
