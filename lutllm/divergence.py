"""Two runs of one artifact side by side: difference of logits, flipped activation codes.

Runtimes differ in the order of float additions. A code flips where that moves an activation over
the border between two integers or centroids; from this token on the runs may differ by
quantization noise. Tokens before the first flip agree to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lutllm import intmath
from lutllm.lut_linear import LutLinear


def activation_codes(x: np.ndarray, linear: LutLinear) -> np.ndarray:
    """What a linear makes of inputs f32[T, D]: codes u8[T, Sa, P], or x_int i8[T, P, v]."""
    x_int, _ = intmath.quantize_activation(x, linear)
    if linear.act_codebook is None:
        return x_int.astype(np.int8)
    return intmath.search(x_int, linear.act_codebook, linear.config.metric)


def compare_runs(
    linears: Iterable[LutLinear],
    codes: tuple[Callable[[LutLinear], np.ndarray], Callable[[LutLinear], np.ndarray]],
    logits: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Differences between a run and the one it should equal, each pair in this order.

    linears: of the model, in the order they run; codes: of a linear, as `activation_codes`;
    logits: f32[T, V]. first_flip: linear and token of the first flip in time, and how many codes
    flip there; no token before it and no linear before it at this token has one.
    """
    found, expected = logits
    flipped, total = 0, 0
    first: dict[str, Any] | None = None
    for linear in linears:
        differs = codes[0](linear) != codes[1](linear)
        total, flipped = total + differs.size, flipped + int(differs.sum())
        per_token = differs.reshape(len(differs), -1).sum(axis=1)
        token = int((per_token > 0).argmax())
        if per_token[token] and (first is None or token < first["token"]):
            first = {"linear": linear.name, "token": token, "codes": int(per_token[token])}
    whole = len(found) if first is None else first["token"]
    error = np.abs(found - expected).max(axis=1)
    return {
        "tokens_compared": len(found),
        "tokens_equal": int((found.argmax(-1) == expected.argmax(-1)).sum()),
        "max_abs_error": float(error.max()),
        "max_abs_error_before_flip": float(error[:whole].max(initial=0)),
        "max_abs_logit": float(np.abs(expected).max()),
        "codes_compared": total,
        "codes_flipped": flipped,
        "first_flip": first,
    }
