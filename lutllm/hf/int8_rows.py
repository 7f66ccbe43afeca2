"""Embedding and head of int8 rows as torch modules (docs/FORMAT.md, `lutllm.int8_rows`)."""

from __future__ import annotations

import torch
from torch import nn

from lutllm import int8_rows
from lutllm.config import QuantConfig
from lutllm.hf.module import LutLinear
from lutllm.model_config import LinearShape


class Int8Rows(nn.Module):
    """The stored rows: weight i8[V, H] and weight_scale f32[V], not trainable."""

    def __init__(self, words: int, size: int):
        super().__init__()
        rows, scale = torch.empty((words, size), dtype=torch.int8), torch.empty(words)
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)


class Int8Embedding(Int8Rows):
    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: [...] -> rows f32[..., H]."""
        return self.weight[ids].float() * self.weight_scale[ids][..., None]


class Int8Head(Int8Rows):
    """Logits as in `int8_rows.logits`: the hidden vector is rounded, sums are integers."""

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., H] -> [..., V], of the same type and device."""
        rows = x.detach().to("cpu", torch.float32).reshape(-1, x.shape[-1])
        weight, scale = self.weight.cpu().numpy(), self.weight_scale.cpu().numpy()
        out = torch.from_numpy(int8_rows.logits(rows.numpy(), weight, scale))
        return out.reshape(*x.shape[:-1], -1).to(x.device, x.dtype)


class TiedInt8Head(nn.Module):
    """A head of the embedding's own rows. It has no parameters: those are saved once."""

    def __init__(self, embedding: Int8Embedding):
        super().__init__()
        self._embedding = [embedding]  # in a list, so that it is not a child module

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., H] -> [..., V]."""
        return Int8Head.forward(self._embedding[0], x)  # type: ignore[arg-type]


class ScreenedHead(LutLinear):
    """A LUT linear, and rows for the logits that it puts near the largest (`int8_rows.screen`)."""

    def __init__(self, shape: LinearShape, quant: QuantConfig, rows: Int8Embedding | None):
        """rows: those of a tied embedding, which are saved with it; None: rows of its own."""
        super().__init__(
            shape.name, quant.for_linear(shape.name), shape.in_features, shape.out_features, False
        )
        self._margin = quant.head_margin
        self._tied = [] if rows is None else [rows]  # in a list, so that it is not a child module
        if rows is None:
            own = Int8Head(shape.out_features, shape.in_features)
            self.weight, self.weight_scale = own.weight, own.weight_scale

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., H] -> [..., V]."""
        coarse = super().forward(x)
        exact = Int8Head.forward(self._tied[0] if self._tied else self, x)  # type: ignore[arg-type]
        rows = [
            logits.to("cpu", torch.float32).reshape(-1, coarse.shape[-1]).numpy()
            for logits in (coarse, exact)
        ]
        found = torch.from_numpy(int8_rows.screen(rows[0], rows[1], self._margin))
        return found.reshape(coarse.shape).to(x.device, x.dtype)
