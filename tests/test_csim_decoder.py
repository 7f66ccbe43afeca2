"""The whole decoder in C simulation: tokens of the numpy reference, and damage that shows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import numpy as np
import pytest

import lutllm
from codegen.csim import compile_testbench, trusted_sources
from codegen.csim_decoder import TOLERANCE, golden_of, run_decoder, run_program
from codegen.decoder_compare import (
    compare,
    compare_replay,
    relative_errors,
    token_difference,
)
from codegen.decoder_golden import DecoderGolden
from codegen.decoder_images import plan_decoder
from codegen.explain import explain
from codegen.export import export
from codegen.lint import lint_kernel
from codegen.manifest import MANIFEST, file_entry, read_design
from codegen.plan import select_linears
from codegen.render import decoder_connections
from fpga.decoder_design import DecoderConfig, DecoderDesign
from fpga.design import EngineConfig
from fpga.device import load_device
from fpga.engine_plan import plan_engines
from lutllm import intmath
from lutllm.artifact import EMBEDDING, HEAD, Artifact
from lutllm.config import HEAD_LINEAR, LutConfig, QuantConfig
from lutllm.emulator import reference
from lutllm.errors import ArtifactError, ConfigError
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
                "*.1.mlp.down_proj": {"act_stages": 2},
                "*.o_proj": {"scheme": "weight"},
            },
        ),
        "BF16",
        DecoderConfig(vector_lanes=2, vocab_ports=1, kv_ports=1, query_tokens=3),
        20,
    ),
    "int8": (
        tiny_config("qwen2"),
        QuantConfig(LutConfig(group_size=64), head="int8"),
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
        screened(0.25, CODED),
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


@pytest.fixture(scope="module")
def designs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Design and artifact of one of MODELS."""
    root = tmp_path_factory.mktemp("decoder")

    def get(name: str) -> tuple[Path, Path]:
        out, source = root / name, root / f"{name}-artifact"
        if not out.exists():
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

    return get


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_the_reference(
    designs: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    root, source = designs(name)
    found = lutllm.csim(root, decoder=True, artifact=source)
    assert found["first_divergence"] is None
    assert found["tokens_compared"] == TOKENS
    replay = found["replay"]  # on the kernel's inputs: no flip explains anything
    assert replay["first_divergence"] is None
    assert replay["tokens_equal"] + len(replay["ties"]) == TOKENS
    assert replay["max_input_error"] < 1e-5
    if found["flips"] == 0:  # a value at the border of two integers may depend on the machine
        assert found["tokens_equal"] == TOKENS
        assert found["max_logit_error"] < 1e-5
        assert found["max_input_error"] < 1e-5


def results(root: Path, out: Path) -> dict[str, bytes]:
    """Everything that a run of the golden prompt writes, by file."""
    design = read_design(root)
    program = compile_testbench(trusted_sources(design, False), "sim/decoder_testbench.cpp")
    out.mkdir()
    run_program(program, design, golden_of(design), out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_flip_hides_nothing_on_the_kernels_inputs(
    designs: Callable[[str], tuple[Path, Path]],
) -> None:
    """A change after a flip is explained beside another run, and found beside a replayed one."""
    design = read_design(designs("coded")[0])
    golden = golden_of(design)
    inputs = {name: values.copy() for name, values in golden.inputs.items()}
    first, *_, last = inputs
    inputs[first][2] *= np.float32(1 + 1e-5)
    inputs[last][5] *= np.float32(1.01)
    found = dataclasses.replace(golden, inputs=inputs)
    fine = mock.patch(  # roundings so fine that the first change flips some
        "codegen.decoder_compare._rounded", lambda design, name, x: np.rint(x * 1e6)
    )
    with fine:
        beside = compare(design, golden, found, TOLERANCE)
        replayed = compare_replay(design, golden, found, TOLERANCE)
    assert beside["first_flip"]["position"] == 2
    assert beside["first_divergence"] is None
    assert replayed["first_divergence"] is not None
    assert replayed["first_divergence"]["step"] == f"input of {last}"
    assert replayed["first_divergence"]["position"] == 5


def test_artifact_must_be_that_of_the_design(
    designs: Callable[[str], tuple[Path, Path]],
) -> None:
    with pytest.raises(ConfigError, match=r"not the artifact that .* was exported from"):
        lutllm.csim(designs("coded")[0], decoder=True, artifact=designs("online")[1])
    with pytest.raises(ConfigError, match="set decoder as well"):
        lutllm.csim(designs("coded")[0], artifact=designs("coded")[1])


def choice(logits: list[float], token: int) -> DecoderGolden:
    """A run that chose one token from these logits."""
    return DecoderGolden(np.array([0]), np.array([token]), np.array([logits], np.float32), {})


@pytest.mark.parametrize(
    ("own", "token", "flipped", "verdict"),
    [
        ([1.00001, 1.00003, -8.0], 1, False, "tie"),
        ([1.00001, 1.00003, -8.0], 1, True, "tie"),
        ([0.5, 1.0, -8.0], 1, True, "after a flip"),
        ([0.5, 1.0, -8.0], 1, False, "mismatch"),
        ([1.00002, 1.00001, -8.0], 1, True, "mismatch"),  # not the largest of its own
        ([1.00003, 1.00001, -8.0], 2, True, "mismatch"),
        ([1.0, 1.0, -8.0], 1, True, "mismatch"),  # the lowest of equals is right
        ([np.nan, 1.0, -8.0], 1, False, "mismatch"),
    ],
)
def test_other_token_is_a_tie_or_follows_a_flip_or_is_wrong(
    own: list[float], token: int, flipped: bool, verdict: str
) -> None:
    wanted = choice([1.00002, 1.00001, -8.0], 0)
    found = token_difference(wanted, choice(own, token), 0, TOLERANCE, flipped)
    assert found is not None
    assert (found["expected"], found["found"], found["verdict"]) == (0, token, verdict)
    assert token_difference(wanted, wanted, 0, TOLERANCE, flipped) is None


def test_word_that_is_not_the_largest_is_found(copy: Path) -> None:
    """Whatever flipped before: the kernel's choice is held against its own logits."""
    modify(
        copy,
        "if (i == 0 || largest.logit > best.logit) best = largest;",
        "if (i == 0 || largest.logit < best.logit) best = largest;",
    )
    found = run_decoder(copy, allow_modified=True)
    assert found["token_difference"]["verdict"] == "mismatch"
    assert found["first_divergence"]["step"] == "token"
    assert found["max_logit_error"] < TOLERANCE


@pytest.mark.parametrize("name", ["mixed", "int8", "screened"])
def test_width_of_words_changes_no_bit(
    designs: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    """Norms, the inputs of every linear and the logits are the same for words of any width."""
    root, source = designs(name)
    wanted = results(root, tmp_path / "wanted")
    *_, decoder, lanes = MODELS[name]
    for width in {1, 8} - {decoder.vector_lanes}:
        out = tmp_path / f"design-{width}"
        export(
            source,
            out,
            engine=dataclasses.replace(ENGINE, lanes_per_cycle=lanes),
            golden={},
            decoder=dataclasses.replace(decoder, vector_lanes=width),
            decoder_golden=golden_of(read_design(root)),
        )
        assert results(out, tmp_path / f"found-{width}") == wanted


@pytest.mark.parametrize(("name", "words"), [("mixed", 4), ("mixed", 300), ("online", 300)])
def test_reading_ahead_changes_no_bit(
    designs: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str, words: int
) -> None:
    """Engines that hold no index before its row, and some that hold those of several calls."""
    root, source = designs(name)
    *_, decoder, lanes = MODELS[name]
    export(
        source,
        tmp_path / "design",
        engine=dataclasses.replace(ENGINE, lanes_per_cycle=lanes, index_fifo=words),
        golden={},
        decoder=decoder,
        decoder_golden=golden_of(read_design(root)),
    )
    assert results(tmp_path / "design", tmp_path / "found") == results(root, tmp_path / "wanted")


def test_more_ahead_than_a_channel_holds_is_a_deadlock(copy: Path) -> None:
    path = copy / "hls/decoder.cpp"
    text = path.read_text()
    for right, wrong in (
        ("hls::stream<index_t, C::INDEX_FIFO> indices", "hls::stream<index_t, 4> indices"),
        ("E::INDEX_FIFO / call.subs;", "E::INDEX_FIFO / call.subs + 9;"),
    ):
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    path.write_text(text)
    refresh_manifest(copy)
    with pytest.raises(ArtifactError, match=r"DEADLOCK(.|\n)*bursts waits for write of .*index"):
        run_decoder(copy, allow_modified=True)


def test_fewer_tokens_and_other_prompts(designs: Callable[[str], tuple[Path, Path]]) -> None:
    root, source = designs("coded")
    assert run_decoder(root, new_tokens=2)["tokens_compared"] == 2
    found = run_decoder(root, golden=greedy(Artifact.open(source), [300, 0, 7], 1))
    assert (found["tokens_equal"], found["first_divergence"]) == (1, None)
    with pytest.raises(ConfigError, match="new_tokens is 0"):
        run_decoder(root, new_tokens=0)


def test_context_is_a_limit(designs: Callable[[str], tuple[Path, Path]]) -> None:
    root, source = designs("online")
    artifact = Artifact.open(source)
    words = [int(w) for w in np.random.default_rng(2).integers(0, 301, 31)]
    full = run_decoder(root, golden=greedy(artifact, words[:30], 1))
    assert full["first_divergence"] is None
    with pytest.raises(ArtifactError, match="does not fit into the context of the decoder"):
        run_decoder(root, golden=greedy(artifact, words, 1))


def damage(root: Path, image: str, offset: int, mask: int) -> None:
    """Flip bits of one byte, and make the manifest agree."""
    path = root / "images" / image
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256 differs"):
        run_decoder(root)
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["files"] = [file_entry(root, entry["path"]) for entry in manifest["files"]]
    (root / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def copy(designs: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> Path:
    root = tmp_path / "design"
    shutil.copytree(designs("coded")[0], root)
    return root


def tensor_offset(root: Path, name: str) -> int:
    return int(json.loads((root / MANIFEST).read_text())["decoder"]["tensors"][name]["offset"])


@pytest.mark.parametrize(
    ("tensor", "place", "step"),
    [
        ("model.layers.1.input_layernorm.weight", (0, 0), "layers.1.self_attn.qkv_proj"),
        ("model.layers.0.post_attention_layernorm.weight", (0, 0), "layers.0.mlp.gate_up_proj"),
        ("model.norm.weight", (0, PROMPT - 1), "logits"),
        # An angle of position 0; with nothing but itself to look at, its own result stays.
        ("rotary", (32, 1), "layers.0.self_attn.o_proj"),
    ],
)
def test_changed_constant_is_found_where_it_acts(
    copy: Path, tensor: str, place: tuple[int, int], step: str
) -> None:
    """The exponent of one float. A norm acts from position 0 on; the final one with the logits."""
    skip, position = place
    damage(copy, "decoder/constants.bin", tensor_offset(copy, tensor) + skip + 3, 0x02)
    first = run_decoder(copy)["first_divergence"]
    assert first["step"].endswith(step)
    assert first["position"] == position


def test_changed_table_entry_is_found(
    copy: Path, designs: Callable[[str], tuple[Path, Path]]
) -> None:
    """The entry of layer 1's qkv_proj that output 0 takes at position 5 for the first word."""
    artifact = Artifact.open(designs("coded")[1])
    linear = artifact.linear(artifact.model.layer_linears(1)[0])
    x = np.fromfile(copy / f"golden/decoder/{linear.name}.bin", "<f4").reshape(-1, 72)
    x_int, _ = intmath.quantize_activation(x, linear)
    assert linear.act_codebook is not None
    code = int(intmath.search(x_int, linear.act_codebook, "l2").reshape(len(x), -1)[0, 5])
    engine = read_design(copy).engines[0]
    k, slot = engine.slots[linear.name]
    kind = engine.kinds[k]
    this_round, channel = (int(i) for i in np.argwhere(engine.position_map(kind) == 5)[0])
    beats = engine.bases(engine.channel_beats)[k] + slot * engine.channel_beats(kind)
    beats += this_round * engine.record_beats(kind) + engine.index_beats(kind)
    beats += code * engine.row_beats(kind)
    entry = int(linear.unpack_weight_codes()[0, 5, 0])
    damage(copy, f"lut_linear/channel_{channel}.bin", beats * engine.beat_bytes + entry, 0x80)
    first = run_decoder(copy)["first_divergence"]
    assert first["step"].endswith("layers.1.self_attn.o_proj")
    assert first["relative_error"] > 1e-4


@pytest.fixture
def screened_copy(designs: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> Path:
    root = tmp_path / "screened"
    shutil.copytree(designs("screened")[0], root)
    return root


def near_words(artifact: Artifact, x: np.ndarray) -> np.ndarray:
    """bool[T, V]: words whose row is read for normed vectors f32[T, H]."""
    linear = artifact.head_linear()
    assert linear is not None
    coarse = intmath.lut_linear(x, linear)
    return coarse >= coarse.max(axis=1, keepdims=True) - np.float32(artifact.quant.head_margin)


def test_screened_heads_read_some_rows(designs: Callable[[str], tuple[Path, Path]]) -> None:
    """Of the tokens chosen: one row at least, not all, more than one for some."""
    for name, least in (("screened", 1), ("screened apart", 1), ("all near", 640)):
        root, source = designs(name)
        x = np.fromfile(root / "golden/decoder/lm_head.bin", "<f4").reshape(-1, 72)
        near = near_words(Artifact.open(source), x[PROMPT - 1 :]).sum(axis=1)
        assert near.min() >= least
        assert (near.max() < 301) == (least == 1)
        assert near.max() > 1


def test_changed_index_of_the_head_is_found(
    screened_copy: Path, designs: Callable[[str], tuple[Path, Path]]
) -> None:
    """Of position 5 and a word of the last slice whose logit stays the coarse one."""
    artifact = Artifact.open(designs("screened")[1])
    x = np.fromfile(screened_copy / "golden/decoder/lm_head.bin", "<f4").reshape(-1, 72)
    words = np.flatnonzero(~near_words(artifact, x[PROMPT - 1 :]).any(axis=0))
    word = int(words[-1])
    engine = read_design(screened_copy).engines[0]
    k, slot = engine.slots["lm_head.2"]
    kind = engine.kinds[k]
    assert 2 * kind.out_features <= word < 301
    this_round, channel = (int(i) for i in np.argwhere(engine.position_map(kind) == 5)[0])
    beats = engine.bases(engine.channel_beats)[k] + slot * engine.channel_beats(kind)
    beats += this_round * engine.record_beats(kind)
    within = word - 2 * kind.out_features
    at = beats * engine.beat_bytes + within // 32 * engine.index_packing.slot_bytes
    damage(screened_copy, f"lut_linear/channel_{channel}.bin", at + within % 32 // 2, 0x77)
    first = run_decoder(screened_copy)["first_divergence"]
    assert (first["position"], first["step"]) == (PROMPT - 1, "logits")


def modify(root: Path, right: str, wrong: str) -> None:
    """Change the one place of the decoder kernel that says `right`."""
    path = root / "hls/decoder.cpp"
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    refresh_manifest(root)


def test_another_margin_is_found(screened_copy: Path) -> None:
    modify(screened_copy, "HEAD_MARGIN = 0.25f", "HEAD_MARGIN = 0.0f")
    first = run_decoder(screened_copy, allow_modified=True)["first_divergence"]
    assert (first["position"], first["step"]) == (PROMPT - 1, "logits")


def test_words_asked_of_another_port_are_a_deadlock(screened_copy: Path) -> None:
    modify(screened_copy, "if (pick.word % D::VOCAB_PORTS == p) rows", "if (p == 0) rows")
    with pytest.raises(ArtifactError, match=r"DEADLOCK(.|\n)*settle waits for read of scores"):
        run_decoder(screened_copy, allow_modified=True)


def test_changed_embedding_is_found(copy: Path) -> None:
    word = int(np.fromfile(copy / "golden/decoder/prompt.bin", "<i4")[3])
    design = read_design(copy).decoder
    assert design is not None
    ports = design.design.config.vocab_ports
    row = word // ports * design.design.row_beats("F16") * design.design.beat_bytes
    damage(copy, f"decoder/vocab_{word % ports}.bin", row + 1, 0x40)
    first = run_decoder(copy)["first_divergence"]
    assert (first["position"], first["step"]) == (
        3,
        "input of model.layers.0.self_attn.qkv_proj",
    )


def swap_values(root: Path) -> None:
    """Values of ports 0 and 1 change places on their way to attention; keys do not."""
    path = root / "hls/decoder.cpp"
    text = path.read_text()
    for port in (0, 1):
        wire = f"values[{port}], run, {port},"
        assert text.count(wire) == 1
        text = text.replace(wire, f"values[{1 - port}], run, {port},")
    path.write_text(text)
    refresh_manifest(root)


def refresh_manifest(root: Path) -> None:
    """Sizes and digests of files as they are now."""
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["files"] = [file_entry(root, entry["path"]) for entry in manifest["files"]]
    (root / MANIFEST).write_text(json.dumps(manifest))


def test_shifted_cache_ports_are_found(
    copy: Path, designs: Callable[[str], tuple[Path, Path]]
) -> None:
    artifact = Artifact.open(designs("coded")[1])
    swap_values(copy)
    with pytest.raises(ArtifactError, match=r"hls/decoder\.cpp: differs from what"):
        run_decoder(copy)
    full = greedy(artifact, [5, 3, 8, 1], 1)  # as many values behind every port
    first = run_decoder(copy, golden=full, allow_modified=True)["first_divergence"]
    assert (first["position"], first["step"]) == (0, "input of model.layers.0.self_attn.o_proj")
    ragged = greedy(artifact, [5, 3, 8, 1, 9], 1)
    with pytest.raises(ArtifactError, match="DEADLOCK"):
        run_decoder(copy, golden=ragged, allow_modified=True)


def test_manifest_says_where_tensors_lie(designs: Callable[[str], tuple[Path, Path]]) -> None:
    root, source = designs("online")
    entry = json.loads((root / MANIFEST).read_text())["decoder"]
    artifact = Artifact.open(source)
    assert set(entry["tensors"]) == {*artifact.float_tensors(), "rotary"}
    covered: dict[str, list[tuple[int, int]]] = {}
    for name, place in entry["tensors"].items():
        digest = hashlib.sha256()
        for path in place["files"]:
            start, end = place["offset"], place["offset"] + place["bytes"]
            digest.update((root / path).read_bytes()[start:end])
            covered.setdefault(path, []).append((start, end))
        assert digest.hexdigest() == place["sha256"], name
    for path, parts in covered.items():
        ends = [0, *(end for _, end in sorted(parts))]
        assert [start for start, _ in sorted(parts)] == ends[:-1]
        assert ends[-1] == (root / path).stat().st_size
    rows = np.frombuffer((root / "images/decoder/vocab_2.bin").read_bytes(), "<f4")
    head = artifact.float32("lm_head.weight")
    np.testing.assert_array_equal(rows[:72], head[2])
    np.testing.assert_array_equal(rows[72:144], head[5])


def test_int8_rows_carry_their_scales(designs: Callable[[str], tuple[Path, Path]]) -> None:
    root, source = designs("int8 untied")
    entry = json.loads((root / MANIFEST).read_text())["decoder"]
    artifact = Artifact.open(source)
    for name in (EMBEDDING, HEAD):
        place = entry["tensors"][name]
        raw = np.fromfile(root / "images/decoder/vocab_1.bin", np.int8)
        rows = raw[place["offset"] : place["offset"] + place["bytes"]].reshape(-1, 96)
        words = np.arange(1, 301, 3)  # behind port 1 of 3
        np.testing.assert_array_equal(rows[: len(words), :72], artifact.stored(name)[1][words])
        assert not rows[:, 72:92].any()
        scales = np.ascontiguousarray(rows[: len(words), 92:]).view("<f4")[:, 0]
        np.testing.assert_array_equal(scales, artifact.row_scales(name)[words])


def test_second_export_has_the_same_bytes(
    designs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    root, source = designs("coded")
    record = read_design(root).decoder
    assert record is not None
    prompt = np.fromfile(root / "golden/decoder/prompt.bin", "<i4").tolist()
    config, golden = record.design.config, greedy(Artifact.open(source), prompt, TOKENS)
    for _ in range(2):
        export(
            source, tmp_path / "d", engine=ENGINE, golden={}, decoder=config, decoder_golden=golden
        )
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            assert (tmp_path / "d" / path.relative_to(root)).read_bytes() == path.read_bytes()


def planned(source: Path, config: DecoderConfig, engine: EngineConfig = ENGINE) -> DecoderDesign:
    artifact = Artifact.open(source)
    engines = plan_engines(artifact.model, artifact.quant, select_linears(artifact, None), engine)
    return plan_decoder(artifact, engines, config)


def test_refusals(designs: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    source = designs("coded")[1]
    with pytest.raises(ConfigError, match="context is 701; the model has 700 positions"):
        planned(source, DecoderConfig(context=701))
    with pytest.raises(ConfigError, match="vocab_ports is 0"):
        DecoderConfig(vocab_ports=0)
    with pytest.raises(ConfigError, match="vector_lanes is 3; choose 1, 2, 4 or 8"):
        DecoderConfig(vector_lanes=3)
    with pytest.raises(ConfigError, match="kv_ports is 33; it must be a whole number 1 to 32"):
        DecoderConfig(kv_ports=33)
    with pytest.raises(
        ConfigError, match=r"head_dim 24 is not a multiple .* lower axi_bits to 256"
    ):
        planned(source, DecoderConfig(), dataclasses.replace(ENGINE, axi_bits=512))
    small = dataclasses.replace(load_device("v80"), region_bytes=200_000)
    online = planned(designs("online")[1], DecoderConfig(context=700, kv_ports=1))
    with pytest.raises(ConfigError, match=r"decoder\.key_cache_0 .* exceed the region of 200000"):
        decoder_connections(online, small)
    spread = planned(designs("online")[1], DecoderConfig(context=700, kv_ports=2))
    assert decoder_connections(spread, small)
    export(source, tmp_path / "part", engine=ENGINE, layers=1)
    with pytest.raises(ConfigError, match="has no decoder; export all layers"):
        run_decoder(tmp_path / "part")


def test_ports_are_balanced_and_exist(designs: Callable[[str], tuple[Path, Path]]) -> None:
    for name in MODELS:
        root = designs(name)[0]
        record = read_design(root).decoder
        assert record is not None
        found = decoder_connections(record.design, load_device("v80"))
        # as many places as there are ports, one use each before any has two
        assert len({c.port for c in found}) == min(len(found), load_device("v80").memory_ports)
        text = (root / "src/decoder.cpp").read_text()
        for connection in found:
            assert f"port={connection.argument} offset=slave" in text
            assert (
                f"sp=decoder_0.m_axi_{connection.argument}:{connection.port}"
                in (root / "decoder_system.cfg").read_text()
            )
        sizes = {(root / f).stat().st_size for f in record_files(root) if "vocab" in f}
        assert len(sizes) == 1


def record_files(root: Path) -> list[str]:
    manifest = json.loads((root / MANIFEST).read_text())
    return [entry["path"] for entry in manifest["files"]]


def test_explanation_names_diagrams_and_ports(
    designs: Callable[[str], tuple[Path, Path]],
) -> None:
    root = designs("mixed")[0]
    lines = explain(root)
    assert lines[0] == f"block diagram of decoder: {root / 'decoder.svg'}"
    text = "\n".join(lines)
    sizes = {path.name: path.stat().st_size for path in (root / "images/decoder").iterdir()}
    assert f"vocab_0 {sizes['vocab_0.bin']:,}" in text
    assert text.count("memory of ") == 2


@pytest.mark.parametrize("name", ["mixed", "screened"])
def test_block_diagram_shows_the_schedule(
    designs: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    root = ElementTree.fromstring((designs(name)[0] / "decoder.svg").read_text())
    texts = [node.text for node in root.iter() if node.tag.endswith("text")]
    steps = ["embed", "qkv_proj", "rotary, attention", "o_proj", "gate_up_proj", "down_proj"]
    steps += ["lm_head"] * (name == "screened") + ["head", "arg-max"]
    assert [text for text in texts if text in steps] == steps
    assert name != "mixed" or "lut_linear_1" in texts  # what o_proj runs on


def test_no_lint_problems(designs: Callable[[str], tuple[Path, Path]]) -> None:
    for name in MODELS:
        root = designs(name)[0]
        for path in ("src/decoder.cpp", "src/decoder_config.h", "hls/decoder.cpp"):
            assert lint_kernel(path, (root / path).read_text()) == []
        lines = (root / "src/decoder.cpp").read_text().split("\n")
        assert [s for s in lines if len(s) > 110 and "#pragma" not in s] == []


#: Where the clang-tidy of the extra `dev` lies, beside this Python; then any other.
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def make_lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "lint"],
        cwd=root,
        env={**os.environ, "PATH": TOOLS},
        capture_output=True,
        text=True,
        check=False,
    )


needs_clang_tidy = pytest.mark.skipif(
    shutil.which("clang-tidy", path=TOOLS) is None, reason="needs clang-tidy"
)


@needs_clang_tidy
@pytest.mark.parametrize("name", ["mixed", "screened apart"])
def test_clang_tidy_finds_nothing(designs: Callable[[str], tuple[Path, Path]], name: str) -> None:
    found = make_lint(designs(name)[0])
    assert found.returncode == 0, found.stdout


@needs_clang_tidy
def test_clang_tidy_finds_a_fault(copy: Path) -> None:
    """An integer division where a float is wanted: the rules of a design are in force."""
    modify(copy, "int chosen = 0;", "int chosen = 0; const float half = D::HIDDEN_SIZE / 2;")
    assert make_lint(copy).returncode != 0


def test_errors_that_are_not_numbers_count() -> None:
    wanted = np.ones((2, 3), np.float32)
    found = np.array([[1, 1, 1.5], [1, np.nan, 1]], np.float32)
    np.testing.assert_array_equal(relative_errors(found, wanted), [0.5, np.inf])
