"""The emulator: runs an artifact on a CPU, bit-exact with `lutllm.intmath`.

Imports are lazy so that reading an artifact does not load the compiler.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Generation", "LutModel"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lutllm.emulator import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
