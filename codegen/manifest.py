"""The manifest of an exported design: written last, checked before anything in the folder is used.

A design folder is untrusted input. `read_design` checks every file it lists (plain file inside the
folder, size, sha256) and that images and golden vectors have the sizes their engines ask for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from codegen.decoder_golden import golden_sizes
from codegen.decoder_images import Span, decoder_files, spans
from fpga.decoder_design import DecoderDesign
from fpga.design import EngineDesign
from fpga.device import Device, load_device
from lutllm.artifact import file_digest, read_json, write_json
from lutllm.config import HEAD_LINEAR
from lutllm.errors import ArtifactError, CheckpointError, ConfigError
from lutllm.version import __version__

MANIFEST = "manifest.json"
FORMAT = "lutllm-design"
FORMAT_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Golden:
    """Golden vectors of one linear: tokens and the engine that runs it."""

    name: str
    tokens: int
    engine: str


@dataclass(frozen=True)
class DecoderRecord:
    """The decoder of a design folder.

    prompt, tokens  words of its golden run, 0 without one
    inputs          linears whose inputs the golden run has
    """

    design: DecoderDesign
    prompt: int
    tokens: int
    inputs: list[str]


@dataclass(frozen=True)
class Design:
    """A checked design folder."""

    path: Path
    model: str
    artifact_hash: str
    device: Device
    engines: list[EngineDesign]
    golden: list[Golden]
    files: list[str]
    decoder: DecoderRecord | None = None

    def engine(self, name: str) -> EngineDesign:
        return next(engine for engine in self.engines if engine.name == name)


def write_cases(root: Path, golden: list[Golden], engines: dict[str, EngineDesign]) -> str:
    """golden/cases.txt, the list of golden vectors that the board's host program reads.

    A line is: name engine kind slot inputs outputs in_beats subs tokens.
    """
    lines = []
    for item in golden:
        engine = engines[item.engine]
        k, slot = engine.slots[item.name]
        kind = engine.kinds[k]
        sizes = (kind.in_features, kind.out_features, engine.in_beats(kind), engine.subs(kind))
        numbers = " ".join(str(n) for n in (k, slot, *sizes, item.tokens))
        lines.append(f"{item.name} {item.engine} {numbers}\n")
    path = root / "golden" / "cases.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return "golden/cases.txt"


def engine_entry(engine: EngineDesign) -> dict[str, Any]:
    """An engine and, per linear, where it lies: kind, slot, byte offset and size in each image."""
    parts = (
        ("channel", engine.channel_beats),
        ("centroids", engine.centroid_beats),
        ("parameters", engine.parameter_beats),
    )
    bases = {part: engine.bases(beats) for part, beats in parts}
    linears = {}
    for name, (k, slot) in engine.slots.items():
        kind = engine.kinds[k]
        where: dict[str, Any] = {"kind": k, "slot": slot}
        where["shape"] = [kind.out_features, kind.in_features]
        for part, beats_of in parts:
            size = beats_of(kind)
            start = (bases[part][k] + slot * size) * engine.beat_bytes
            where[part] = {"offset": start, "bytes": size * engine.beat_bytes}
        linears[name] = where
    return {**engine.to_dict(), "linears": linears}


def decoder_entry(record: DecoderRecord, tensors: list[Span]) -> dict[str, Any]:
    """The decoder, where each tensor lies, and its golden run."""
    return {
        **record.design.to_dict(),
        "tensors": {span.tensor: span.to_dict() for span in tensors},
        "golden": {"prompt": record.prompt, "tokens": record.tokens, "inputs": record.inputs},
    }


def file_entry(root: Path, path: str) -> dict[str, Any]:
    target = root / path
    return {"path": path, "bytes": target.stat().st_size, "sha256": file_digest(target)}


def write_manifest(
    root: Path,
    *,
    model: str,
    artifact_hash: str,
    device: Device,
    engines: list[EngineDesign],
    golden: list[Golden],
    files: list[str],
    decoder: dict[str, Any] | None = None,
) -> None:
    """decoder: what `decoder_entry` gives."""
    value = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "lutllm_version": __version__,
        "model": model,
        "artifact_hash": artifact_hash,
        "device": device.name,
        "clock_mhz": device.clock_mhz,
        "engines": [engine_entry(engine) for engine in engines],
        **({"decoder": decoder} if decoder else {}),
        "golden": {g.name: {"tokens": g.tokens, "engine": g.engine} for g in golden},
        "files": [file_entry(root, path) for path in sorted(files)],
    }
    write_json(root / MANIFEST, value)


def mark_incomplete(root: Path) -> None:
    """Leave a manifest that says an export is under way; `write_manifest` replaces it."""
    write_json(root / MANIFEST, {"format": FORMAT, "incomplete": True})


def is_design(path: Path) -> bool:
    """True for a folder whose manifest says it is an exported design."""
    try:
        return read_json(path / MANIFEST).get("format") == FORMAT
    except ArtifactError:
        return False


def read_design(path: str | Path) -> Design:
    """The design in folder `path`; ArtifactError names what is missing, changed or malformed."""
    root = Path(path)
    if not root.is_dir():
        raise ArtifactError(f"{root}: no such folder; give the folder `lutllm export` wrote")
    manifest = root / MANIFEST
    value = read_json(manifest)
    if value.get("incomplete"):
        raise ArtifactError(f"{root}: the export did not finish; run it again")
    if value.get("format") != FORMAT or value.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{manifest}: format {value.get('format')!r} version {value.get('format_version')!r}; "
            f"this lutllm reads {FORMAT!r} version {FORMAT_VERSION}: export again"
        )
    try:
        design = _parse(root, value)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError, CheckpointError) as cause:
        raise ArtifactError(f"{manifest}: malformed ({cause!r}); export again") from None
    _check_files(root, value["files"])
    _check_sizes(design)
    return design


def _parse(root: Path, value: dict[str, Any]) -> Design:
    engines = []
    for entry in value["engines"]:
        engine = EngineDesign.from_dict({k: v for k, v in entry.items() if k != "linears"})
        if engine_entry(engine) != entry:
            raise ValueError(f"engine {engine.name!r}: offsets do not follow from its layers")
        engines.append(engine)
    names = [engine.name for engine in engines]
    texts = [*names, *(name for engine in engines for name in engine.slots)]
    texts += [kind.name for engine in engines for kind in engine.kinds]
    if bad := [text for text in texts if not _NAME.fullmatch(text)]:
        raise ValueError(f"{bad[0]!r} is not a name")
    golden = [
        Golden(name, int(entry["tokens"]), entry["engine"])
        for name, entry in value["golden"].items()
    ]
    for item in golden:
        if item.engine not in names or item.tokens < 1:
            raise ValueError(f"golden {item.name!r} has no engine or no tokens")
        if item.name not in engines[names.index(item.engine)].slots:
            raise ValueError(f"golden {item.name!r} is not a linear of {item.engine}")
    return Design(
        path=root,
        model=str(value["model"]),
        artifact_hash=str(value["artifact_hash"]),
        device=load_device(_device_name(value["device"])).at_clock(value["clock_mhz"]),
        engines=engines,
        golden=golden,
        files=[str(entry["path"]) for entry in value["files"]],
        decoder=_parse_decoder(value["decoder"], engines) if "decoder" in value else None,
    )


def _parse_decoder(entry: dict[str, Any], engines: list[EngineDesign]) -> DecoderRecord:
    kept = {k: v for k, v in entry.items() if k not in ("tensors", "golden")}
    design = DecoderDesign.from_dict(kept, engines)
    places = [
        Span(name, tuple(x["files"]), x["offset"], x["bytes"])
        for name, x in entry["tensors"].items()
    ]
    if places != spans(design):
        raise ValueError("decoder: offsets do not follow from its model")
    golden = entry["golden"]
    names = [str(name) for name in golden["inputs"]]
    known = {shape.name for shape in design.model.linears()}
    known |= {HEAD_LINEAR} if design.screened else set()
    if unknown := set(names) - known:
        raise ValueError(f"golden input {min(unknown)!r} is not a linear of the model")
    prompt, tokens = int(golden["prompt"]), int(golden["tokens"])
    if min(prompt, tokens) < 0 or (prompt == 0) != (tokens == 0):
        raise ValueError(f"golden run of {prompt} and {tokens} words")
    return DecoderRecord(design, prompt, tokens, names)


def _device_name(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"{name!r} is not a device")
    return name


def _check_files(root: Path, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        name = PurePosixPath(entry["path"])
        if name.is_absolute() or ".." in name.parts:
            raise ArtifactError(f"{root / MANIFEST}: path {entry['path']!r} leaves the folder")
        target = root / name
        if target.is_symlink() or not target.is_file():
            raise ArtifactError(f"{target}: file not found; export again")
        if not target.resolve().is_relative_to(root.resolve()):
            raise ArtifactError(f"{target}: leads out of the folder; export again")
        size = target.stat().st_size
        if size != entry["bytes"]:
            raise ArtifactError(
                f"{target}: {size} bytes, the manifest says {entry['bytes']}; export again"
            )
        if file_digest(target) != entry["sha256"]:
            raise ArtifactError(f"{target}: sha256 differs from the manifest; export again")


def image_files(engine: EngineDesign) -> dict[str, int]:
    """path -> bytes of every memory image of an engine."""
    beats = engine.image_beats()
    folder = f"images/{engine.name}"
    out = {f"{folder}/channel_{c}.bin": beats["channel"] for c in range(engine.config.channels)}
    out |= {f"{folder}/centroids_{p}.bin": beats["centroids"] for p in range(engine.centroid_ports)}
    ports = range(engine.config.parameter_ports)
    out |= {f"{folder}/parameters_{p}.bin": beats["parameters"] for p in ports}
    return {path: count * engine.beat_bytes for path, count in out.items()}


def golden_files(golden: Golden, engine: EngineDesign) -> dict[str, int]:
    """path -> bytes of the golden vectors of one linear."""
    kind = engine.kinds[engine.slots[golden.name][0]]
    folder = f"golden/{golden.name}"
    tokens = golden.tokens
    out = {
        f"{folder}/x.bin": 4 * tokens * kind.in_features,
        f"{folder}/acc.bin": 4 * tokens * kind.out_features,
        f"{folder}/y.bin": 4 * tokens * kind.out_features,
    }
    if engine.search:
        positions = engine.lut.num_positions(kind.in_features)
        out[f"{folder}/codes.bin"] = tokens * kind.act_stages * positions
    return out


def _check_sizes(design: Design) -> None:
    wanted: dict[str, int] = {}
    for engine in design.engines:
        wanted |= image_files(engine)
    for golden in design.golden:
        wanted |= golden_files(golden, design.engine(golden.engine))
    if record := design.decoder:
        wanted |= decoder_files(record.design)
        if record.tokens:
            model = record.design.model
            wanted |= golden_sizes(model, record.prompt, record.tokens, record.inputs)
    for path, size in wanted.items():
        if path not in design.files:
            raise ArtifactError(f"{design.path / path}: not in the manifest; export again")
        found = (design.path / path).stat().st_size
        if found != size:
            raise ArtifactError(
                f"{design.path / path}: {found} bytes, its engine needs {size}; export again"
            )
