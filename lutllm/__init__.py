"""lutllm turns a large language model into lookup tables."""

from lutllm.version import __version__

__all__ = ["__version__"]
