"""What the files of an artifact say, as plain values for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lutllm.artifact import Artifact, artifact_hash, content_files, read_json
from lutllm.config import QuantConfig
from lutllm.errors import ArtifactError
from lutllm.html_report.usage import Usage, centroid_usage
from lutllm.html_report.verdicts import LinearError, linear_errors
from lutllm.model_config import ModelConfig

#: Part of the artifact by the end of a tensor's name, in the order shown.
_PARTS = (
    ("weight codes", (".weight_codes",)),
    ("weight codebooks", (".weight_codebook",)),
    ("activation codebooks", (".act_codebook",)),
    ("shifts, scales, order", ("_shift", "_scale", ".input_perm", ".bias")),
    ("embedding", ("embed_tokens.weight",)),
    ("output head", ("lm_head.weight",)),
    ("norms", ("norm.weight",)),
)
OTHER = "tokenizer and configuration"
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Facts:
    """One artifact. report: its report.json, empty where there is none.

    distillation: steps, and divergence on held-out text behind them.
    """

    name: str
    model: ModelConfig
    quant: QuantConfig
    digest: str
    report: dict[str, Any]
    part_bytes: dict[str, int]
    errors: list[LinearError]
    distillation: list[tuple[int, float]]
    usage: list[Usage]
    estimate: dict[str, Any] | None

    @property
    def total_bytes(self) -> int:
        return sum(self.part_bytes.values())

    @property
    def source(self) -> str | None:
        """What the artifact was made from: a hub id, or the last part of a path."""
        source = self.report.get("source")
        return Path(source).name if source and Path(source).is_absolute() else source

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity after over before, None where either was not measured."""
        before = self.report.get("perplexity_before")
        after = self.report.get("perplexity_after")
        return after / before if before and after else None


def read_facts(
    path: str | Path, estimate: dict[str, Any] | None = None, usage: bool = True
) -> Facts:
    """The facts of the artifact `path`. estimate: of `lutllm.api.estimate`; usage: count codes."""
    artifact = Artifact.open(path)
    report_path = artifact.path / "report.json"
    report = read_json(report_path) if report_path.is_file() else {}
    return Facts(
        artifact.path.resolve().name,
        artifact.model,
        artifact.quant,
        artifact_hash(artifact.path),
        report,
        part_bytes(artifact),
        _read(report_path, report, "layers", linear_errors),
        _read(report_path, report, "distillation", _held_out_curve),
        [centroid_usage(linear) for linear in artifact.linears()] if usage else [],
        estimate,
    )


def _read(
    path: Path, report: dict[str, Any], key: str, parse: Callable[[Any], list[_Item]]
) -> list[_Item]:
    """What `parse` makes of an entry of a report, an empty list where there is none."""
    try:
        return parse(report[key]) if report.get(key) else []
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise ArtifactError(
            f"{path}: {key!r} does not have the form that lutllm quantize writes ({cause!r}); "
            "quantize again or remove the file"
        ) from None


def _held_out_curve(record: dict[str, Any]) -> list[tuple[int, float]]:
    return [(int(step), float(value)) for step, value in record.get("held_out_curve", [])]


def part_bytes(artifact: Artifact) -> dict[str, int]:
    """Bytes of each part of an artifact that has any, tensor headers left out."""
    out = dict.fromkeys((name for name, _ in _PARTS), 0)
    for tensor, size in artifact.tensor_bytes().items():
        out[_part(tensor)] += size
    files = content_files(artifact.path)
    out[OTHER] = sum(f.stat().st_size for f in files if f.suffix != ".safetensors")
    return {name: size for name, size in out.items() if size}


def _part(tensor: str) -> str:
    """A tensor of an unknown kind belongs to its neighbour by name, else to the scales."""
    for name, endings in _PARTS:
        if tensor.endswith(endings):
            return name
    stems = {"embed_tokens": "embedding", "lm_head": "output head"}
    return next((part for stem, part in stems.items() if stem in tensor), _PARTS[3][0])
