"""A checkpoint becomes an artifact: `quantize`, and what it would take."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutllm import recipes
from lutllm.api.evaluating import artifact_perplexity
from lutllm.api.source import CTX, Source, open_reference, open_source
from lutllm.artifact import Artifact, write_json
from lutllm.config import QuantConfig
from lutllm.errors import ConfigError
from lutllm.model_card import write_model_card
from lutllm.recipes import AUTO, DEFAULT_RECIPE
from lutllm.version import __version__

if TYPE_CHECKING:
    from lutllm.checkpoint import Checkpoint
    from lutllm.tokenizer import Tokenizer
    from quant.pipeline import CalibrationConfig


def choose_recipe(
    source: Source,
    *,
    max_bits: float | None = None,
    max_mb: float | None = None,
    head: str | None = None,
    tie_head: bool = False,
) -> dict[str, Any]:
    """The most accurate recipe within a budget of size, and why (`quant.recipe_choice`).

    max_bits  bits per weight of the linears, codebooks and scales included
    max_mb    size of the artifact in MB (10^6 bytes), without the tokenizer
    head      "int8" or "source", in place of the recipe's
    tie_head  as for `quantize`
    Accuracy is what docs/ACCURACY.md records of the recipes. Returns recipe, bits_per_weight,
    artifact_bytes, recorded_ratio and reason; ConfigError where no recipe fits.
    """
    from quant import recipe_choice

    budget = recipe_choice.SizeBudget(max_bits, max_mb)
    return recipe_choice.choose_recipe(open_source(source, tie_head), budget, head).to_dict()


def _configured(
    source: Source,
    config: QuantConfig | None,
    recipe: str | None,
    max_bits: float | None,
    max_mb: float | None,
    tie_head: bool,
) -> tuple[QuantConfig, dict[str, Any]]:
    """The configuration asked for, and "recipe_choice" for the result where it was chosen."""
    if config is not None and recipe is not None:
        raise ConfigError("config and recipe are both given; leave one out")
    if recipe == AUTO:
        choice = choose_recipe(source, max_bits=max_bits, max_mb=max_mb, tie_head=tie_head)
        return recipes.recipe(choice["recipe"]).quant(), {"recipe_choice": choice}
    if max_bits is not None or max_mb is not None:
        raise ConfigError(f"max_bits and max_mb are a budget of recipe {AUTO!r}; leave them out")
    return config or recipes.recipe(recipe or DEFAULT_RECIPE).quant(), {}


def plan(
    source: Source,
    config: QuantConfig | None = None,
    *,
    recipe: str | None = None,
    max_bits: float | None = None,
    max_mb: float | None = None,
    calib_tokens: int | None = None,
    tie_head: bool = False,
) -> dict[str, Any]:
    """What quantizing `source` would take: seconds, peak memory, artifact size.

    config, recipe, max_bits, max_mb, calib_tokens, tie_head  as for `quantize`, whose text is
    taken to be long enough
    """
    from quant import pipeline

    config, choice = _configured(source, config, recipe, max_bits, max_mb, tie_head)
    checkpoint = open_source(source, tie_head)
    calibration = _calibration(checkpoint, calib_tokens)
    return pipeline.plan(checkpoint, config, calibration) | choice


def quantize(
    source: Source,
    out: Source,
    config: QuantConfig | None = None,
    *,
    recipe: str | None = None,
    max_bits: float | None = None,
    max_mb: float | None = None,
    calib: Source | None = None,
    calib_tokens: int | None = None,
    eval_text: Source | None = None,
    eval_tokens: int = 4096,
    bits: float | None = None,
    distill_minutes: float = 0,
    tie_head: bool = False,
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Quantize a checkpoint into the artifact folder `out` and return its report.

    source       Hugging Face folder, GGUF file or hub id
    config       None takes `recipe`
    recipe       a name; None takes the published setting, "auto" the most accurate one within
                 max_bits and max_mb (`choose_recipe`), which "recipe_choice" in the result explains
    calib        calibration text; None takes the one that ships with lutllm
    calib_tokens how many of its tokens; None takes 32,768, or what the text has
    eval_text    text for perplexity before and after; None takes the end of the calibration text,
                 which is then not calibrated on
    eval_tokens  how many of its tokens, 0 to leave the perplexities out
    bits         a weight on average, codebooks and scales included: the weight stages of every
                 linear are chosen by measured sensitivity (`quant.mixed`); None leaves them as in
                 config
    distill_minutes  time to train codebooks, scales and norms towards the float model, which
                 then has to fit in memory
    tie_head     store the rows of the head for the embedding as well, where the checkpoint holds
                 both as roundings of one matrix (`lutllm.checkpoint.tied`)
    resume       continue a run that was interrupted, from its last finished layer
    """
    from lutllm.checkpoint import open_checkpoint
    from lutllm.emulator.runner import table_engine
    from quant import pipeline

    begun = time.monotonic()
    if recipe == AUTO and bits is not None:
        raise ConfigError("bits and recipe 'auto' both choose index bits; leave one out")
    config, choice = _configured(source, config, recipe, max_bits, max_mb, tie_head)
    out = Path(out)
    checkpoint = open_source(source, tie_head)
    tokenizer = checkpoint.tokenizer()
    calib_ids = _calibration_ids(tokenizer, calib)
    spare = eval_tokens if eval_text is None else 0
    calibration = _calibration(checkpoint, calib_tokens, len(calib_ids) - spare)
    calib_ids, windows = _held_back(
        tokenizer, calib_ids, calibration.tokens, calibration.ctx, eval_text, eval_tokens
    )
    inputs = {
        "lutllm_version": __version__,
        "source": checkpoint.source,
        "requested": {"quantization": config.to_dict(), "bits": bits},
        "distill_minutes": distill_minutes,
        "tie_head": tie_head,
        "calibration": {
            "tokens": calibration.tokens,
            "ctx": calibration.ctx,
            "text_sha256": hashlib.sha256(calib_ids.tobytes()).hexdigest(),
        },
    }
    report = _finished(out, inputs) if resume else None
    if report is None:
        report = pipeline.quantize(
            checkpoint,
            out,
            config,
            calib_ids,
            calibration=calibration,
            engine=table_engine(),
            bits=bits,
            distill_minutes=distill_minutes,
            resume=resume,
            progress=progress,
        )
        report |= inputs
        write_json(out / "report.json", report)
    report |= _perplexities(open_checkpoint(source), out, windows, progress)
    return _concluded(report, out, begun) | choice


