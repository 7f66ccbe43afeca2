"""Embedding and head as int8 rows: the definition, the stored form, the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutllm import int8_rows
from lutllm.artifact import EMBEDDING, Artifact
from lutllm.config import QuantConfig
from lutllm.emulator import LutModel, int8_head, reference
from lutllm.emulator.cpu import ISA
from lutllm.emulator.dot import dot_step_plain, dot_step_wide
from lutllm.emulator.jit import kernel
from lutllm.emulator.layout import aligned
from lutllm.emulator.simd import i32x8, load, splat, store, store_f32
from lutllm.errors import ArtifactError, ConfigError
from lutllm.tensorfile import TensorFile, write_tensors
from tests.make_artifact import tiny_config, write_artifact

INT8 = QuantConfig(head="int8")


def random_rows(words: int, size: int, seed: int = 0) -> np.ndarray:
    """f32[words, size] of different sizes, one row of zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((words, size)) * rng.uniform(0.01, 10, (words, 1))
    rows[words // 2] = 0
    return rows.astype(np.float32)


# ---------------------------------------------------------------- definition


def test_rows_are_within_half_a_step_and_reach_the_limit() -> None:
    rows = random_rows(5000, 40)
    weight, scale = int8_rows.quantize_rows(rows)
    error = np.abs(int8_rows.dequantize_rows(weight, scale) - rows)
    assert (error <= 0.5001 * scale[:, None]).all()
    largest = np.abs(weight.astype(int)).max(axis=1)
    assert (largest == np.where(scale > 0, 127, 0)).all()
    assert (scale == 0).sum() == 1


def test_stored_rows_do_not_change_when_stored_again() -> None:
    rows = int8_rows.round_rows(random_rows(100, 40))
    again = int8_rows.quantize_rows(rows)[0]
    assert np.array_equal(again, int8_rows.quantize_rows(random_rows(100, 40))[0])


@pytest.mark.parametrize("size", [1, 8, 512, 513, 896, 4096, 8192, 16384])
def test_sums_fit_32_bits(size: int) -> None:
    limit = int8_rows.hidden_limit(size)
    assert limit * 128 * size < 1 << 31
    assert limit == 32767 or (2 * limit + 1) * 128 * size >= 1 << 31
    assert limit > 0
    assert (limit + 1) & limit == 0


def test_the_head_is_as_good_as_its_rows() -> None:
    """Rounding the hidden vector is lost beside rounding the rows to 8 bits."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20, 896)).astype(np.float32)
    x[:, 7] *= 30  # an outlier channel
    rows = random_rows(500, 896)
    weight, scale = int8_rows.quantize_rows(rows)
    wide = x.astype(np.float64)
    of_rows = wide @ (int8_rows.dequantize_rows(weight, scale) - rows.astype(np.float64)).T
    of_hidden = int8_rows.logits(x, weight, scale) - wide @ int8_rows.round_rows(rows).T
    assert of_hidden.std() < 0.05 * of_rows.std()


# ---------------------------------------------------------------- kernels


@kernel
def run_head(
    weight: int,
    scale: int,
    words: int,
    size: int,
    padded: int,
    limit: int,
    tokens: int,
    x: int,
    token_scales: int,
    out: int,
    scratch: int,
) -> None:
    """The head of `tokens` rows f32[padded], in three parts."""
    for t in range(tokens):
        found = int8_head.quantize_hidden(x + 4 * padded * t, padded, limit)
        store_f32(token_scales + 4 * t, found)
    cuts = (0, words // 3, words // 2, words)
    for i in range(3):
        int8_head.int8_head_rows(
            weight,
            scale,
            size,
            cuts[i],
            cuts[i + 1],
            tokens,
            x,
            4 * padded,
            token_scales,
            out,
            4 * words,
            scratch,
        )


def head(x: np.ndarray, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    tokens, size = x.shape
    words, padded = len(weight), -(-size // 16) * 16
    room = aligned((tokens, padded), np.float32)
    room[...] = 0
    room[:, :size] = x
    token_scales = np.zeros(tokens, np.float32)
    out = np.full((tokens, words), np.nan, np.float32)
    scratch = np.zeros(4 * padded + 32, np.uint8)
    arrays = [a.ctypes.data for a in (room, token_scales, out, scratch)]
    limit = int8_rows.hidden_limit(size)
    where = (weight.ctypes.data, scale.ctypes.data)
    run_head(*where, words, size, padded, limit, tokens, *arrays)
    return out


@pytest.mark.parametrize("size", [8, 15, 16, 72, 96, 576, 1000])
@pytest.mark.parametrize("tokens", [1, 5])
def test_kernel_equals_the_definition_to_the_bit(size: int, tokens: int) -> None:
    rng = np.random.default_rng(size)
    x = rng.standard_normal((tokens, size)).astype(np.float32)
    x[0, 3] = 40
    if tokens > 1:
        x[1], x[2] = 0, 1e-35
    weight, scale = int8_rows.quantize_rows(random_rows(103, size))
    assert np.array_equal(head(x, weight, scale), int8_rows.logits(x, weight, scale))


@pytest.mark.parametrize("size", [896, 8192])
def test_largest_sums(size: int) -> None:
    """Every product at its limit, with the one integer that is not written but could be read."""
    x = np.full((1, size), 3, np.float32)
    scale = np.ones(8, np.float32)
    for value in (127, -128):
        weight = np.full((8, size), value, np.int8)
        expected = int8_rows.logits(x, weight, scale)
        assert np.array_equal(head(x, weight, scale), expected)
        assert np.allclose(expected, 3 * value * size, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_damaged_hidden_vector_shows_in_every_logit(value: float) -> None:
    x = np.ones((2, 40), np.float32)
    x[0, 11] = value
    found = head(x, *int8_rows.quantize_rows(random_rows(9, 40)))
    assert not np.isfinite(found[0]).any()
    assert np.isfinite(found[1]).all()


def _stepper(step: Any) -> Any:
    @kernel
    def run(weights: int, x: int, out: int) -> None:
        store(out, step(step(splat(i32x8, 0), weights, x), weights, x))
        store(out, step(load(i32x8, out), weights, x))

    return run


def test_every_kernel_set_has_the_same_sums() -> None:
    steps = [dot_step_plain] + [dot_step_wide] * (ISA != "plain")
    rng = np.random.default_rng(5)
    weights = rng.integers(-128, 128, 16).astype(np.int8)
    x = rng.integers(-32767, 32768, 16).astype(np.int16)
    for step in steps:
        out = np.zeros(8, np.int32)
        _stepper(step)(weights.ctypes.data, x.ctypes.data, out.ctypes.data)
        assert out.sum(dtype=np.int64) == 3 * (weights.astype(np.int64) @ x)


# ---------------------------------------------------------------- the model


@pytest.fixture(scope="module", params=["llama", "qwen3"])  # untied, tied
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "artifact"
    return write_artifact(path, tiny_config(request.param), INT8)


def test_model_equals_the_reference(folder: Path) -> None:
    artifact = Artifact.open(folder)
    assert artifact.verify() == []
    ids = np.random.default_rng(0).integers(0, 301, 33)
    expected = reference.logits(artifact, ids)
    models = [LutModel.load(folder, threads=threads) for threads in (1, 2)]
    found = models[0].logits(ids)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    assert np.array_equal(models[1].logits(ids), found)
    models[0].reset()
    one_by_one = np.array([models[0].decode(int(i)) for i in ids])
    assert np.array_equal(one_by_one, found)


def test_losses_equal_those_of_the_logits(folder: Path) -> None:
    model = LutModel.load(folder, threads=2)
    window = np.random.default_rng(1).integers(0, 301, (1, 150))
    logits = model.logits(window[0, :-1]).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -logits[np.arange(149), window[0, 1:]]
    assert np.allclose(model.nll(window)[0], expected, rtol=1e-5)


def test_bytes_of_the_head(folder: Path) -> None:
    assert LutModel.load(folder, threads=1).head_bytes == 301 * (72 + 4)


# ---------------------------------------------------------------- the artifact


def damage(folder: Path, **changes: tuple[str, np.ndarray]) -> Path:
    """A copy of the embedding's file with other tensors."""
    file = TensorFile(folder / "floats.safetensors", ArtifactError)
    tensors = {n: (file.dtype(n), np.array(file.view(n))) for n in file.names()}
    tensors |= {EMBEDDING + suffix: value for suffix, value in changes.items()}
    write_tensors(folder / "floats.safetensors", tensors)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact", tiny_config("qwen3"), INT8)


@pytest.mark.parametrize(
    ("suffix", "tensor", "message"),
    [
        ("", ("F16", np.zeros((301, 72))), "is F16; I8 is needed"),
        ("", ("I8", np.zeros((300, 72))), r"has shape \[300, 72\]"),
        ("_scale", ("F16", np.zeros(301)), "is F16; F32 is needed"),
        ("_scale", ("F32", np.zeros(72)), r"has shape \[72\]"),
        ("_scale", ("F32", np.full(301, np.nan)), "a value that is not a scale"),
        ("_scale", ("F32", np.full(301, -1.0)), "a value that is not a scale"),
    ],
)
def test_damaged_rows_are_refused(
    copy: Path, suffix: str, tensor: tuple[str, np.ndarray], message: str
) -> None:
    damage(copy, **{suffix: tensor})
    assert any(EMBEDDING in problem for problem in Artifact.open(copy).verify())
    with pytest.raises(ArtifactError, match=message):
        LutModel.load(copy)


def test_verify_finds_an_integer_out_of_range(copy: Path) -> None:
    rows = np.zeros((301, 72), np.int8)
    rows[5, 6] = -128
    damage(copy, **{"": ("I8", rows)})
    assert ["holds -128" in problem for problem in Artifact.open(copy).verify()] == [True]


def test_config_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="head is 'int4'; choose one of source, int8"):
        QuantConfig(head="int4")
    assert QuantConfig.from_dict(INT8.to_dict()) == INT8
    older = {k: v for k, v in QuantConfig().to_dict().items() if k != "head"}
    assert QuantConfig.from_dict(older).head == "source"
