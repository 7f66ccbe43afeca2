"""A run of the decoder kernel beside the model's: steps that differ, roundings, other tokens.

Two comparisons. In `compare` both run by themselves: a rounding that flips explains what differs
after it. In `compare_replay` the model takes the kernel's input at every linear, so that nothing
explains a difference: every step is within the tolerance or it is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from codegen.decoder_golden import DecoderGolden
from codegen.manifest import Design
from fpga.decoder_design import PROJECTIONS
from fpga.head_slices import slice_name
from lutllm.config import ACT_LIMIT, CENTROID_LIMIT, HEAD_LINEAR, STAGE_BITS, TINY_INPUT
from lutllm.model_config import ModelConfig
from lutllm.rotation import rotate

#: Verdicts on a token that is not the one expected.
TIE = "tie"  # two logits closer than the error of the kernel's, which is within the tolerance
FLIP = "after a flip"  # logits differ by more than the tolerance; a rounding that flipped explains
MISMATCH = "mismatch"  # nothing explains it, or it is not the largest of the kernel's own logits


def relative_errors(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Largest |found - wanted| of each row over the row's largest magnitude. f32[N, D] -> f64[N].

    A value that is not finite counts as an infinite error.
    """
    largest = np.maximum(np.abs(wanted).max(axis=1), np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):
        errors = np.abs(found.astype(np.float64) - wanted).max(axis=1) / largest
    return np.where(np.isfinite(found).all(axis=1), errors, np.inf)