def distill(
    artifact: Source,
    out: Source,
    reference: Source,
    *,
    minutes: float = 0,
    steps: int = 0,
    learning_rate: float | None = None,
    calib: Source | None = None,
    eval_text: Source | None = None,
    eval_tokens: int = 4096,
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Train the finished `artifact` towards the float model and write the artifact folder `out`.

    reference    the checkpoint that the artifact was made of; it has to fit in memory
    minutes      about how long to train codebooks, scales and norms, or
    steps        how often, 512 tokens each up to 2.5 index bits, else 1,024: the same bytes on a
                 machine of any speed
    learning_rate  the largest of the run, relative to the size of a codebook, at most 0.1; None
                 for one that helps at the artifact's index bits: 0.002 up to 2.5, 0.0015 up to 3.5,
                 else 0.0006
    calib        text to train on, all of it; None takes the one that ships with lutllm
    eval_text, eval_tokens  as for `quantize`
    resume       continue a run that was interrupted
    Returns the report of the new artifact, "distillation" and "distilled_from" in it.
    """
    from calib.text import windows
    from lutllm.checkpoint.tied import TiedCheckpoint
    from lutllm.emulator.runner import table_engine
    from quant.further import distill_further
    from quant.refine import Schedule

    begun, out = time.monotonic(), Path(out)
    schedule = Schedule(minutes, steps, learning_rate)
    opened = Artifact.open(artifact)
    checkpoint = open_reference(reference, artifact, opened.model)
    tokenizer = checkpoint.tokenizer()
    ids = _calibration_ids(tokenizer, calib)
    ctx = min(CTX, checkpoint.model.max_position_embeddings)
    ids, held_out = _held_back(tokenizer, ids, len(ids) // 2, ctx, eval_text, eval_tokens)
    ties = opened.model.tie_word_embeddings and not checkpoint.model.tie_word_embeddings
    report = distill_further(
        opened,
        TiedCheckpoint(checkpoint) if ties else checkpoint,
        out,
        windows(ids, ctx),
        schedule,
        engine=table_engine(),
        resume=resume,
        progress=progress,
    )
    report |= _perplexities(checkpoint, out, held_out, progress)
    return _concluded(report, out, begun)


def _calibration_ids(tokenizer: Tokenizer, calib: Source | None) -> np.ndarray:
    """Token ids i64[T] of the calibration text, None for the one that ships with lutllm."""
    from calib.text import default_text, read_text

    text = default_text() if calib is None else read_text(calib)
    return np.array(tokenizer.encode(text), np.int64)


def _concluded(report: dict[str, Any], out: Path, begun: float) -> dict[str, Any]:
    """The report with what the whole run took, written beside a model card."""
    from quant.resources import peak_rss_bytes

    report |= {
        "peak_rss_bytes": peak_rss_bytes(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    write_json(out / "report.json", report)
    write_model_card(out, report)
    return report


def _finished(out: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an artifact made of the same inputs, whose run ended in its evaluation."""
    from quant.workspace import finished_report

    report = finished_report(out)
    return report if all(report.get(key) == value for key, value in inputs.items()) else None


def _calibration(
    checkpoint: Checkpoint, calib_tokens: int | None, available: int | None = None
) -> CalibrationConfig:
    """Tokens, and tokens per window: CTX, or fewer where the model is made for fewer.

    available: what the text has, None where it is not known.
    """
    from quant.pipeline import CalibrationConfig

    ctx = min(CTX, checkpoint.model.max_position_embeddings)
    if calib_tokens is None:
        calib_tokens = CalibrationConfig().tokens
        if available is not None:
            calib_tokens = max(ctx, min(calib_tokens, available) // ctx * ctx)
    if calib_tokens < ctx:
        raise ConfigError(
            f"calib_tokens is {calib_tokens}; at least one window of {ctx} tokens is needed"
        )
    return CalibrationConfig(calib_tokens, ctx)


def _held_back(
    tokenizer: Tokenizer,
    ids: np.ndarray,
    needed: int,
    ctx: int,
    eval_text: Source | None,
    eval_tokens: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Calibration ids i64[T] and evaluation windows i64[N, ctx], None where there is no text.

    ids: i64[N], the calibration text, whose end stands in for an evaluation text, but for the
    `needed` tokens of its beginning.
    """
    from calib.text import read_text, windows

    if eval_tokens == 0:
        return ids, None
    if eval_text is not None:
        held_out = np.array(tokenizer.encode(read_text(eval_text)), np.int64)
        return ids, windows(held_out, ctx, max(eval_tokens, ctx))
    spare = min(eval_tokens, len(ids) - needed) // ctx * ctx
    if spare < ctx:
        return ids, None
    return ids[:-spare], windows(ids[-spare:], ctx)


def _perplexities(
    checkpoint: Checkpoint, out: Path, windows: np.ndarray | None, progress: bool
) -> dict[str, Any]:
    """perplexity_before and _after with their standard errors, None without windows."""
    from calib.evaluate import perplexity_of_checkpoint

    names = ("perplexity", "stderr")
    if windows is None:
        return {f"{name}_{when}": None for name in names for when in ("before", "after")}
    before = perplexity_of_checkpoint(checkpoint, windows, progress)
    after = artifact_perplexity(out, windows, progress)
    values = {"before": before.to_dict(), "after": after.to_dict()}
    found = {f"{name}_{when}": values[when][name] for name in names for when in values}
    return found | {"evaluation": {"tokens": before.tokens, "ctx": before.ctx}}
