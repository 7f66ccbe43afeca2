"""Quantizes a checkpoint: layer by layer, the quantized prefix feeding the next layer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib.decoder import FloatDecoder, LayerWeights
from calib.text import calibration_windows
from calib.text import windows as text_windows
from lutllm.artifact import (
    Artifact,
    artifact_hash,
    content_files,
    file_digest,
    linear_tensors,
    write_json,
)
from lutllm.checkpoint import Checkpoint
from lutllm.config import QuantConfig
from lutllm.hub_files import hub_config, write_hub_module
from lutllm.lut_linear import LutLinear, stored_bytes
from lutllm.model_config import LinearShape
from lutllm.progress import Progress
from lutllm.version import __version__
from quant.activation import sample_tokens
from quant.baseline import relative_error, round_to_nearest
from quant.engine import TableEngine
from quant.head import head_bytes, quantize_head, stored_tensors, stored_values
from quant.linear import CHUNK_ROWS, Effort, quantize_linear, searches
from quant.mixed import MixedPrecision
from quant.refine import Schedule, check_training_memory, refine
from quant.resources import check_disk, check_memory, peak_rss_bytes
from quant.shards import shard_name, write_index, write_shard
from quant.workspace import Workspace, check_output

#: Tokens that per-layer errors are measured on.
_ERROR_TOKENS = 1024
#: In the state folder.
_SENSITIVITY = "sensitivity.npz"
#: The linears whose outputs are added to the residual stream.
_ADDING = ("o_proj", "down_proj")


@dataclass(frozen=True)
class CalibrationConfig:
    """Calibration tokens: `tokens` in windows of `ctx`."""

    tokens: int = 32768
    ctx: int = 512


_DEFAULT_CALIBRATION = CalibrationConfig()
_DEFAULT_EFFORT = Effort()


@dataclass
class _Streams:
    """Hidden states of the calibration windows, f32[N, ctx, hidden_size] each."""

    exact: torch.Tensor
    quantized: torch.Tensor


def quantize(
    checkpoint: Checkpoint,
    out: Path,
    config: QuantConfig,
    calib_ids: np.ndarray,
    *,
    calibration: CalibrationConfig = _DEFAULT_CALIBRATION,
    effort: Effort = _DEFAULT_EFFORT,
    engine: TableEngine | None = None,
    bits: float | None = None,
    distill_minutes: float = 0,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Quantize every linear of the decoder layers and write the artifact folder `out`.

    calib_ids: i64[T] token ids of the calibration text. engine: runs finished linears through their
    tables, so that what follows sees their rounding; None leaves it out. bits: a weight on average,
    for which the weight stages of every linear are chosen (`quant.mixed`); None leaves them as in
    config. distill_minutes: time to train the result towards the float model (`quant.refine`), 0
    for none. Returns the report, which is also written as report.json. Raises LutLLMError
    subclasses for what the user can mend; a killed run is continued with resume=True and gives the
    same bytes.
    """
    started = time.monotonic()
    check_output(out)
    windows = calibration_windows(
        calib_ids, calibration.ctx, calibration.tokens // calibration.ctx, config.seed
    )
    mixed = None
    if bits is not None:
        text = text_windows(calib_ids, calibration.ctx)
        mixed = MixedPrecision.within(checkpoint, config, bits, text)
    check_resources(checkpoint, config, calibration, out, mixed)
    if distill_minutes > 0:
        check_training_memory(checkpoint.model, config)
    workspace = Workspace(out, _fingerprint(checkpoint, config, bits, windows, effort), resume)
    allocation = None
    if mixed is not None:
        config, allocation = mixed.choose(workspace.state_file(_SENSITIVITY), progress)
    layers = checkpoint.model.num_hidden_layers
    decoder = FloatDecoder(checkpoint)
    streams = _initial_streams(decoder, windows, workspace, config)
    done = workspace.layers_done
    with Progress(layers, "quantizing layers", progress, done=done) as bar:
        for index in range(done, layers):
            begun = time.monotonic()
            linears, errors = _quantize_layer(decoder, index, streams, config, effort, engine)
            _write_layer(workspace.path, checkpoint, index, linears)
            record = {
                "layer": index,
                "seconds": round(time.monotonic() - begun, 2),
                "linears": errors,
            }
            workspace.finish_layer(
                record,
                {"exact": streams.exact.numpy(), "quantized": streams.quantized.numpy()},
            )
            bar.advance(note=f"layer {index}")
    _finish_files(workspace, decoder, config, streams, effort, progress)
    if distill_minutes > 0:
        refine(
            Artifact.open(workspace.path),
            workspace,
            checkpoint,
            text_windows(calib_ids, calibration.ctx),
            Schedule(distill_minutes),
            engine=engine,
            progress=progress,
        )
    report = _report(workspace, checkpoint, config, calibration)
    report |= {"allocation": allocation, "seconds": round(time.monotonic() - started, 1)}
    write_json(workspace.path / "report.json", report)
    workspace.finish()
    return report


