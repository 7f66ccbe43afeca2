"""How much the model's predictions suffer when the output of one linear is disturbed.

To second order the Kullback-Leibler divergence that a small error d of an output y causes is
d^T F d / 2, with F the Fisher information: the second moment of the gradient of the log likelihood
of labels drawn from the model itself (Martens, arXiv 1412.1193). Errors are taken as white over the
outputs and in proportion to what of y varies from token to token, since error feedback codes
what stays the same far better.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from calib.decoder import FloatDecoder
from calib.operators import rms_norm
from lutllm.checkpoint import Checkpoint
from lutllm.model_config import LinearShape
from lutllm.progress import Progress

#: Positions whose logits exist at once; the vocabulary is large.
_HEAD_CHUNK = 256


def sensitivities(
    checkpoint: Checkpoint, windows: np.ndarray, seed: int = 0, progress: bool = False
) -> dict[str, float]:
    """Divergence per token, in nats, of an output error as large as the output's own variation.

    windows: i64[N, ctx]. The first token of a window is left out: its activations are like no
    other's. Layer by layer in reverse, each run again from its stored input, so memory holds one
    layer and the hidden states. Returns the value of every linear by name.
    """
    decoder = FloatDecoder(checkpoint)
    hidden = decoder.embed(windows)
    inputs = []
    layers = checkpoint.model.num_hidden_layers
    found: dict[str, float] = {}
    with Progress(2 * layers, "measuring sensitivity", progress) as bar:
        for index in range(layers):
            inputs.append(hidden)
            with torch.no_grad():
                weights = decoder.layer(index)
                hidden = decoder.run_layer(hidden, weights, weights.apply)
            bar.advance()
        gradient = _sampled_gradient(decoder, hidden, seed)
        for index in reversed(range(layers)):
            gradient = _one_layer(decoder, index, inputs.pop(), gradient, found)
            bar.advance()
    return {shape.name: found[shape.name] for shape in checkpoint.model.linears()}


def _sampled_gradient(decoder: FloatDecoder, hidden: torch.Tensor, seed: int) -> torch.Tensor:
    """Gradient, at the last hidden states f32[N, ctx, hidden], of -log p of sampled next tokens."""
    norm, head = decoder.head()
    draw = torch.Generator().manual_seed(seed)
    flat = hidden.flatten(0, 1)
    parts = []
    for part in flat.split(_HEAD_CHUNK):
        part = part.detach().requires_grad_()
        logits = rms_norm(part, norm, decoder.config.rms_norm_eps) @ head.t()
        with torch.no_grad():
            labels = torch.multinomial(torch.softmax(logits, -1), 1, generator=draw)[:, 0]
        F.cross_entropy(logits, labels, reduction="sum").backward()
        assert part.grad is not None
        parts.append(part.grad)
    return torch.cat(parts).view_as(hidden)


def _one_layer(
    decoder: FloatDecoder,
    index: int,
    hidden: torch.Tensor,
    gradient: torch.Tensor,
    found: dict[str, float],
) -> torch.Tensor:
    """Gradient at the layer's input; the sensitivity of its linears goes to `found`."""
    weights = decoder.layer(index)
    outputs: dict[str, torch.Tensor] = {}

    def apply(shape: LinearShape, x: torch.Tensor) -> torch.Tensor:
        y = weights.apply(shape, x)
        y.retain_grad()
        outputs[shape.name] = y
        return y

    start = hidden.detach().requires_grad_()
    decoder.run_layer(start, weights, apply).backward(gradient)
    shape = hidden.shape[:2]
    for name, y in outputs.items():
        assert y.grad is not None
        found[name] = _divergence(y.detach().unflatten(0, shape), y.grad.unflatten(0, shape))
    assert start.grad is not None
    return start.grad


def _divergence(y: torch.Tensor, gradient: torch.Tensor) -> float:
    """Mean over tokens of |gradient|^2 |y - mean|^2 / (2 M). f32[N, ctx, M] each."""
    y, gradient = y[:, 1:].flatten(0, 1), gradient[:, 1:].flatten(0, 1)
    variation = (y - y.mean(0)).pow(2).mean(1)
    return float((gradient.pow(2).sum(1) * variation).mean() / 2)
