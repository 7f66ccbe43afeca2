"""An artifact, or one linear of it, becomes a folder with an ONNX model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from codegen.onnx.body import DOMAIN, IR_VERSION, OPSET, Body
from codegen.onnx.decoder import DecoderGraph, tap_values
from codegen.onnx.linear import LinearFunctions, block_levels
from codegen.onnx.readme import readme
from codegen.onnx.weights import Weights
from lutllm.artifact import TOKENIZER_FILES, Artifact, artifact_hash
from lutllm.errors import ConfigError
from lutllm.model_config import LinearShape
from lutllm.version import __version__

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

Build = Callable[[LinearFunctions, Weights], onnx.GraphProto]


def export(
    artifact_path: str | Path,
    out_dir: str | Path,
    *,
    layer: str | None = None,
    taps: bool = False,
) -> dict[str, Any]:
    """Write `artifact_path` as ONNX to the folder `out_dir`; the same input gives the same bytes.

    layer  name of a LUT linear: only this one, x f32[T, D] in, y, acc and codes out
    taps   let the whole model also output acc and codes of every linear
    Returns files, format, opset, artifact_hash, nodes and model_bytes.
    """
    artifact, folder = Artifact.open(artifact_path), Path(out_dir)
    digest = artifact_hash(artifact.path)
    shapes = artifact.model.linears() if layer is None else (_shape(artifact, layer),)

    def build(functions: LinearFunctions, weights: Weights) -> onnx.GraphProto:
        if layer is None:
            return DecoderGraph(artifact, functions, weights, taps).build()
        return linear_graph(artifact, shapes[0], functions, weights)

    folder.mkdir(parents=True, exist_ok=True)
    model = _write_model(folder, artifact, shapes, build, digest)
    files = [MODEL_FILE, DATA_FILE]
    if layer is None:
        files += _copy_tokenizer(artifact.path, folder)
    (folder / "README.md").write_text(readme(artifact, digest, layer), encoding="utf-8")
    files.append("README.md")
    return {
        "format": "onnx",
        "opset": OPSET,
        "files": files,
        "artifact_hash": digest,
        "nodes": len(model.graph.node),
        "model_bytes": sum((folder / name).stat().st_size for name in files[:2]),
    }


def linear_graph(
    artifact: Artifact, shape: LinearShape, functions: LinearFunctions, weights: Weights
) -> onnx.GraphProto:
    """One LUT linear: x f32[T, D] -> y f32[T, M], acc, codes."""
    g = Body()
    linear = artifact.linear(shape)
    y = functions.call(g, "x", linear, weights, taps=True)[0]
    value = helper.make_tensor_value_info
    outputs = [value(y, TensorProto.FLOAT, ["T", shape.out_features])]
    return helper.make_graph(
        g.nodes,
        "linear",
        [value("x", TensorProto.FLOAT, ["T", shape.in_features])],
        outputs + tap_values(linear.name, linear.config.scheme),
        initializer=weights.tensors,
    )


def _write_model(
    folder: Path, artifact: Artifact, shapes: tuple[LinearShape, ...], build: Build, digest: str
) -> onnx.ModelProto:
    functions = LinearFunctions(block_levels(artifact, shapes))
    with Weights(folder / DATA_FILE) as weights:
        graph = build(functions, weights)
    model = helper.make_model(
        graph,
        functions=functions.protos,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=IR_VERSION,
        producer_name="lutllm",
        producer_version=__version__,
    )
    helper.set_model_props(model, {"artifact_hash": digest})
    onnx.save_model(model, folder / MODEL_FILE)
    onnx.checker.check_model(str(folder / MODEL_FILE))
    return model


def _shape(artifact: Artifact, name: str) -> LinearShape:
    shapes = {shape.name: shape for shape in artifact.model.linears()}
    if name not in shapes:
        raise ConfigError(
            f"{artifact.path}: no linear {name!r}; the first layer has "
            f"{', '.join(s.name for s in artifact.model.layer_linears(0))}"
        )
    return shapes[name]


def _copy_tokenizer(source: Path, folder: Path) -> list[str]:
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return names
