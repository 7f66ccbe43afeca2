"""The commands as functions. The one module that joins calibration, quantizer, emulator, export.

Heavy modules are imported inside the functions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutllm import recipes
from lutllm.artifact import Artifact, artifact_hash, is_artifact, read_json, write_json
from lutllm.config import HEAD_LINEAR, QuantConfig
from lutllm.errors import ArtifactError, ConfigError
from lutllm.model_card import write_model_card
from lutllm.recipes import AUTO, DEFAULT_RECIPE
from lutllm.version import __version__

if TYPE_CHECKING:
    from calib.evaluate import Perplexity
    from codegen.decoder_golden import DecoderGolden
    from fpga.design_file import DesignChoices
    from lutllm.checkpoint import Checkpoint
    from lutllm.emulator import LutModel
    from lutllm.tokenizer import Tokenizer
    from quant.pipeline import CalibrationConfig

Source = str | Path

#: Tokens per window in calibration and in the perplexities of a report.
CTX = 512


def choose_recipe(
    source: Source,
    *,
    max_bits: float | None = None,
    max_mb: float | None = None,
    head: str | None = None,
) -> dict[str, Any]:
    """The most accurate recipe within a budget of size, and why (`quant.recipe_choice`).

    max_bits  bits per weight of the linears, codebooks and scales included
    max_mb    size of the artifact in MB (10^6 bytes), without the tokenizer
    head      "int8" or "source", in place of the recipe's
    Accuracy is what docs/ACCURACY.md records of the recipes. Returns recipe, bits_per_weight,
    artifact_bytes, recorded_ratio and reason; ConfigError where no recipe fits.
    """
    from lutllm.checkpoint import open_checkpoint
    from quant import recipe_choice

    budget = recipe_choice.SizeBudget(max_bits, max_mb)
    return recipe_choice.choose_recipe(open_checkpoint(source), budget, head).to_dict()


def _configured(
    source: Source,
    config: QuantConfig | None,
    recipe: str | None,
    max_bits: float | None,
    max_mb: float | None,
) -> tuple[QuantConfig, dict[str, Any]]:
    """The configuration asked for, and "recipe_choice" for the result where it was chosen."""
    if config is not None and recipe is not None:
        raise ConfigError("config and recipe are both given; leave one out")
    if recipe == AUTO:
        choice = choose_recipe(source, max_bits=max_bits, max_mb=max_mb)
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
    calib_tokens: int = 8192,
) -> dict[str, Any]:
    """What quantizing `source` would take: seconds, peak memory, artifact size.

    config, recipe, max_bits, max_mb  as for `quantize`
    """
    from lutllm.checkpoint import open_checkpoint
    from quant import pipeline

    config, choice = _configured(source, config, recipe, max_bits, max_mb)
    checkpoint = open_checkpoint(source)
    calibration = pipeline.CalibrationConfig(calib_tokens, _context(checkpoint, calib_tokens))
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
    calib_tokens: int = 8192,
    eval_text: Source | None = None,
    eval_tokens: int = 4096,
    bits: float | None = None,
    distill_minutes: float = 0,
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Quantize a checkpoint into the artifact folder `out` and return its report.

    source       Hugging Face folder, GGUF file or hub id
    config       None takes `recipe`
    recipe       a name; None takes the published setting, "auto" the most accurate one within
                 max_bits and max_mb (`choose_recipe`), which "recipe_choice" in the result explains
    calib        calibration text; None takes the one that ships with lutllm
    eval_text    text for perplexity before and after; None takes the end of the calibration text,
                 which is then not calibrated on
    eval_tokens  how many of its tokens, 0 to leave the perplexities out
    bits         index bits a weight on average: the weight stages of every linear are chosen by
                 measured sensitivity (`quant.mixed`); None leaves them as in config
    distill_minutes  time to train codebooks, scales and norms towards the float model, which
                 then has to fit in memory
    resume       continue a run that was interrupted, from its last finished layer
    """
    from lutllm.checkpoint import open_checkpoint
    from lutllm.emulator.runner import table_engine
    from quant import pipeline

    begun = time.monotonic()
    if recipe == AUTO and bits is not None:
        raise ConfigError("bits and recipe 'auto' both choose index bits; leave one out")
    config, choice = _configured(source, config, recipe, max_bits, max_mb)
    out = Path(out)
    checkpoint = open_checkpoint(source)
    calibration = pipeline.CalibrationConfig(calib_tokens, _context(checkpoint, calib_tokens))
    tokenizer = checkpoint.tokenizer()
    calib_ids, windows = _texts(tokenizer, calib, calibration, eval_text, eval_tokens)
    allocation = None
    if bits is not None:
        config, allocation = _mixed(checkpoint, config, bits, calib_ids, calibration, progress)
    inputs = {
        "lutllm_version": __version__,
        "source": checkpoint.source,
        "quantization": config.to_dict(),
        "distill_minutes": distill_minutes,
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
            distill_minutes=distill_minutes,
            resume=resume,
            progress=progress,
        )
        report |= inputs | {"allocation": allocation}
        write_json(out / "report.json", report)
    report |= _perplexities(checkpoint, out, windows, progress)
    report["peak_rss_bytes"] = pipeline.peak_rss_bytes()
    report["seconds"] = round(time.monotonic() - begun, 1)
    write_json(out / "report.json", report)
    write_model_card(out, report)
    return report | choice


