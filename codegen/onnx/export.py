"""An artifact, or one linear of it, becomes a folder with an ONNX model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from codegen.onnx.body import DOMAIN, IR_VERSION, OPSET, Body
from codegen.onnx.decoder import DecoderGraph
from codegen.onnx.linear import LinearFunctions, add_taps, block_levels
from codegen.onnx.readme import linear_readme, model_readme
from codegen.onnx.weights import Weights
from lutllm.artifact import TOKENIZER_FILES, Artifact, artifact_hash
from lutllm.errors import ConfigError
from lutllm.lut_linear import LutLinear
from lutllm.model_config import LinearShape
from lutllm.version import __version__

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

Build = Callable[[LinearFunctions, Weights], onnx.GraphProto]


def export(
    artifact_path: str | Path, out_dir: str | Path, *, layer: str | None = None
) -> dict[str, Any]:
    """Write `artifact_path` as ONNX to the folder `out_dir`; the same input gives the same bytes.

    layer  name of a LUT linear: only this one, x f32[T, D] in, y, acc and codes out
    Returns format, opset, files, artifact_hash, nodes and model_bytes.
    """
    artifact, folder = Artifact.open(artifact_path), Path(out_dir)
    digest = artifact_hash(artifact.path)
    folder.mkdir(parents=True, exist_ok=True)
    files = [MODEL_FILE, DATA_FILE]
    if layer is None:
        levels = block_levels(artifact.linear(shape) for shape in artifact.shapes())
        model = write_model(
            folder, lambda f, w: DecoderGraph(artifact, f, w).build(), levels, digest
        )
        files += _copy_tokenizer(artifact.path, folder)
        text = model_readme(artifact, digest)
    else:
        linear = artifact.linear(_shape(artifact, layer))
        model = write_linear(folder, linear, digest)
        text = linear_readme(linear, digest)
    (folder / "README.md").write_text(text, encoding="utf-8")
    files.append("README.md")
    return {
        "format": "onnx",
        "opset": OPSET,
        "files": files,
        "artifact_hash": digest,
        "nodes": len(model.graph.node),
        "model_bytes": sum((folder / name).stat().st_size for name in files[:2]),
    }


def write_linear(folder: Path, linear: LutLinear, digest: str = "") -> onnx.ModelProto:
    """One LUT linear as a model: x f32[T, D] -> y f32[T, M], acc, codes."""
    return write_model(
        folder, lambda f, w: _linear_graph(linear, f, w), block_levels([linear]), digest
    )


def _linear_graph(linear: LutLinear, functions: LinearFunctions, weights: Weights) -> Any:
    g = Body()
    y = functions.call(g, "x", linear, weights)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "linear",
        [value("x", TensorProto.FLOAT, ["T", linear.in_features])],
        [value(y, TensorProto.FLOAT, ["T", linear.out_features])],
        initializer=weights.tensors,
    )
    add_taps(graph)
    return graph


def write_model(folder: Path, build: Build, levels: int, digest: str) -> onnx.ModelProto:
    """Write the graph that `build` makes and its data into `folder`, and check it."""
    functions = LinearFunctions(levels)
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
    shapes = {shape.name: shape for shape in artifact.shapes()}
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
