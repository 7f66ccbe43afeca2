"""C simulation of the decoder kernel: a prompt through the whole model, compared step by step."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from codegen.csim import compile_testbench, trusted_sources
from codegen.decoder_compare import compare, compare_replay, input_places
from codegen.decoder_golden import DecoderGolden, read_decoder_golden
from codegen.manifest import Design, read_design
from lutllm.config import HEAD_LINEAR
from lutllm.errors import ArtifactError, ConfigError

#: Largest difference from the emulator, as a share of the largest magnitude of the same vector.
#: Float steps sum in another order, so values agree to about 1e-6 and one at the border between
#: two integers may be rounded the other way; what depends on it then differs by quantization noise.
TOLERANCE = 1e-4
DEADLOCK_STATUS = 3
#: What the model gives step by step on the inputs of the kernel's linears: a run to a run.
Replay = Callable[[DecoderGolden], DecoderGolden]


def run_decoder(
    design_dir: str | Path,
    *,
    golden: DecoderGolden | None = None,
    new_tokens: int | None = None,
    tolerance: float = TOLERANCE,
    replay: Replay | None = None,
    allow_modified: bool = False,
) -> dict[str, Any]:
    """Run the decoder of a design on a prompt and compare with what the model gives.

    golden      the run to compare with; None = the one that the design holds
    new_tokens  the first so many tokens of it; None = all
    tolerance   largest difference, relative to the largest magnitude of the vector
    replay      makes what the model gives on the inputs of the kernel's linears; None = do not
                compare with that
    Returns tokens_compared, tokens_equal, tokens, max_logit_error and max_input_error (relative),
    flips (inputs of linears that were rounded to another integer), first_flip, first_divergence
    (None, or the first step beyond the tolerance, or token, that no flip before explains),
    token_difference (None, or the first other token: codegen/decoder_compare.py), replay (None, or
    the report of `compare_replay`), seconds.
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
        found = read_run(design, golden.prompt, Path(folder))
    simulated = time.monotonic()
    report = compare(design, golden, found, tolerance)
    report["replay"] = compare_replay(design, replay(found), found, tolerance) if replay else None
    seconds = time.monotonic()
    return {**report, "simulated_seconds": simulated - compiled, "seconds": seconds - start}


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


def read_run(design: Design, prompt: np.ndarray, out: Path) -> DecoderGolden:
    """The run whose results lie in `out`; of HEAD_LINEAR, inputs of the words chosen alone."""
    assert design.decoder is not None
    model = design.decoder.design.model
    tokens = np.fromfile(out / "tokens.bin", "<i4")
    logits = np.fromfile(out / "logits.bin", "<f4").reshape(len(tokens), -1)
    inputs = {}
    for name, (layer, p) in input_places(model).items():
        path = out / f"inputs_{layer}_{p}.bin"
        if path.exists():
            rows = len(tokens) if name == HEAD_LINEAR else len(prompt) + len(tokens) - 1
            inputs[name] = np.fromfile(path, "<f4").reshape(rows, -1)
    return DecoderGolden(prompt, tokens, logits, inputs)
