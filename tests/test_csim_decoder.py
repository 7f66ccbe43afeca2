"""The whole decoder in C simulation: tokens of the numpy reference, and damage that shows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import lutllm
from codegen.csim import compile_testbench, trusted_sources
from codegen.csim_decoder import TOLERANCE, golden_of, run_decoder, run_program
from codegen.decoder_compare import (
    compare,
    compare_replay,
)
from codegen.export import export
from codegen.manifest import MANIFEST, file_entry, read_design
from lutllm import intmath
from lutllm.artifact import Artifact
from lutllm.errors import ArtifactError, ConfigError
from tests.decoder_designs import (
    ENGINE,
    MODELS,
    PROMPT,
    TOKENS,
    greedy,
    modify,
    refresh_manifest,
)


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


def test_another_margin_is_found(screened_copy: Path) -> None:
    modify(screened_copy, "HEAD_MARGIN = 2.0f", "HEAD_MARGIN = 0.0f")
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