def _fingerprint(
    checkpoint: Checkpoint,
    config: QuantConfig,
    bits: float | None,
    windows: np.ndarray,
    effort: Effort,
) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint_digest(checkpoint),
        "quantization": config.to_dict(),
        "bits": bits,
        "calibration tokens": hashlib.sha256(windows.tobytes()).hexdigest(),
        "effort": vars(effort),
        "lutllm version": __version__,
    }


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Identifies a model by its config, its final norm and a few embedding rows."""
    digest = hashlib.sha256(json.dumps(checkpoint.hf_config, sort_keys=True).encode())
    digest.update(checkpoint.tensor("model.norm.weight").tobytes())
    rows = np.arange(min(64, checkpoint.model.vocab_size))
    digest.update(checkpoint.rows("model.embed_tokens.weight", rows).tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _initial_streams(
    decoder: FloatDecoder, windows: np.ndarray, workspace: Workspace, config: QuantConfig
) -> _Streams:
    saved = workspace.load_hidden()
    if saved is not None:
        return _Streams(torch.from_numpy(saved["exact"]), torch.from_numpy(saved["quantized"]))
    hidden = decoder.embed(windows)
    return _Streams(hidden, stored_values(hidden, config))


@torch.no_grad()
def _quantize_layer(
    decoder: FloatDecoder,
    index: int,
    streams: _Streams,
    config: QuantConfig,
    effort: Effort,
    engine: TableEngine | None,
) -> tuple[list[LutLinear], list[dict[str, Any]]]:
    """Quantize the linears of a layer in the order they run and move both streams behind it.

    The linears that add to the residual stream are also to take back what it lacks: errors of
    earlier linears reach them, and partly show in their inputs.
    """
    weights = decoder.layer(index)
    lacking = (streams.exact - streams.quantized).flatten(0, 1)
    streams.exact, inputs = decoder.run_with_inputs(streams.exact, weights)
    done: list[LutLinear] = []
    errors: list[dict[str, Any]] = []

    def apply(shape: LinearShape, x: torch.Tensor) -> torch.Tensor:
        seed = config.seed + 1009 * index + len(done)
        linear_config = config.for_linear(shape.name)
        x_float = inputs.pop(shape.name)
        adds = shape.name.endswith(_ADDING)
        result = quantize_linear(
            shape,
            weights.weight[shape.name],
            weights.bias[shape.name],
            x_float,
            x,
            linear_config,
            effort,
            seed,
            lacking=effort.correction * lacking if adds and effort.correction else None,
        )
        if engine is None:
            output = result.output()
        else:
            output = torch.from_numpy(engine(result.linear).apply(x.numpy())[0])
        if adds:
            lacking.add_(weights.apply(shape, x_float)).sub_(output)
        done.append(result.linear)
        errors.append(_layer_error(shape, weights, x_float, x, result.linear, output, seed))
        return output

    streams.quantized = decoder.run_layer(streams.quantized, weights, apply)
    return done, errors


def _layer_error(
    shape: LinearShape,
    weights: LayerWeights,
    x_float: torch.Tensor,
    x_quant: torch.Tensor,
    linear: LutLinear,
    output: torch.Tensor,
    seed: int,
) -> dict[str, Any]:
    """Distance to the float model's output, beside round-to-nearest of the weights at like bits.

    Both see the inputs behind the quantized prefix, on a sample of the tokens.
    """
    drawn = torch.from_numpy(sample_tokens(len(x_quant), _ERROR_TOKENS, seed))
    exact = weights.apply(shape, x_float[drawn])
    sample, found = x_quant[drawn], output[drawn]
    bits = max(2, round(linear.config.index_bits_per_weight))
    rounded = sample @ round_to_nearest(weights.weight[shape.name], bits).t()
    bias = weights.bias[shape.name]
    return {
        "name": shape.name,
        "relative_error": relative_error(found, exact),
        "rtn_relative_error": relative_error(rounded if bias is None else rounded + bias, exact),
        "rtn_bits": bits,
    }


def _write_layer(
    folder: Path, checkpoint: Checkpoint, index: int, linears: list[LutLinear]
) -> None:
    """One tensor file per layer: its LUT linears and its norms."""
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for linear in linears:
        tensors |= linear_tensors(linear)
    prefix = f"model.layers.{index}."
    for name in checkpoint.names():
        if name.startswith(prefix) and name.endswith("norm.weight"):
            tensors[name] = checkpoint.stored(name)
    write_shard(folder / shard_name(index, checkpoint.model.num_hidden_layers + 1), tensors)


def _finish_files(
    workspace: Workspace,
    decoder: FloatDecoder,
    config: QuantConfig,
    streams: _Streams,
    effort: Effort,
    progress: bool,
) -> None:
    """Embedding, final norm and head; config, tokenizer and index. Once only when resumed."""
    folder, checkpoint = workspace.path, decoder.checkpoint
    if workspace.refined is not None:
        return
    count = checkpoint.model.num_hidden_layers + 1
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    if config.lut_head:
        behind = streams.exact, streams.quantized
        head = quantize_head(decoder, *behind, config, effort, progress)
        tensors |= linear_tensors(head)
    for name in checkpoint.names():
        if not name.startswith("model.layers."):
            tensors |= stored_tensors(checkpoint, name, config)
    write_shard(folder / shard_name(count - 1, count), tensors)
    write_json(
        folder / "config.json",
        hub_config(checkpoint.hf_config) | {"quantization_config": config.to_dict()},
    )
    write_hub_module(folder, checkpoint.model.model_type)
    checkpoint.write_tokenizer(folder)
    write_index(folder, count)


def _report(
    workspace: Workspace,
    checkpoint: Checkpoint,
    config: QuantConfig,
    calibration: CalibrationConfig,
) -> dict[str, Any]:
    return report_facts(workspace.path, checkpoint, config) | {
        "calibration": {"tokens": calibration.tokens, "ctx": calibration.ctx},
        "distillation": workspace.refined,
        "layers": workspace.records,
    }


def report_facts(folder: Path, checkpoint: Checkpoint, config: QuantConfig) -> dict[str, Any]:
    """What the report of any artifact says: what it is of, its sizes, its files."""
    sizes = artifact_sizes(checkpoint, config)
    files = content_files(folder)
    return {
        "lutllm_version": __version__,
        "source": checkpoint.source,
        "quantization": config.to_dict(),
        "bits_per_weight": sizes["linear_bytes"] * 8 / sizes["linear_weights"],
        "head_bytes": head_bytes(checkpoint, config),
        "artifact_bytes": sum(f.stat().st_size for f in files),
        "peak_rss_bytes": peak_rss_bytes(),
        "artifact_hash": artifact_hash(folder),
        "file_sha256": {f.name: file_digest(f) for f in files},
    }


def artifact_sizes(checkpoint: Checkpoint, config: QuantConfig) -> dict[str, int]:
    """Bytes of the LUT linears (every array counted), and of norms, embedding and head."""
    linear_bytes, weights = 0, 0
    for shape in checkpoint.model.linears():
        setting = config.for_linear(shape.name)
        linear_bytes += stored_bytes(setting, shape.in_features, shape.out_features, shape.has_bias)
        weights += shape.in_features * shape.out_features
    norms = sum(
        2 * int(np.prod(checkpoint.shape(n)))
        for n in checkpoint.names()
        if n.endswith("norm.weight")
    )
    rows = head_bytes(checkpoint, config)
    return {"linear_bytes": linear_bytes, "float_bytes": norms + rows, "linear_weights": weights}


def estimate_peak_rss(
    checkpoint: Checkpoint, config: QuantConfig, calibration: CalibrationConfig
) -> int:
    """Upper estimate of peak resident memory in bytes.

    Libraries, one layer of float weights, the copies of the widest linear, the activations of
    all calibration tokens in a layer, and the second moments of the widest input.
    """
    model, tokens = checkpoint.model, calibration.tokens
    shapes = model.layer_linears(0)
    layer = sum(s.in_features * s.out_features for s in shapes)
    widest = max(s.in_features * s.out_features for s in shapes)
    inputs = max(s.in_features for s in shapes)
    activations = tokens * (2 * model.hidden_size + sum(s.in_features for s in shapes))
    working = tokens * (5 * inputs + 3 * model.intermediate_size)
    floats = layer + 7 * widest + activations + working + 6 * inputs**2
    head = 4 * model.vocab_size * model.hidden_size
    if config.lut_head:  # its codes twice, and the copies of the rows in work
        stages = config.for_linear(model.head_linear().name).weight_stages
        head += model.vocab_size * model.hidden_size * stages
        head += 4 * 7 * min(CHUNK_ROWS, model.vocab_size) * model.hidden_size
    return (700 << 20) + 4 * floats + head


def check_resources(
    checkpoint: Checkpoint,
    config: QuantConfig,
    calibration: CalibrationConfig,
    out: Path,
    mixed: MixedPrecision | None = None,
) -> None:
    """ResourceError when the disk or the memory cannot hold what the run needs.

    mixed: what is to choose the stages of the linears before.
    """
    sizes = artifact_sizes(checkpoint, config)
    linear_bytes = sizes["linear_bytes"]
    need = estimate_peak_rss(checkpoint, config, calibration)
    if mixed is not None:
        linear_bytes = int(mixed.bits * sizes["linear_weights"] / 8)
        measuring = dataclasses.replace(calibration, tokens=mixed.tokens)
        measured = estimate_peak_rss(checkpoint, config, measuring) + mixed.held_bytes()
        need = max(need, measured)
    hidden = 8 * calibration.tokens * checkpoint.model.hidden_size
    check_disk(out, linear_bytes + sizes["float_bytes"] + 2 * hidden, "the artifact")
    check_memory(need, "the run", "close other programs or lower --calib-tokens")


def plan(
    checkpoint: Checkpoint, config: QuantConfig, calibration: CalibrationConfig
) -> dict[str, Any]:
    """What a run would take, without running it."""
    sizes = artifact_sizes(checkpoint, config)
    return {
        "supported": True,
        "model_type": checkpoint.model.model_type,
        "linear_weights": sizes["linear_weights"],
        "bits_per_weight": sizes["linear_bytes"] * 8 / sizes["linear_weights"],
        "estimated_seconds": math.ceil(estimate_seconds(checkpoint, config, calibration)),
        "estimated_peak_rss_bytes": estimate_peak_rss(checkpoint, config, calibration),
        "estimated_artifact_bytes": sizes["linear_bytes"] + sizes["float_bytes"],
    }


def estimate_seconds(
    checkpoint: Checkpoint, config: QuantConfig, calibration: CalibrationConfig
) -> float:
    """Operation count over the speed this machine shows on a short matrix product."""
    tokens, total = calibration.tokens, 0.0
    head = [checkpoint.model.head_linear()] if config.lut_head else []
    for shape in [*checkpoint.model.linears(), *head]:
        d, m = shape.in_features, shape.out_features
        setting = config.for_linear(shape.name)
        dense = 2 * tokens * d * (2 * d + 2 * m) + 2 * d**3 + 14 * m * d * d
        # distances to centroids, or to their sums: nine operations' time each
        found = m * d / setting.vec_len * searches(setting, _DEFAULT_EFFORT)
        if setting.scheme == "co":
            found += 100 * d * min(tokens, 4096) * setting.act_centroids
        total += dense + 9 * found
    return total / _measured_flops()


def _measured_flops() -> float:
    """Floating point operations a second of a 1024 x 1024 matrix product, best of three."""
    a = torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begun)
    return 2 * 1024**3 / best
