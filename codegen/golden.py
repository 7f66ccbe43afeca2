"""Golden vectors: inputs of linears and what `lutllm.intmath` says they give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lutllm import intmath
from lutllm.errors import ConfigError
from lutllm.lut_linear import LutLinear

#: Inputs by linear name: f32[T, D], or None where a linear has none.
GoldenSource = Mapping[str, np.ndarray] | Callable[[str], np.ndarray | None]


def random_inputs(name: str, tokens: int, in_features: int) -> np.ndarray:
    """f32[tokens, in_features] that depend on the name alone, some channels much larger."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, in_features), dtype=np.float32)
    x[:, :: max(1, in_features // 7)] *= 8
    return x


def golden_input(source: GoldenSource, linear: LutLinear, tokens: int) -> np.ndarray | None:
    """The first `tokens` inputs of a linear, checked, or None when the source has none."""
    x = source(linear.name) if callable(source) else source.get(linear.name)
    if x is None:
        return None
    x = np.ascontiguousarray(x[:tokens], np.float32)
    if x.ndim != 2 or x.shape[1] != linear.in_features or len(x) == 0:
        raise ConfigError(
            f"golden input of {linear.name}: shape {list(x.shape)}, needs [tokens, "
            f"{linear.in_features}]"
        )
    if not np.isfinite(x).all():
        raise ConfigError(f"golden input of {linear.name} holds a value that is not finite")
    return x


def golden_arrays(linear: LutLinear, x: np.ndarray) -> dict[str, np.ndarray]:
    """x: f32[T, D] -> x, acc i32[T, M], y f32[T, M], and codes u8[T, Sa, P] in scheme "co"."""
    acc, token_scale = intmath.accumulate(x, linear)
    arrays = {"x": x, "acc": acc, "y": intmath.dequantize(acc, token_scale, linear)}
    if linear.act_codebook is not None:
        x_int, _ = intmath.quantize_activation(x, linear)
        arrays["codes"] = intmath.search(x_int, linear.act_codebook, linear.config.metric)
    return arrays


def write_golden(root: Path, linear: LutLinear, x: np.ndarray) -> list[str]:
    """Write the golden files of one linear; returns their paths relative to `root`."""
    folder = root / "golden" / linear.name
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for key, array in golden_arrays(linear, x).items():
        path = folder / f"{key}.bin"
        path.write_bytes(np.ascontiguousarray(array).tobytes())
        paths.append(str(path.relative_to(root)))
    return paths
