"""C simulation of the decoder kernel: a prompt through the whole model, compared step by step."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from codegen.csim import compile_testbench, trusted_sources
from codegen.decoder_golden import DecoderGolden, read_decoder_golden
from codegen.manifest import Design, read_design
from fpga.decoder_design import PROJECTIONS, DecoderDesign
from fpga.head_slices import slice_name
from lutllm.config import ACT_LIMIT, HEAD_LINEAR, STAGE_BITS, TINY_INPUT
from lutllm.errors import ArtifactError, ConfigError

#: Largest difference from the emulator, as a share of the largest magnitude of the same vector.
#: Float steps sum in another order, so values agree to about 1e-6 and one at the border between
#: two integers may be rounded the other way; what depends on it then differs by quantization noise.
TOLERANCE = 1e-4
DEADLOCK_STATUS = 3


def run_decoder(
    design_dir: str | Path,
    *,
    golden: DecoderGolden | None = None,
    new_tokens: int | None = None,
    tolerance: float = TOLERANCE,
    allow_modified: bool = False,
) -> dict[str, Any]:
    """Run the decoder of a design on a prompt and compare with what the model gives.

    golden      the run to compare with; None = the one that the design holds
    new_tokens  the first so many tokens of it; None = all
    tolerance   largest difference, relative to the largest magnitude of the vector
    Returns tokens_compared, tokens_equal, tokens, max_logit_error and max_input_error (relative),
    flips (inputs of linears that were rounded to another integer), first_flip, first_divergence
    (None, or the first step beyond the tolerance, or token, that no flip before explains), seconds.
    """
    start = time.monotonic()
    design = read_design(design_dir)
    if design.decoder is None:
        raise ConfigError(f"{design.path}: has no decoder; export all layers")
    decoder = design.decoder.design
    golden = _shorten(golden or golden_of(design), new_tokens)
    golden.check(decoder.model)
    sources = trusted_sources(design, allow_modified)
    program = compile_testbench(sources, f"sim/{decoder.name}_testbench.cpp")
    compiled = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lutllm-decoder-") as folder:
        run_program(program, design, golden, Path(folder))
        report = compare(design, golden, Path(folder), tolerance)
    seconds = time.monotonic()
    return {**report, "simulated_seconds": seconds - compiled, "seconds": seconds - start}


def golden_of(design: Design) -> DecoderGolden:
    """The golden run that a design holds."""
    record = design.decoder
    assert record is not None
    if not record.tokens:
        raise ConfigError(f"{design.path}: no golden run of the decoder; export with one")
    model = record.design.model
    return read_decoder_golden(design.path, model, record.prompt, record.tokens, record.inputs)


def _shorten(golden: DecoderGolden, tokens: int | None) -> DecoderGolden:
    if tokens is None or tokens >= len(golden.tokens):
        return golden
    if tokens < 1:
        raise ConfigError(f"new_tokens is {tokens}; it must be at least 1")
    positions = len(golden.prompt) + tokens - 1
    return DecoderGolden(
        golden.prompt,
        golden.tokens[:tokens],
        golden.logits[:tokens],
        {name: values[:positions] for name, values in golden.inputs.items()},
    )


def run_program(program: Path, design: Design, golden: DecoderGolden, out: Path) -> None:
    """Run a compiled testbench on the golden prompt; its results go to `out`."""
    numbers = [len(golden.tokens), *golden.prompt]
    found = subprocess.run(
        [str(program), str(design.path / "images"), str(out)],
        input=" ".join(str(n) for n in numbers),
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        status = found.returncode
        kind = "stopped" if status == DEADLOCK_STATUS else f"ended with status {status}"
        said = "\n".join(found.stderr.strip().splitlines()[:200])
        raise ArtifactError(f"{design.path}: C simulation of the decoder {kind}\n{said}")


def relative_errors(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Largest |found - wanted| of each row over the row's largest magnitude. f32[N, D] -> f64[N].

    A value that is not finite counts as an infinite error.
    """
    largest = np.maximum(np.abs(wanted).max(axis=1), np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):
        errors = np.abs(found.astype(np.float64) - wanted).max(axis=1) / largest
    return np.where(np.isfinite(found).all(axis=1), errors, np.inf)


