"""An artifact becomes a design folder: kernels, memory images, golden vectors, build files."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from codegen.decoder_golden import DecoderGolden, write_decoder_golden
from codegen.decoder_images import decoder_files, plan_decoder, write_decoder_images
from codegen.golden import GoldenSource, golden_input, random_inputs, write_golden
from codegen.head_linear import slice_linear
from codegen.layout import centroid_image, channel_image, parameter_image
from codegen.manifest import (
    MANIFEST,
    DecoderRecord,
    Golden,
    decoder_entry,
    image_files,
    is_design,
    mark_incomplete,
    write_cases,
    write_manifest,
)
from codegen.plan import select_linears
from codegen.render import design_sources
from fpga.decoder_design import DecoderConfig, DecoderDesign
from fpga.design import EngineConfig, EngineDesign
from fpga.device import Device, load_device
from fpga.engine_plan import plan_engines
from fpga.head_slices import is_slice
from lutllm.artifact import Artifact, artifact_hash
from lutllm.errors import ArtifactError, ConfigError, ResourceError
from lutllm.lut_linear import LutLinear
from lutllm.model_config import LinearShape
from lutllm.progress import Progress

#: Folders that an export owns and replaces.
OWNED = ("src", "hls", "sim", "host", "images", "golden", "build")


def export(
    artifact_path: str | Path,
    out_dir: str | Path,
    *,
    device: str = "v80",
    clock_mhz: float = 0.0,
    engine: EngineConfig | None = None,
    golden: GoldenSource | None = None,
    golden_tokens: int = 32,
    layers: int | Iterable[int] | None = None,
    decoder: DecoderConfig | None = None,
    decoder_golden: DecoderGolden | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the design of an artifact to `out_dir`; the same input gives the same bytes.

    clock_mhz      of the kernels; 0 = that of the device
    engine         the engine's configuration; None = the defaults of EngineConfig
    golden         inputs f32[T, D] by linear name (a dict or a function); None = random inputs for
                   the first linear of every kind. Expected results come from intmath.
    golden_tokens  most tokens kept per linear
    layers         the first N decoder layers, or their indices; None = all
    decoder        the decoder kernel's configuration; None = the defaults of DecoderConfig. It is
                   exported with all layers only
    decoder_golden what the model gives for a prompt; None = the decoder has nothing to compare with
    Returns files, device, clock_mhz, artifact_hash, engines, image_bytes and source_lines.
    """
    artifact = Artifact.open(artifact_path)
    shapes = select_linears(artifact, layers)
    engines = plan_engines(artifact.model, artifact.quant, shapes, engine or EngineConfig())
    _check_device(engines, load_device(device))
    whole = len(shapes) >= len(artifact.model.linears())
    if decoder_golden is not None and not whole:
        raise ConfigError("a golden run of the decoder needs all layers; leave `layers` out")
    return write_design(
        Path(out_dir),
        engines,
        _linears(artifact, shapes),
        device=device,
        clock_mhz=clock_mhz,
        model=describe(artifact),
        artifact_hash=artifact_hash(artifact.path),
        golden=golden,
        golden_tokens=golden_tokens,
        decoder=plan_decoder(artifact, engines, decoder or DecoderConfig()) if whole else None,
        artifact=artifact,
        decoder_golden=decoder_golden,
        progress=progress,
    )


