"""The artifact: a folder in the Hugging Face convention that holds a quantized model.

docs/FORMAT.md is the specification. An artifact is untrusted input: `Artifact.open` checks the
files and their headers, and every LUT linear is validated before it is handed out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.config import QuantConfig
from lutllm.errors import ArtifactError, CheckpointError, ConfigError
from lutllm.int8_rows import ROW_LIMIT, dequantize_rows
from lutllm.lut_linear import LutLinear, array_specs
from lutllm.model_config import LinearShape, ModelConfig
from lutllm.pages import release_view
from lutllm.tensorfile import TensorFile, bf16_to_f32

INDEX_NAME = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FLOATS = ("F32", "F16", "BF16")
_KINDS: dict[Any, str] = {np.float32: "F32", np.int32: "I32", np.int8: "I8", np.uint8: "U8"}


def read_json(path: Path, error: type[Exception] = ArtifactError) -> dict[str, Any]:
    """A JSON object from `path`, or `error` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: file not found") from None
    except (OSError, ValueError) as cause:
        raise error(f"{path}: not valid JSON ({cause})") from None
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def linear_tensors(linear: LutLinear) -> dict[str, tuple[str, np.ndarray]]:
    """The arrays of a linear under their names in the artifact, with safetensors dtypes."""
    specs = array_specs(linear.config, linear.in_features, linear.out_features)
    return {
        f"{linear.name}.{key}": (_KINDS[specs[key][0]], value)
        for key, value in linear.arrays().items()
    }


def is_artifact(path: Path) -> bool:
    """True for a folder whose config.json says quant_method "lutllm"."""
    config = path / "config.json"
    if not config.is_file():
        return False
    quant = read_json(config).get("quantization_config")
    return isinstance(quant, dict) and quant.get("quant_method") == "lutllm"


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_files(path: Path) -> list[Path]:
    """The files whose bytes define the model: config, tokenizer, tensors. Sorted by name."""
    fixed = [path / name for name in ("config.json", *TOKENIZER_FILES, INDEX_NAME)]
    return sorted([f for f in fixed if f.is_file()] + list(path.glob("*.safetensors")))


def artifact_hash(path: Path) -> str:
    """One sha256 over name and digest of every content file."""
    lines = "".join(f"{file_digest(f)}  {f.name}\n" for f in content_files(path))
    return hashlib.sha256(lines.encode()).hexdigest()