def compare(design: Design, golden: DecoderGolden, out: Path, tolerance: float) -> dict[str, Any]:
    """The report on a run whose results lie in `out`.

    Steps are numbered in the order they run. What a step gives at a position depends on the steps
    before it at this position and those before: a flip there explains a difference here.
    """
    tokens = np.fromfile(out / "tokens.bin", "<i4")
    logits = np.fromfile(out / "logits.bin", "<f4").reshape(len(tokens), -1)
    equal = tokens == golden.tokens
    # After a wrong token the kernel continues another text: nothing later is comparable.
    valid = len(equal) if equal.all() else int(np.argmin(equal)) + 1
    first_logit = len(golden.prompt) - 1
    positions = first_logit + valid
    assert design.decoder is not None
    names = list(_linear_names(design.decoder.design, golden))
    steps = [_step(design, golden, out, name, positions, valid) for name in names]
    errors = np.zeros((len(steps) + 2, positions))
    flips = np.zeros((len(steps) + 2, positions), np.int64)
    for i, (error, flipped) in enumerate(steps):
        errors[i], flips[i] = error, flipped
    errors[-2, first_logit:] = relative_errors(logits[:valid], golden.logits[:valid])
    errors[-1, first_logit:] = np.where(equal[:valid], 0.0, np.inf)
    before = np.vstack([np.zeros((1, positions), bool), (flips > 0)[:-1]])
    explained = np.logical_or.accumulate(np.logical_or.accumulate(before, axis=0), axis=1)
    labels = [*(f"input of {name}" for name in names), "logits", "token"]
    return {
        "tokens_compared": len(tokens),
        "tokens_equal": int(equal.sum()),
        "tokens": [int(token) for token in tokens],
        "max_logit_error": float(errors[-2].max()),
        "max_input_error": float(errors[:-2].max()) if names else 0.0,
        "tolerance": tolerance,
        "flips": int(flips.sum()),
        "first_flip": _first(flips > 0, errors, labels),
        "first_divergence": _first((errors > tolerance) & ~explained, errors, labels),
    }


def _linear_names(decoder: DecoderDesign, golden: DecoderGolden) -> dict[str, tuple[int, int]]:
    """Linear -> (layer, projection), in the order they run, of those the golden run holds.

    The LUT linear before the head comes last, with the number of layers and of projections.
    """
    layers = decoder.model.num_hidden_layers
    places = {
        shape.name: (layer, p)
        for layer in range(layers)
        for p, shape in enumerate(decoder.model.layer_linears(layer))
    }
    places[HEAD_LINEAR] = (layers, len(PROJECTIONS))
    return {name: place for name, place in places.items() if name in golden.inputs}


def _step(
    design: Design, golden: DecoderGolden, out: Path, name: str, positions: int, chosen: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of a linear's input at each position: relative error f64[T], values that flipped i64[T].

    The head runs at the last `chosen` positions only; at others there is nothing to differ.
    """
    assert design.decoder is not None
    layer, p = _linear_names(design.decoder.design, golden)[name]
    first = positions - chosen if name == HEAD_LINEAR else 0
    wanted = golden.inputs[name][first:positions]
    found = np.fromfile(out / f"inputs_{layer}_{p}.bin", "<f4").reshape(-1, wanted.shape[1])
    found = found[: positions - first]
    flipped = _rounded(design, name, found) != _rounded(design, name, wanted)
    before = np.zeros(first)
    errors = np.concatenate([before, relative_errors(found, wanted)])
    return errors, np.concatenate([before.astype(np.int64), flipped.sum(axis=1)])


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
        z = x * scales
        if engine.search:
            limit = np.float32(ACT_LIMIT << (STAGE_BITS * (kind.act_stages - 1)))
            return np.rint(np.clip(z, -limit, limit))
        top = np.abs(z).max(axis=1, keepdims=True)
        return np.rint(z * np.where(top > TINY_INPUT, np.float32(127) / top, np.float32(0)))


def _first(where: np.ndarray, errors: np.ndarray, labels: list[str]) -> dict[str, Any] | None:
    """The first place of a mask [step, position], by position, then by step."""
    if not where.any():
        return None
    position, step = (int(i[0]) for i in np.nonzero(where.T))
    error = float(errors[step, position])
    return {"position": position, "step": labels[step], "relative_error": error}
