"""How much the model's predictions suffer when a linear is coded.

To second order the Kullback-Leibler divergence that a small error d of an output y causes is
d^T F d / 2, with F the Fisher information: the second moment of the gradient of the log likelihood
of labels drawn from the model itself (Martens, arXiv 1412.1193). d is what the quantizer leaves:
every linear is coded by itself, on a few tokens, and its error measured on others. Errors in
proportion to an output would not do: what is the same in all tokens, or very large in a few, is
coded far better than the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from calib.decoder import FloatDecoder, LayerWeights
from calib.operators import rms_norm
from lutllm.checkpoint import Checkpoint
from lutllm.config import LutConfig
from lutllm.model_config import LinearShape, ModelConfig
from lutllm.progress import Progress
from quant.linear import Effort, quantize_linear
from quant.state import load_arrays, save_arrays

#: Positions whose logits exist at once; the vocabulary is large.
_HEAD_CHUNK = 256
#: Measured: half the time, and errors 5 to 15 per cent larger in all linears alike, where it is
#: which of them are larger that counts.
_EFFORT = Effort(iterations=3, sweeps=0)


def sensitivities(
    checkpoint: Checkpoint,
    luts: dict[str, LutConfig],
    fitted: np.ndarray,
    measured: np.ndarray,
    seed: int = 0,
    progress: bool = False,
    state_path: Path | None = None,
) -> dict[str, float]:
    """Divergence per token, in nats, that each linear causes when it alone is coded.

    luts: how, by name; fitted, measured: i64[N, ctx] and i64[K, ctx], windows to code on and to
    measure on. The first token of a window is left out: its activations are like no other's. Layer
    by layer in reverse, each run again from its stored input, so memory holds one layer and the
    hidden states (`held_bytes`). A run that was killed goes on from `state_path`. Returns the
    value of every linear by name.
    """
    decoder = FloatDecoder(checkpoint)
    layers = checkpoint.model.num_hidden_layers
    found, gradient = _restored(state_path)
    left = layers - len(found) // len(checkpoint.model.layer_linears(0))
    hidden = decoder.embed(np.concatenate([measured, fitted]))
    count = len(measured)
    inputs = []
    with Progress(2 * left, "measuring sensitivity", progress) as bar:
        for index in range(left):
            inputs.append(hidden)
            with torch.no_grad():
                weights = decoder.layer(index)
                hidden, _ = decoder.run_with_inputs(hidden, weights)
            bar.advance()
        if gradient is None:
            gradient = _sampled_gradient(decoder, hidden[:count], seed)
        for index in reversed(range(left)):
            hidden = inputs.pop()
            weights = decoder.layer(index)
            with torch.no_grad():
                _, fit_on = decoder.run_with_inputs(hidden[count:], weights)
            linears, gradient = _differentiated(decoder, weights, hidden[:count], gradient)
            for shape in weights.shapes:
                name = shape.name
                x, slope = linears[name]
                error = _coding_error(shape, weights, luts[name], fit_on.pop(name), x, seed)
                found[name] = _divergence(error, slope, measured.shape)
            if state_path is not None:
                _save(state_path, found, gradient)
            bar.advance()
    return {shape.name: found[shape.name] for shape in checkpoint.model.linears()}


def held_bytes(model: ModelConfig, windows: int, ctx: int) -> int:
    """Memory of what `sensitivities` keeps of `windows` windows: hidden states of all layers."""
    return 4 * (model.num_hidden_layers + 1) * windows * ctx * model.hidden_size


def _save(path: Path, found: dict[str, float], gradient: torch.Tensor) -> None:
    names, values = np.array(list(found)), np.array(list(found.values()))
    save_arrays(path, {"names": names, "values": values, "gradient": gradient.numpy()})


def _restored(path: Path | None) -> tuple[dict[str, float], torch.Tensor | None]:
    """What was found in the last layers, and the gradient at the input of the first of them."""
    saved = load_arrays(path)
    if saved is None:
        return {}, None
    found = dict(zip(saved["names"].tolist(), saved["values"].tolist(), strict=True))
    return found, torch.from_numpy(saved["gradient"])


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
        parts.append(_slope(part))
    return torch.cat(parts).view_as(hidden)


def _differentiated(
    decoder: FloatDecoder, weights: LayerWeights, hidden: torch.Tensor, gradient: torch.Tensor
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """Input and gradient of the output of each linear of a layer; gradient of the layer's input."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def apply(shape: LinearShape, x: torch.Tensor) -> torch.Tensor:
        y = weights.apply(shape, x)
        y.retain_grad()
        inputs[shape.name], outputs[shape.name] = x.detach(), y
        return y

    start = hidden.detach().requires_grad_()
    decoder.run_layer(start, weights, apply).backward(gradient)
    return {name: (x, _slope(outputs[name])) for name, x in inputs.items()}, _slope(start)


def _slope(y: torch.Tensor) -> torch.Tensor:
    assert y.grad is not None
    return y.grad


@torch.no_grad()
def _coding_error(
    shape: LinearShape,
    weights: LayerWeights,
    lut: LutConfig,
    fit_on: torch.Tensor,
    x: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    """What coding adds to the outputs for x f32[T, D], fitted on other inputs: f32[T, M]."""
    weight, bias = weights.weight[shape.name], weights.bias[shape.name]
    coded = quantize_linear(shape, weight, bias, fit_on, fit_on, lut, _EFFORT, seed)
    return coded.apply(x) - weights.apply(shape, x)


def _divergence(error: torch.Tensor, gradient: torch.Tensor, windows: tuple[int, int]) -> float:
    """Mean over tokens of (gradient . error)^2 / 2. f32[N ctx, M] each."""
    product = (error * gradient).sum(1).unflatten(0, windows)[:, 1:]
    return float(product.pow(2).mean() / 2)