def write_design(
    root: Path,
    engines: list[EngineDesign],
    linears: Iterable[LutLinear],
    *,
    device: str,
    clock_mhz: float = 0.0,
    model: str,
    artifact_hash: str,
    golden: GoldenSource | None = None,
    golden_tokens: int = 32,
    decoder: DecoderDesign | None = None,
    artifact: Artifact | None = None,
    decoder_golden: DecoderGolden | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the design of `engines` to `root`. linears: each that an engine names, in any order.

    decoder: the kernel that runs the whole model; its embedding and norms come from `artifact`.
    """
    board = load_device(device).at_clock(clock_mhz)
    _check_device(engines, board)
    sources = design_sources(engines, board, model, artifact_hash, decoder)
    image_bytes = sum(sum(image_files(engine).values()) for engine in engines)
    if decoder:
        image_bytes += sum(decoder_files(decoder).values())
    _prepare_folder(root, image_bytes)
    files = _write_sources(root, sources)
    count = sum(len(engine.slots) for engine in engines)
    records = []
    with _Images(root, engines) as images, Progress(count, "exporting", progress) as bar:
        files += images.paths
        for linear in linears:
            owner = images.write(linear)
            x = _input_of(linear, golden, golden_tokens, owner.slots[linear.name][1] == 0)
            if x is not None:
                files += write_golden(root, linear, x)
                records.append(Golden(linear.name, len(x), owner.name))
            bar.advance(note=linear.name)
    files.append(write_cases(root, records, {e.name: e for e in engines}))
    entry = None
    if decoder:
        assert artifact is not None
        entry = _write_decoder(root, decoder, artifact, decoder_golden, files)
    write_manifest(
        root,
        model=model,
        artifact_hash=artifact_hash,
        device=board,
        engines=engines,
        golden=records,
        files=files,
        decoder=entry,
    )
    readable = [text for path, text in sources.items() if path.startswith("src/")]
    return {
        "files": sorted([*files, MANIFEST]),
        "device": board.name,
        "clock_mhz": board.clock_mhz,
        "artifact_hash": artifact_hash,
        "engines": [engine.name for engine in engines],
        "decoder": decoder is not None,
        "linears": count,
        "image_bytes": image_bytes,
        "source_lines": sum(text.count("\n") for text in readable),
    }


def _linears(artifact: Artifact, shapes: list[LinearShape]) -> Iterator[LutLinear]:
    """The linears of an artifact that `select_linears` names."""
    slices = [shape for shape in shapes if is_slice(shape.name)]
    yield from (artifact.linear(shape) for shape in shapes if not is_slice(shape.name))
    head = artifact.head_linear() if slices else None
    if head is not None:
        for i, shape in enumerate(slices):
            yield slice_linear(head, shape, i * shape.out_features)


def _write_decoder(
    root: Path,
    decoder: DecoderDesign,
    artifact: Artifact,
    golden: DecoderGolden | None,
    files: list[str],
) -> dict[str, Any]:
    """Write images and golden run, add their paths to `files`; returns the manifest's entry."""
    tensors = write_decoder_images(root, decoder, artifact)
    files += decoder_files(decoder)
    record = DecoderRecord(decoder, 0, 0, [])
    if golden is not None:
        files += write_decoder_golden(root, decoder, golden)
        record = DecoderRecord(decoder, len(golden.prompt), len(golden.tokens), [*golden.inputs])
    return decoder_entry(record, tensors)


def _check_device(engines: list[EngineDesign], device: Device) -> None:
    if device.flow == "none":
        raise ConfigError(
            f"device is {device.name}: no build flow of this board is known, it is there for "
            "`lutllm estimate`; export for v80"
        )
    for engine in engines:
        if engine.config.axi_bits > device.port_bits:
            raise ConfigError(
                f"engine {engine.name!r}: axi_bits is {engine.config.axi_bits}; a port of "
                f"{device.name} has {device.port_bits} bits"
            )


def describe(artifact: Artifact) -> str:
    """The model in words that do not depend on where it lies."""
    model = artifact.model
    return f"{model.model_type} ({model.num_hidden_layers} layers, hidden size {model.hidden_size})"


def _input_of(
    linear: LutLinear, golden: GoldenSource | None, tokens: int, first_of_kind: bool
) -> np.ndarray | None:
    if golden is not None:
        return golden_input(golden, linear, tokens)
    return random_inputs(linear.name, tokens, linear.in_features) if first_of_kind else None


def _prepare_folder(root: Path, image_bytes: int) -> None:
    if root.exists() and not root.is_dir():
        raise ArtifactError(f"{root}: is a file; choose another folder")
    if root.is_dir() and any(root.iterdir()):
        if not is_design(root):
            raise ArtifactError(f"{root}: not empty, and not an exported design; choose another")
        for name in OWNED:
            shutil.rmtree(root / name, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    mark_incomplete(root)
    free = shutil.disk_usage(root).free
    if free < image_bytes:
        raise ResourceError(
            f"{root}: the design needs {image_bytes >> 20} MiB, the disk has {free >> 20} MiB "
            "free; export fewer layers or free some space"
        )


def _write_sources(root: Path, sources: dict[str, str]) -> list[str]:
    for path, text in sources.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return list(sources)


class _Images:
    """The memory images of all engines, open for writing linears at their offsets."""

    def __init__(self, root: Path, engines: list[EngineDesign]):
        self._owners = {name: engine for engine in engines for name in engine.slots}
        self._stack = contextlib.ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self.paths: list[str] = []
        for engine in engines:
            for path, size in image_files(engine).items():
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                file = self._stack.enter_context(target.open("wb"))
                file.truncate(size)
                self._files[path] = file
                self.paths.append(path)

    def __enter__(self) -> _Images:
        return self

    def __exit__(self, *cause: object) -> None:
        self._stack.close()

    def write(self, linear: LutLinear) -> EngineDesign:
        """Write one linear to every image of its engine, which is returned."""
        engine = self._owners[linear.name]
        k, slot = engine.slots[linear.name]
        kind = engine.kinds[k]
        for c, image in enumerate(channel_image(linear, engine, kind)):
            at = engine.bases(engine.channel_beats)[k] + slot * engine.channel_beats(kind)
            self._put(f"images/{engine.name}/channel_{c}.bin", at * engine.beat_bytes, image)
        if engine.search:
            for p, image in enumerate(centroid_image(linear, engine, kind)):
                at = engine.bases(engine.centroid_beats)[k] + slot * engine.centroid_beats(kind)
                self._put(f"images/{engine.name}/centroids_{p}.bin", at * engine.beat_bytes, image)
        at = engine.bases(engine.parameter_beats)[k] + slot * engine.parameter_beats(kind)
        for p, image in enumerate(parameter_image(linear, engine, kind)):
            self._put(f"images/{engine.name}/parameters_{p}.bin", at * engine.beat_bytes, image)
        return engine

    def _put(self, path: str, offset: int, image: np.ndarray) -> None:
        self._files[path].seek(offset)
        self._files[path].write(image.tobytes())