def input_places(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Linear -> (layer, projection), in the order they run.

    The LUT linear before the head comes last, with the number of layers and of projections.
    """
    layers = model.num_hidden_layers
    places = {
        shape.name: (layer, p)
        for layer in range(layers)
        for p, shape in enumerate(model.layer_linears(layer))
    }
    return {**places, HEAD_LINEAR: (layers, len(PROJECTIONS))}


@dataclass
class _Steps:
    """Steps in the order they run, each at every position: linears, then logits, then the token."""

    labels: list[str]
    errors: np.ndarray  # f64[steps, positions], relative
    flips: np.ndarray  # i64[steps, positions]

    def first(self, where: np.ndarray) -> dict[str, Any] | None:
        """The first place of a mask [step, position], by position, then by step."""
        if not where.any():
            return None
        position, step = (int(i[0]) for i in np.nonzero(where.T))
        error = float(self.errors[step, position])
        return {"position": position, "step": self.labels[step], "relative_error": error}


def _measure(design: Design, wanted: DecoderGolden, found: DecoderGolden, chosen: int) -> _Steps:
    """Both runs up to the `chosen`th token; the row of tokens is left 0."""
    assert design.decoder is not None
    positions = len(wanted.prompt) - 1 + chosen
    names = [name for name in input_places(design.decoder.design.model) if name in wanted.inputs]
    errors = np.zeros((len(names) + 2, positions))
    flips = np.zeros((len(names) + 2, positions), np.int64)
    for i, name in enumerate(names):
        # The head runs at the positions of chosen tokens; at others there is nothing to differ.
        first = positions - chosen if name == HEAD_LINEAR else 0
        rows = positions - first
        mine, other = found.inputs[name][:rows], wanted.inputs[name][-len(found.inputs[name]) :]
        other = other[:rows]
        errors[i, first:] = relative_errors(mine, other)
        flips[i, first:] = (_rounded(design, name, mine) != _rounded(design, name, other)).sum(1)
    errors[-2, positions - chosen :] = relative_errors(
        found.logits[:chosen], wanted.logits[:chosen]
    )
    return _Steps([*(f"input of {name}" for name in names), "logits", "token"], errors, flips)


def compare(
    design: Design, golden: DecoderGolden, found: DecoderGolden, tolerance: float
) -> dict[str, Any]:
    """The report on a run beside the golden one, each by itself.

    What a step gives at a position depends on the steps before it at this position and those
    before: a flip there explains a difference here.
    """
    equal = found.tokens == golden.tokens
    # After another token the kernel continues another text: nothing later is comparable.
    valid = len(equal) if equal.all() else int(np.argmin(equal)) + 1
    steps = _measure(design, golden, found, valid)
    before = np.vstack([np.zeros((1, steps.flips.shape[1]), bool), (steps.flips > 0)[:-1]])
    explained = np.logical_or.accumulate(np.logical_or.accumulate(before, axis=0), axis=1)
    token = valid - 1
    other = token_difference(golden, found, token, tolerance, bool(explained[-1, -1]))
    wrong = (steps.errors > tolerance) & ~explained
    if other and other["verdict"] == MISMATCH:
        steps.errors[-1, -1], wrong[-1, -1] = np.inf, True
    return {
        "tokens_compared": len(found.tokens),
        "tokens_equal": int(equal.sum()),
        "tokens": [int(token) for token in found.tokens],
        **_summary(steps, tolerance),
        "first_flip": steps.first(steps.flips > 0),
        "first_divergence": steps.first(wrong),
        "token_difference": other,
    }


def compare_replay(
    design: Design, replayed: DecoderGolden, found: DecoderGolden, tolerance: float
) -> dict[str, Any]:
    """The report on a run beside what the model gives on the kernel's inputs.

    replayed: logits, and the input each linear would have had. first_divergence: the first step
    beyond the tolerance, or token that is neither the expected one nor a tie.
    """
    count = len(found.tokens)
    steps = _measure(design, replayed, found, count)
    others = [token_difference(replayed, found, i, tolerance, False) for i in range(count)]
    first = len(found.prompt) - 1
    for i, other in enumerate(others):
        if other and other["verdict"] == MISMATCH:
            steps.errors[-1, first + i] = np.inf
    return {
        "tokens_equal": sum(other is None for other in others),
        "ties": [other for other in others if other and other["verdict"] == TIE],
        **_summary(steps, tolerance),
        "first_divergence": steps.first(steps.errors > tolerance),
    }


def _summary(steps: _Steps, tolerance: float) -> dict[str, Any]:
    return {
        "max_logit_error": float(steps.errors[-2].max()),
        "max_input_error": float(steps.errors[:-2].max(initial=0.0)),
        "tolerance": tolerance,
        "flips": int(steps.flips.sum()),
    }


def token_difference(
    wanted: DecoderGolden, found: DecoderGolden, token: int, tolerance: float, flipped: bool
) -> dict[str, Any] | None:
    """How the kernel's choice of the `token`th token differs from the model's; None where equal.

    gap    how much larger the model's logit of the expected word is than that of the word found
    error  largest difference of the two runs' logits
    flipped: a rounding that flipped before it explains an error beyond the tolerance. Whatever the
    error, the token is the first of the largest of the kernel's own logits, or it is wrong.
    """
    logits, own = wanted.logits[token], found.logits[token]
    expected, word = int(wanted.tokens[token]), int(found.tokens[token])
    is_largest = word == int(own.argmax())
    if word == expected and is_largest:
        return None
    error = float(np.abs(own.astype(np.float64) - logits).max())
    within = error <= tolerance * float(np.abs(logits).max())
    verdict = MISMATCH if not is_largest else TIE if within else FLIP if flipped else MISMATCH
    return {
        "token": token,
        "expected": expected,
        "found": word,
        "gap": float(logits[expected]) - float(logits[word]),
        "error": error,
        "verdict": verdict,
    }


def _rounded(design: Design, name: str, x: np.ndarray) -> np.ndarray:
    """The integers that an engine makes of its input, as floats. f32[T, D] -> f32[T, D].

    Slices of a head have the same inputs and the same scales.
    """
    name = slice_name(0) if name == HEAD_LINEAR else name
    engine = next(engine for engine in design.engines if name in engine.slots)
    k, slot = engine.slots[name]
    kind = engine.kinds[k]
    at = engine.bases(engine.parameter_beats)[k] + slot * engine.parameter_beats(kind)
    rows, ports = engine.parameter_rows(engine.in_beats(kind)), engine.config.parameter_ports
    folder, count = design.path / "images" / engine.name, rows * engine.floats
    beats = [
        np.fromfile(folder / f"parameters_{p}.bin", "<f4", count, offset=at * engine.beat_bytes)
        for p in range(ports)
    ]
    scales = np.stack([part.reshape(rows, -1) for part in beats], axis=1).reshape(-1)
    scales = scales[: kind.in_features]
    with np.errstate(all="ignore"):
        z = rotate(x, kind.rotation) * scales
        fine = STAGE_BITS * (kind.act_stages - 1)
        if not kind.token_scale:
            limit = np.float32(ACT_LIMIT << fine)
            return np.rint(np.clip(z, -limit, limit))
        top = np.abs(z).max(axis=1, keepdims=True)
        most = np.float32(CENTROID_LIMIT << fine)
        return np.rint(z * np.where(top > TINY_INPUT, most / top, np.float32(0)))
