"""Exported decoders of small random models, shared by the tests of decoders."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from codegen.decoder_golden import DecoderGolden
from codegen.export import export
from codegen.manifest import MANIFEST, file_entry
from fpga.decoder_design import DecoderConfig
from fpga.design import EngineConfig
from lutllm.artifact import Artifact
from lutllm.config import HEAD_LINEAR, LutConfig, QuantConfig
from lutllm.emulator import reference
from tests.make_artifact import tiny_config, write_artifact

ENGINE = EngineConfig(
    channels=4, centroid_ports=2, parameter_ports=2, lanes_per_cycle=32, max_tokens=8
)
PROMPT, TOKENS = 11, 4
ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CODED = LutConfig(group_size=64, act_centroids=16)


def screened(margin: float, head: LutConfig) -> QuantConfig:
    """A LUT linear before the head."""
    return QuantConfig(CODED, {HEAD_LINEAR: head.to_dict()}, head="lut", head_margin=margin)


#: name -> config.json, quantization, type of embedding and head, decoder, lanes per cycle
MODELS: dict[str, tuple[dict[str, Any], QuantConfig, str, DecoderConfig, int]] = {
    "coded": (
        tiny_config("qwen2"),
        QuantConfig(LutConfig(group_size=64)),
        "F16",
        DecoderConfig(vocab_ports=4, kv_ports=4, query_tokens=4),
        32,
    ),
    "online": (
        tiny_config("llama", rope_scaling=ROPE),
        QuantConfig(LutConfig(scheme="weight", group_size=64)),
        "F32",
        DecoderConfig(context=30, vector_lanes=8, vocab_ports=3, kv_ports=7, query_tokens=2),
        32,
    ),
    "mixed": (  # two engines, lanes that are not whole beats, two stages in one layer
        tiny_config("qwen3", num_key_value_heads=1),
        QuantConfig(
            LutConfig(group_size=60),
            overrides={
                "*.1.mlp.down_proj": {"act_stages": 2, "token_scale": True},
                "*.o_proj": {"scheme": "weight"},
            },
        ),
        "BF16",
        DecoderConfig(vector_lanes=2, vocab_ports=1, kv_ports=1, query_tokens=3),
        20,
    ),
    "int8": (  # rotated by runs of a word, and longer ones
        tiny_config("qwen2"),
        QuantConfig(
            LutConfig(group_size=64, token_scale=True),
            overrides={"*.o_proj": {"rotation": 8}, "*.down_proj": {"rotation": 64}},
            head="int8",
        ),
        "",
        DecoderConfig(vocab_ports=16),
        32,
    ),
    "int8 untied": (
        tiny_config("llama", num_key_value_heads=6),
        QuantConfig(LutConfig(scheme="weight", group_size=64), head="int8"),
        "",
        DecoderConfig(vector_lanes=1, vocab_ports=3, kv_ports=2, query_tokens=5),
        32,
    ),
    "screened": (  # a head coded like the layers, on their engine, in three slices
        tiny_config("qwen3"),
        screened(2.0, dataclasses.replace(CODED, token_scale=True, rotation=32)),
        "",
        DecoderConfig(vocab_ports=5, kv_ports=3),
        32,
    ),
    "screened apart": (  # a head of another kind, on an engine of its own, two slices
        tiny_config("llama"),
        screened(
            0.25, LutConfig(scheme="weight", group_size=192, block_positions=4, table_bits=16)
        ),
        "",
        DecoderConfig(vector_lanes=8, vocab_ports=2, kv_ports=32, query_tokens=2),
        32,
    ),
    "all near": (  # every word is computed from its row
        tiny_config("qwen3", vocab_size=640),
        screened(1000.0, CODED),
        "",
        DecoderConfig(vector_lanes=1, vocab_ports=16, kv_ports=1),
        16,
    ),
}


def greedy(artifact: Artifact, prompt: list[int], tokens: int) -> DecoderGolden:
    """The run of the numpy reference."""
    head_logits = reference.head_logits
    ids, rows = list(prompt), []
    for _ in range(tokens):
        inputs: dict[str, np.ndarray] = {}

        def see_head(artifact: Artifact, h: np.ndarray, inputs: Any = inputs) -> np.ndarray:
            if artifact.quant.lut_head:
                inputs[HEAD_LINEAR] = h
            return head_logits(artifact, h)

        with mock.patch.object(reference, "head_logits", see_head):
            rows.append(reference.logits(artifact, np.array(ids), inputs.__setitem__)[-1])
        ids.append(int(rows[-1].argmax()))
    chosen = np.array(ids[len(prompt) :])
    return DecoderGolden(np.array(prompt), chosen, np.stack(rows), inputs)


_FOLDER = tempfile.TemporaryDirectory(prefix="lutllm-decoders-")


@functools.cache
def design_of(name: str) -> tuple[Path, Path]:
    """Design and artifact of one of MODELS, made once for all tests of a process."""
    root = Path(_FOLDER.name)
    out, source = root / name, root / f"{name}-artifact"
    config, quant, kind, decoder, lanes = MODELS[name]
    write_artifact(source, config, quant, kind=kind)
    prompt = np.random.default_rng(1).integers(0, 301, PROMPT).tolist()
    export(
        source,
        out,
        engine=dataclasses.replace(ENGINE, lanes_per_cycle=lanes),
        golden={},
        decoder=decoder,
        decoder_golden=greedy(Artifact.open(source), prompt, TOKENS),
    )
    return out, source


def modify(root: Path, right: str, wrong: str) -> None:
    """Change the one place of the decoder kernel that says `right`."""
    path = root / "hls/decoder.cpp"
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    refresh_manifest(root)


def refresh_manifest(root: Path) -> None:
    """Sizes and digests of files as they are now."""
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["files"] = [file_entry(root, entry["path"]) for entry in manifest["files"]]
    (root / MANIFEST).write_text(json.dumps(manifest))
