"""A LUT linear as a torch module: the arrays of the artifact, applied by the Numba kernels."""

from __future__ import annotations

import functools
import weakref

import numpy as np
import torch
from torch import nn

from lutllm import lut_linear
from lutllm.config import LutConfig
from lutllm.emulator.layout import PackedLinear, pack
from lutllm.emulator.linear import run_linear
from lutllm.emulator.team import Team


@functools.cache
def team() -> Team:
    """The threads that all modules of this process share."""
    return Team()


class LutLinear(nn.Module):
    """y = W x + b through the tables.

    Parameters are the arrays of docs/FORMAT.md under their names there, none trainable. They are
    checked and repacked by `prepare`, which the first call does if nobody has.
    """

    def __init__(
        self, name: str, config: LutConfig, in_features: int, out_features: int, bias: bool
    ):
        super().__init__()
        self.name, self.config = name, config
        self.in_features, self.out_features = in_features, out_features
        self._packed: PackedLinear | None = None
        self._keys: list[str] = []
        specs = lut_linear.array_specs(config, in_features, out_features)
        for key, (dtype, shape, optional) in specs.items():
            if optional and not bias:
                continue
            values = torch.empty(shape, dtype=getattr(torch, np.dtype(dtype).name))
            self.register_parameter(key, nn.Parameter(values, requires_grad=False))
            self._keys.append(key)

    def prepare(self) -> None:
        """Check every array and pack them for the kernels; ArtifactError names what is wrong."""
        arrays = {key: getattr(self, key).detach().cpu().numpy() for key in self._keys}
        arrays.setdefault("act_codebook", None)
        linear = lut_linear.LutLinear(
            self.name, self.config, self.in_features, self.out_features, **arrays
        )
        linear.validate()
        self._packed = pack(linear)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., D] of any float type on any device -> [..., M] of the same."""
        if self._packed is None:
            self.prepare()
        assert self._packed is not None
        rows = x.detach().to("cpu", torch.float32).reshape(-1, self.in_features)
        y = torch.from_numpy(run_linear(self._packed, rows.numpy(), team())["y"])
        return y.reshape(*x.shape[:-1], self.out_features).to(x.device, x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.config}"


class Joined:
    """A LutLinear that several projections share, run once for all of them.

    Projections are called one after another with the same tensor, as attention and MLP blocks do;
    another tensor, or one changed in place, is a new call.
    """

    def __init__(self, whole: LutLinear, parts: int):
        self.whole, self._parts = whole, parts
        self._input: weakref.ref[torch.Tensor] | None = None
        self._version = -1
        self._output: torch.Tensor | None = None
        self._left = 0

    def output(self, x: torch.Tensor) -> torch.Tensor:
        known = self._input is not None and self._input() is x and self._version == x._version
        if self._output is None or not known:
            self._input, self._version = weakref.ref(x), x._version
            self._output, self._left = self.whole(x), self._parts
        y = self._output
        self._left -= 1
        if not self._left:
            self._output = self._input = None
        return y


class Part(nn.Module):
    """Rows first .. end of a joined linear, in the place of a projection of its own.

    It has no parameters: those are saved once, with the joined linear.
    """

    def __init__(self, joined: Joined, first: int, end: int):
        super().__init__()
        self._joined, self.first, self.end = joined, first, end
        self.in_features, self.out_features = joined.whole.in_features, end - first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., D] -> [..., end - first]."""
        return self._joined.output(x)[..., self.first : self.end]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rows {self.first}..{self.end}"
