"""The model on the inputs of another runtime: each step from where that runtime was.

Two runtimes add floats in another order, so an activation on the border between two integers may
be rounded the other way, and what follows differs by quantization noise. Here every linear takes
the input that it had in the other run. Its output is then the same to the bit, and so is the
residual stream; what a step between two linears gives differs by float rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lutllm.artifact import EMBEDDING, Artifact
from lutllm.config import HEAD_LINEAR
from lutllm.emulator import reference
from lutllm.emulator.runner import table_engine
from lutllm.rope import rope_tables


def replay(
    artifact: Artifact,
    words: Sequence[int] | np.ndarray,
    inputs: Mapping[str, np.ndarray],
    chosen: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits f32[chosen, V] of the last `chosen` positions and the inputs that linears would have.

    words   those of every position, T of them
    inputs  f32[T, D] of every linear in the other run, by name; of the LUT linear before a head,
            f32[chosen, D]
    """
    config = artifact.model
    make = table_engine()
    shapes = {shape.name: shape for shape in config.linears()}
    would_have: dict[str, np.ndarray] = {}

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        would_have[name] = x
        return make(artifact.linear(shapes[name])).apply(inputs[name])[0]

    rope = rope_tables(config, len(words))
    h = artifact.float32(EMBEDDING)[np.asarray(words)]
    for i in range(config.num_hidden_layers):
        base = f"model.layers.{i}"
        h = reference.decoder_layer(h, base, config, artifact.float32, apply, rope, "F32")
    norm = artifact.float32("model.norm.weight")
    h = reference.rms_norm(h[len(words) - chosen :], norm, config.rms_norm_eps)
    if artifact.quant.lut_head:
        would_have[HEAD_LINEAR], h = h, inputs[HEAD_LINEAR]
    return reference.head_logits(artifact, h), would_have