class Artifact:
    """An opened artifact. Tensors are mapped from disk, not copied."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path = path
        self.hf_config = config
        try:
            self.quant = QuantConfig.from_dict(config["quantization_config"])
            self.model = ModelConfig.from_hf(config)
        except (CheckpointError, ConfigError, TypeError, ValueError, AttributeError) as cause:
            raise ArtifactError(f"{path / 'config.json'}: {cause}") from None
        self._files: dict[str, TensorFile] = {}
        self._where = self._read_index()
        self._check_names()

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open the artifact folder `path`; ArtifactError says what is wrong with it."""
        path = Path(path)
        if not path.is_dir():
            raise ArtifactError(f"{path}: no such folder; give the folder `lutllm quantize` wrote")
        config = read_json(path / "config.json")
        if not is_artifact(path):
            raise ArtifactError(
                f"{path}: config.json has no lutllm quantization; quantize it first"
            )
        return cls(path, config)

    def _read_index(self) -> dict[str, str]:
        """Tensor name -> file. A single model.safetensors needs no index."""
        single = self.path / SINGLE_FILE
        if not (self.path / INDEX_NAME).is_file() and single.is_file():
            self._files[SINGLE_FILE] = TensorFile(single, ArtifactError)
            return dict.fromkeys(self._files[SINGLE_FILE].names(), SINGLE_FILE)
        weight_map = read_json(self.path / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ArtifactError(f"{self.path / INDEX_NAME}: weight_map is missing or empty")
        for name, file in weight_map.items():
            if (
                not isinstance(file, str)
                or Path(file).name != file
                or not file.endswith(".safetensors")
            ):
                raise ArtifactError(f"{self.path / INDEX_NAME}: {name!r} points to {file!r}")
        for file in sorted(set(weight_map.values())):
            self._files[file] = TensorFile(self.path / file, ArtifactError)
        return weight_map

    def _check_names(self) -> None:
        wanted = set(self.float_tensors())
        for shape in self.shapes():
            config = self.quant.for_linear(shape.name)
            specs = array_specs(config, shape.in_features, shape.out_features)
            wanted |= {f"{shape.name}.{k}" for k, (_, _, optional) in specs.items() if not optional}
            if shape.has_bias:
                wanted.add(f"{shape.name}.bias")
        missing = sorted(wanted - set(self._where))
        extra = sorted(set(self._where) - wanted)
        if missing or extra:
            what = (
                f"lacks tensor {missing[0]!r}"
                if missing
                else f"holds unexpected tensor {extra[0]!r}"
            )
            raise ArtifactError(f"{self.path}: {what}; the artifact does not match its config.json")

    @property
    def head_name(self) -> str:
        """The tensor whose rows give the logits."""
        return EMBEDDING if self.model.tie_word_embeddings else HEAD

    def _row_tensors(self) -> tuple[str, ...]:
        """Tensors with a row for every word."""
        return (EMBEDDING,) if self.model.tie_word_embeddings else (EMBEDDING, HEAD)

    def shapes(self) -> tuple[LinearShape, ...]:
        """Every LUT linear, that of the head included where there is one."""
        head = (self.model.head_linear(),) if self.quant.lut_head else ()
        return (*self.model.linears(), *head)

    def float_tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors beside the LUT linears: norms, rows of words."""
        model = self.model
        hidden = (model.hidden_size,)
        out: dict[str, tuple[int, ...]] = {"model.norm.weight": hidden}
        for name in self._row_tensors():
            out[name] = (model.vocab_size, model.hidden_size)
            if self.quant.int8_rows:
                out[f"{name}_scale"] = (model.vocab_size,)
        for i in range(model.num_hidden_layers):
            out[f"model.layers.{i}.input_layernorm.weight"] = hidden
            out[f"model.layers.{i}.post_attention_layernorm.weight"] = hidden
            if model.qk_norm:
                out[f"model.layers.{i}.self_attn.q_norm.weight"] = (model.head_dim,)
                out[f"model.layers.{i}.self_attn.k_norm.weight"] = (model.head_dim,)
        return out

    def tensor_bytes(self) -> dict[str, int]:
        """Bytes of every tensor by name."""
        return {name: self._files[file].view(name).nbytes for name, file in self._where.items()}

    def stored(self, name: str) -> tuple[str, np.ndarray]:
        """safetensors dtype and mapped view of one of `float_tensors` (bfloat16 as u16).

        Shape and dtype are checked: rows of embedding and head are I8 where the config says so.
        """
        file = self._files[self._where[name]]
        view = file.view(name)
        shape = self.float_tensors().get(name)
        if shape is None or view.shape != shape:
            raise ArtifactError(
                f"{self.path}: {name} has shape {list(view.shape)}, expected {shape}"
            )
        kind = file.dtype(name)
        coded = self.quant.int8_rows and name in self._row_tensors()
        if kind not in (("I8",) if coded else _FLOATS):
            head = self.quant.head
            wanted = f"I8 is needed, as head is {head!r}" if coded else "a float type is needed"
            raise ArtifactError(f"{self.path}: {name} is {kind}; {wanted}")
        return kind, view

    def row_scales(self, name: str) -> np.ndarray:
        """The scales f32[V] of the int8 rows `name`, checked: finite and not negative."""
        kind, scale = self.stored(f"{name}_scale")
        if kind != "F32":
            raise ArtifactError(f"{self.path}: {name}_scale is {kind}; F32 is needed")
        if not (np.isfinite(scale).all() and (scale >= 0).all()):
            raise ArtifactError(f"{self.path}: {name}_scale holds a value that is not a scale")
        return scale

    def float32(self, name: str) -> np.ndarray:
        """A tensor as float32, shape and finiteness checked; int8 rows times their scales."""
        kind, view = self.stored(name)
        if kind == "I8":
            if view.min(initial=0) < -ROW_LIMIT:
                raise ArtifactError(f"{self.path}: {name} holds -128; rows are -127 to 127")
            return dequantize_rows(view, self.row_scales(name))
        if name.endswith("_scale"):
            return np.array(self.row_scales(name.removesuffix("_scale")))
        values = bf16_to_f32(view) if kind == "BF16" else np.array(view, np.float32)
        if not np.isfinite(values).all():
            raise ArtifactError(f"{self.path}: {name} holds a value that is not finite")
        return values

    def linear(self, shape: LinearShape) -> LutLinear:
        """The validated LUT linear `shape.name`."""
        config = self.quant.for_linear(shape.name)
        specs = array_specs(config, shape.in_features, shape.out_features)
        arrays: dict[str, Any] = {}
        for key, (_, _, optional) in specs.items():
            name = f"{shape.name}.{key}"
            if optional and name not in self._where:
                continue
            file = self._files[self._where[name]]
            arrays[key] = file.view(name)
        arrays.setdefault("act_codebook", None)
        linear = LutLinear(shape.name, config, shape.in_features, shape.out_features, **arrays)
        linear.validate()
        return linear

    def linears(self) -> Iterator[LutLinear]:
        """The LUT linears of the decoder layers, validated, in the order the model runs them.

        Memory stays at about one of them where none is kept: pages of each are given back when the
        next is asked for. Arrays that are kept read theirs again.
        """
        for shape in self.model.linears():
            linear = self.linear(shape)
            yield linear
            for array in linear.arrays().values():
                release_view(array)

    def head_linear(self) -> LutLinear | None:
        """The LUT linear before the rows of the head, validated; None where there is none."""
        return self.linear(self.model.head_linear()) if self.quant.lut_head else None

    def verify(self) -> list[str]:
        """Problems found by a full check: every array, every value, every recorded digest."""
        problems = []
        for name in self.float_tensors():
            problems += _problem(lambda n=name: self.float32(n))
        for shape in self.shapes():
            problems += _problem(lambda s=shape: self.linear(s))
        recorded = {}
        if (self.path / "report.json").is_file():
            recorded = read_json(self.path / "report.json").get("file_sha256", {})
        for file, digest in sorted(recorded.items()):
            target = self.path / Path(file).name
            if not target.is_file():
                problems.append(f"{target}: file not found")
            elif file_digest(target) != digest:
                problems.append(f"{target}: sha256 differs from report.json")
        return problems


def record(path: str | Path, key: str, value: dict[str, Any]) -> None:
    """Append `value` to the list `key` of an artifact's report.json, which is made if absent."""
    file = Path(path) / "report.json"
    report = read_json(file) if file.is_file() else {}
    report.setdefault(key, []).append(value)
    write_json(file, report)


def _problem(check: Any) -> list[str]:
    try:
        check()
    except ArtifactError as cause:
        return [str(cause)]
    return []