def _mixed(
    checkpoint: Checkpoint,
    config: QuantConfig,
    bits: float,
    calib_ids: np.ndarray,
    calibration: CalibrationConfig,
    progress: bool,
) -> tuple[QuantConfig, dict[str, Any]]:
    from calib.text import windows
    from quant.mixed import mixed_precision

    return mixed_precision(checkpoint, config, bits, windows(calib_ids, calibration.ctx), progress)


def _finished(out: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an artifact made of the same inputs, whose run ended in its evaluation."""
    if not (out / "report.json").is_file() or out.with_name(out.name + ".partial").exists():
        return None
    report = read_json(out / "report.json")
    same = all(report.get(key) == value for key, value in inputs.items())
    return report if same and report.get("artifact_hash") == artifact_hash(out) else None


def _context(checkpoint: Checkpoint, calib_tokens: int) -> int:
    """Tokens per window: CTX, or fewer where the model is made for fewer."""
    ctx = min(CTX, checkpoint.model.max_position_embeddings)
    if calib_tokens < ctx:
        raise ConfigError(
            f"calib_tokens is {calib_tokens}; at least one window of {ctx} tokens is needed"
        )
    return ctx


def _texts(
    tokenizer: Tokenizer,
    calib: Source | None,
    calibration: CalibrationConfig,
    eval_text: Source | None,
    eval_tokens: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Calibration ids i64[T] and evaluation windows i64[N, ctx], None where there is no text."""
    from calib.text import default_text, read_text, windows

    text = default_text() if calib is None else read_text(calib)
    ids = np.array(tokenizer.encode(text), np.int64)
    ctx = calibration.ctx
    if eval_tokens == 0:
        return ids, None
    if eval_text is not None:
        held_out = np.array(tokenizer.encode(read_text(eval_text)), np.int64)
        return ids, windows(held_out, ctx, max(eval_tokens, ctx))
    spare = min(eval_tokens, len(ids) - calibration.tokens) // ctx * ctx
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
    after = _artifact_perplexity(out, windows, progress)
    values = {"before": before.to_dict(), "after": after.to_dict()}
    found = {f"{name}_{when}": values[when][name] for name in names for when in values}
    return found | {"evaluation": {"tokens": before.tokens, "ctx": before.ctx}}


def _artifact_perplexity(path: Path, windows: np.ndarray, progress: bool) -> Perplexity:
    from calib.evaluate import perplexity_of_losses

    return perplexity_of_losses(load(path).nll, windows, progress, "evaluating the artifact")


def evaluate(
    model: Source,
    text: Source,
    *,
    ctx: int = CTX,
    max_tokens: int | None = None,
    reference: Source | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Perplexity of an artifact or a float checkpoint over windows that do not overlap.

    Returns perplexity, stderr (delta method over windows), tokens (predicted ones) and ctx. With
    `reference`, the float checkpoint of an artifact, also the paired ratio of perplexities, the
    KL divergence and the agreement of first ranks (`calib.compare.Comparison`).
    """
    from calib.evaluate import perplexity_of_checkpoint
    from calib.text import read_text, windows
    from lutllm.checkpoint import open_checkpoint
    from lutllm.tokenizer import Tokenizer

    content = read_text(text)
    if _is_artifact(model):
        limit = Artifact.open(model).model.max_position_embeddings
        _check_ctx(model, ctx, limit)
        ids = Tokenizer.from_folder(model).encode(content)
        if reference is not None:
            return _compare(model, reference, windows(ids, ctx, max_tokens), progress)
        return _artifact_perplexity(Path(model), windows(ids, ctx, max_tokens), progress).to_dict()
    if reference is not None:
        raise ConfigError(f"{model} is not an artifact; only artifacts have a reference")
    checkpoint = open_checkpoint(model)
    _check_ctx(model, ctx, checkpoint.model.max_position_embeddings)
    ids = checkpoint.tokenizer().encode(content)
    return perplexity_of_checkpoint(checkpoint, windows(ids, ctx, max_tokens), progress).to_dict()


def evaluate_task(
    model: Source,
    task: Source,
    *,
    limit: int | None = None,
    reference: Source | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Zero-shot accuracy of an artifact or a float checkpoint on a local task file.

    task: JSON lines (`calib.tasks`); limit: the first so many items. Returns accuracy,
    accuracy_norm (per character of the answer), their standard errors and items; with
    `reference`, a float checkpoint, also the paired change of accuracy on the same items.
    """
    from calib.tasks import paired, read_task, score

    items = read_task(task, limit)
    own = score(items, *_task_model(model), progress)
    if reference is None:
        return own.to_dict()
    return own.to_dict() | paired(own, score(items, *_task_model(reference), progress))


def _task_model(model: Source) -> tuple[Any, Any, int]:
    """How to encode a text, how to get logits i64[T] -> f32[T, V], and the longest sequence."""
    if _is_artifact(model):
        artifact = load(model)
        return artifact.tokenizer.encode, artifact.logits, artifact.context
    from calib.decoder import FloatDecoder, ResidentDecoder
    from lutllm.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    resident = ResidentDecoder(FloatDecoder(checkpoint))
    limit = checkpoint.model.max_position_embeddings
    return checkpoint.tokenizer().encode, resident.logits, limit


def _compare(
    model: Source, reference: Source, windows: np.ndarray, progress: bool
) -> dict[str, Any]:
    from calib.compare import compare
    from lutllm.checkpoint import open_checkpoint

    checkpoint, artifact = open_checkpoint(reference), load(model)
    if checkpoint.model != artifact.config:
        raise ConfigError(f"{reference} has another config than {model}; give what it was made of")
    return compare(checkpoint, artifact.logits, windows, progress).to_dict()


def _check_ctx(model: Source, ctx: int, limit: int) -> None:
    if ctx > limit:
        raise ConfigError(
            f"ctx is {ctx}, but {model} is made for up to {limit} positions; lower ctx"
        )


def _is_artifact(model: Source) -> bool:
    return Path(model).is_dir() and is_artifact(Path(model))


def load(
    path: Source, *, threads: int | None = None, context: int | None = None, kv: str = "F32"
) -> LutModel:
    """The artifact `path`, ready to run: `.generate(...)`, `.logits(ids)`.

    threads  None takes all that are available
    context  positions a sequence may have; None takes what the model is made for
    kv       "F32" or "F16": what keys and values are kept as, see `LutModel`
    """
    from lutllm.emulator import LutModel

    return LutModel.load(path, threads, context, kv)


def bench(
    path: Source,
    *,
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    threads: int | None = None,
    batch: int = 0,
    text: str | Path | None = None,
    kv: str = "F32",
) -> dict[str, Any]:
    """Prefill and decode speed of an artifact on this machine, and the memory speed beside it.

    batch: sequences that are also decoded together, 0 for none. text: a file whose tokens are
    taken, None for random ones. kv: see `load`.
    """
    from calib.text import read_text
    from lutllm.emulator import bench as measure

    content = None if text is None else read_text(text)
    model = load(path, threads=threads, kv=kv)
    return measure.bench(model, prompt_tokens, decode_tokens, batch=batch, text=content)


def serve(
    path: Source,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    queue: int = 16,
    batch: int = 4,
    context: int | None = None,
    threads: int | None = None,
    kv: str = "F32",
    ready: Callable[[str], None] | None = None,
) -> None:
    """Answer OpenAI-style HTTP requests for the artifact `path` until interrupted.

    port   0 takes a free one
    name   of the model for clients; None takes that of the folder
    queue  requests that may wait behind those that run; more are refused
    batch  requests that run together, at most; each has a cache of its own
    ready  gets the address once it listens

    Needs the extra `serve`.
    """
    from lutllm.server.run import serve as run_server
    from lutllm.server.settings import ServeConfig

    config = ServeConfig(name or Path(path).resolve().name, queue, batch)
    model = load(path, threads=threads, context=context, kv=kv)
    run_server(model, config, host, port, ready or (lambda address: None))


def export(
    artifact: Source,
    out: Source,
    *,
    device: str = "v80",
    design: Source | dict[str, Any] | None = None,
    golden_layers: int = 1,
    golden_tokens: int = 32,
    prompt_tokens: int = 16,
    new_tokens: int = 16,
    explained: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write FPGA kernels, memory images and a testbench for an artifact into `out`.

    design         choices of engine, decoder and clock or their JSON file, as `explore` writes
                   it; None = the defaults
    golden_layers  decoder layers whose linears get golden vectors for C simulation: the inputs
                   that the emulator gives them for the first golden_tokens tokens of our text
    prompt_tokens  tokens of our text that the decoder continues in C simulation
    new_tokens     by so many tokens of its own
    explained      return "explanation": lines that name the block diagrams and map the memory
    """
    from codegen.explain import explain
    from codegen.export import export as run_export

    choices = _choices(design)
    model = load(artifact)
    ids = _golden_words(model, max(golden_tokens, prompt_tokens))
    inputs = _golden_inputs(model, ids[:golden_tokens], golden_layers)
    run = golden_run(model, ids[:prompt_tokens], new_tokens)
    found = run_export(
        artifact,
        out,
        device=device,
        clock_mhz=choices.clock_mhz,
        engine=choices.engine,
        decoder=choices.decoder,
        golden=inputs,
        golden_tokens=golden_tokens,
        decoder_golden=run,
        progress=progress,
    )
    return {**found, "explanation": explain(out)} if explained else found


def _choices(design: Source | dict[str, Any] | None) -> DesignChoices:
    from fpga.design_file import DesignChoices

    if isinstance(design, dict):
        return DesignChoices.from_dict(design)
    return DesignChoices() if design is None else DesignChoices.read(design)


def _golden_words(model: LutModel, tokens: int) -> list[int]:
    """The first tokens of our text."""
    from calib.text import default_text

    text = default_text()[: 64 * tokens]  # no tokenizer needs 64 characters a token
    return model.tokenizer.encode_prompt(text)[: min(tokens, model.context)]


def _golden_inputs(model: LutModel, ids: list[int], layers: int) -> dict[str, np.ndarray]:
    """Inputs f32[T, D] of the linears of the first decoder layers, by name."""
    inputs = model.capture_inputs(ids)
    names = {s.name for i in range(layers) for s in model.config.layer_linears(i)}
    return {name: values for name, values in inputs.items() if name in names}


def golden_run(model: LutModel, prompt: list[int], new_tokens: int) -> DecoderGolden:
    """What `model` gives greedily after `prompt`, for `codegen.csim_decoder.run_decoder`.

    Tokens after the end of the text count too; both end where the context does.
    """
    from codegen.decoder_golden import DecoderGolden
    from lutllm.emulator.reference import rms_norm

    prompt = prompt[: model.context]
    model.reset()
    logits = [model.prefill(prompt)]
    tokens = [int(logits[0].argmax())]
    while len(tokens) < min(new_tokens, model.context - len(prompt) + 1):
        logits.append(model.decode(tokens[-1]))
        tokens.append(int(logits[-1].argmax()))
    words = [*prompt, *tokens[:-1]]
    inputs = model.capture_inputs(words)
    artifact = Artifact.open(model.path)
    if artifact.quant.lut_head:
        norm = artifact.float32("model.norm.weight"), model.config.rms_norm_eps
        inputs[HEAD_LINEAR] = rms_norm(model.capture_stream(words), *norm)
    return DecoderGolden(
        prompt=np.array(prompt, np.int32),
        tokens=np.array(tokens, np.int32),
        logits=np.stack(logits),
        inputs=inputs,
    )


def estimate(
    source: Source,
    quant: QuantConfig | None = None,
    design: Source | dict[str, Any] | None = None,
    *,
    device: str = "v80",
    prompt_tokens: int = 128,
    context: int = 160,
    vector_lanes: int | None = None,
    vocab_ports: int | None = None,
    kv_ports: int | None = None,
    query_tokens: int | None = None,
    clock_mhz: float = 0.0,
    csynth: Source | None = None,
    explained: bool = False,
) -> dict[str, Any]:
    """Speed, size, fit and power of a model on an FPGA, from its configuration alone.

    source  artifact, folder with config.json, config.json, GGUF file (of which the header is
            read), or the name of a known model
    design  choices of engine, decoder and clock or their JSON file, as `explore` writes it; None
            takes those of an export
    vector_lanes, vocab_ports, kv_ports, query_tokens
            of the decoder kernel, in place of those of `design`
    fpga/performance/commands.py explains the rest.
    """
    from fpga.performance import commands

    kernel = {
        "vector_lanes": vector_lanes,
        "vocab_ports": vocab_ports,
        "kv_ports": kv_ports,
        "query_tokens": query_tokens,
    }
    choices = _choices(design)
    changes = {k: v for k, v in kernel.items() if v is not None}
    decoder = dataclasses.replace(choices.decoder, **changes)
    return commands.estimate(
        source,
        quant,
        dataclasses.replace(choices, decoder=decoder),
        device=device,
        prompt_tokens=prompt_tokens,
        context=context,
        clock_mhz=clock_mhz,
        csynth=csynth,
        explained=explained,
    )


def explore(
    source: Source,
    quants: dict[str, QuantConfig] | None = None,
    *,
    decode_tokens_per_s: float = 0.0,
    prefill_ms: float = 0.0,
    max_share: float = 0.8,
    max_perplexity_ratio: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """The best FPGA design within a budget, and the Pareto front of all that fit.

    quants   quantizations to choose from, by name; None takes the default recipe
    max_perplexity_ratio
             of the quantized to the float model; "accuracy" in the result says where ratios come
             from and of which quantizations there is none
    options  those of fpga/performance/commands.py `explore`
    """
    from fpga.performance import commands
    from fpga.performance.explore import Budget

    return commands.explore(
        source,
        quants or {DEFAULT_RECIPE: recipes.recipe(DEFAULT_RECIPE).quant()},
        Budget(decode_tokens_per_s, prefill_ms, max_share, max_perplexity_ratio),
        **options,
    )


def csim(
    folder: Source,
    *,
    tokens: int | None = None,
    layers: int | None = None,
    decoder: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Compile the kernels in an exported folder with g++ and compare them with the emulator.

    decoder  run the whole model on the golden prompt instead of single linears; `tokens` are then
             the tokens it chooses (codegen/csim_decoder.py)
    """
    if decoder:
        from codegen.csim_decoder import run_decoder

        if layers is not None:
            raise ConfigError("layers is set; the decoder runs all layers: leave it out")
        return run_decoder(folder, new_tokens=tokens)
    from codegen.csim import run_csim

    return run_csim(folder, tokens=tokens, layers=layers, progress=progress)


def verify(path: Source) -> dict[str, Any]:
    """Check every array, value and recorded digest of an artifact."""
    path = Path(path)
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; give the folder `lutllm quantize` wrote")
    try:
        problems = Artifact.open(path).verify()
    except ArtifactError as error:
        problems = [str(error)]
    problems += _hash_problem(path)
    return {"ok": not problems, "problems": problems, "artifact_hash": artifact_hash(path)}


def _hash_problem(path: Path) -> list[str]:
    """The recorded hash of the whole artifact, compared with the one it has."""
    report = path / "report.json"
    recorded = read_json(report).get("artifact_hash") if report.is_file() else None
    if recorded in (None, artifact_hash(path)):
        return []
    return [f"{path}: the files do not have the hash {recorded} that report.json states"]
