"""What the quantizer needs of an engine that runs integer tables: outputs as they will be.

Quantization and distillation see the rounding of table entries by running each linear through its
tables. The engine comes from the caller (`lutllm.emulator.runner`): the emulator stands behind the
artifact, which the quantizer makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from lutllm.lut_linear import LutLinear


class TableRunner(Protocol):
    """One linear, packed for an engine."""

    def update(self, linear: LutLinear) -> None:
        """Take codebooks and output scale of `linear`; codes and shifts are those it had."""

    def apply(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """`lutllm.intmath.lut_linear`: f32[T, D] -> f32[T, M], and in scheme "co" the activation
        codes u8[T, Sa, P] that it found."""


TableEngine = Callable[[LutLinear], TableRunner]
