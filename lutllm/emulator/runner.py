"""One LUT linear at a time through the kernels, its codebooks exchangeable: for the quantizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lutllm.emulator.layout import exchange_codebooks, pack
from lutllm.emulator.linear import run_linear
from lutllm.emulator.team import Team
from lutllm.lut_linear import LutLinear


class LinearRunner:
    """`lutllm.intmath.lut_linear` at the speed of the kernels."""

    def __init__(self, linear: LutLinear, team: Team):
        self._packed = pack(linear)
        self._team = team

    def update(self, linear: LutLinear) -> None:
        """Take codebooks and output scale of `linear`; codes and shifts stay."""
        exchange_codebooks(self._packed, linear)

    def apply(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """f32[T, D] -> f32[T, M], and activation codes u8[T, Sa, P] in scheme "co"."""
        found = run_linear(self._packed, x, self._team)
        return found["y"], found.get("codes")


def table_engine(team: Team | None = None) -> Callable[[LutLinear], LinearRunner]:
    """Runners that share the threads of one team, None for all processors."""
    shared = team or Team()
    return lambda linear: LinearRunner(linear, shared)
