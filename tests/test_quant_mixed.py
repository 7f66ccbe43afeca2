"""Mixed precision: an exact allocation, sensitivities that predict divergence, a valid artifact."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.decoder import FloatDecoder
from calib.operators import rms_norm
from lutllm import api
from lutllm.artifact import Artifact
from lutllm.checkpoint import Checkpoint, open_checkpoint
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import ConfigError, ResourceError
from lutllm.model_config import LinearShape
from quant import pipeline, resources, sensitivity
from quant.allocation import allocate
from quant.linear import Effort, quantize_linear
from quant.mixed import MixedPrecision, Option
from quant.pipeline import artifact_sizes
from quant.sensitivity import sensitivities
from tests.tiny_models import make_model, tiny_config, write_hf, write_tokenizer

WINDOWS = np.random.default_rng(0).integers(0, 300, (48, 48))
FITTED, MEASURED = WINDOWS[32:], WINDOWS[:32]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 60), st.integers(0, 999))
def test_allocation_is_optimal(items: int, options: int, room: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.random((items, options))
    price = rng.integers(1, 20, (items, options)) * 3
    budget = int(price.min(axis=1).sum()) + room
    chosen = allocate(cost, price, budget)
    rows = np.arange(items)
    assert price[rows, chosen].sum() <= budget
    best = min(
        cost[rows, trial].sum()
        for trial in map(np.array, itertools.product(range(options), repeat=items))
        if price[rows, trial].sum() <= budget
    )
    assert cost[rows, chosen].sum() == pytest.approx(best)


def test_large_budgets_stay_within_the_budget() -> None:
    rng = np.random.default_rng(1)
    price = rng.integers(10**6, 10**8, (30, 3))
    cost = rng.random((30, 3)) / price  # dearer options tend to be better
    budget = int(price.mean(axis=1).sum())
    chosen = allocate(cost, price, budget)
    assert budget * 0.98 < price[np.arange(30), chosen].sum() <= budget


def test_a_budget_below_the_cheapest_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 6 of a budget of 5"):
        allocate(np.zeros((3, 1)), np.full((3, 1), 2), 5)


def stored_bits(checkpoint: Checkpoint, config: QuantConfig) -> float:
    sizes = artifact_sizes(checkpoint, config)
    return 8 * sizes["linear_bytes"] / sizes["linear_weights"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = write_hf(tmp_path_factory.mktemp("model"), make_model(tiny_config("qwen3")))
    write_tokenizer(folder)
    return open_checkpoint(folder)


def coded_alone(checkpoint: Checkpoint, name: str, lut: LutConfig) -> float:
    """Mean divergence per token when one linear is coded, on FITTED, and run on MEASURED."""
    decoder = FloatDecoder(checkpoint)

    def logits(active: bool) -> torch.Tensor:
        fitted, hidden = decoder.embed(FITTED), decoder.embed(MEASURED)
        for i in range(checkpoint.model.num_hidden_layers):
            weights = decoder.layer(i)
            fitted, inputs = decoder.run_with_inputs(fitted, weights)

            def apply(shape: LinearShape, x: torch.Tensor, weights=weights, inputs=inputs):
                y = weights.apply(shape, x)
                if not active or shape.name != name:
                    return y
                weight, bias = weights.weight[name], weights.bias[name]
                fit_on = inputs[name]
                coded = quantize_linear(shape, weight, bias, fit_on, fit_on, lut, Effort(), 0)
                found = coded.apply(x).unflatten(0, MEASURED.shape)
                found[:, 0] = y.unflatten(0, MEASURED.shape)[:, 0]
                return found.flatten(0, 1)

            hidden = decoder.run_layer(hidden, weights, apply)
        norm, head = decoder.head()
        return rms_norm(hidden.flatten(0, 1), norm, checkpoint.model.rms_norm_eps) @ head.t()

    exact, found = F.log_softmax(logits(False), -1), F.log_softmax(logits(True), -1)
    total = F.kl_div(found, exact, reduction="sum", log_target=True)
    return float(total) / (MEASURED.shape[0] * (MEASURED.shape[1] - 1))


@torch.no_grad()
def test_sensitivity_predicts_the_divergence_of_coding_one_linear(checkpoint: Checkpoint) -> None:
    lut = LutConfig(scheme="weight", group_size=64, weight_stages=2, weight_centroids=8)
    luts = {s.name: lut for s in checkpoint.model.linears()}
    with torch.enable_grad():
        draws = [sensitivities(checkpoint, luts, FITTED, MEASURED, seed) for seed in range(6)]
    assert list(draws[0]) == [s.name for s in checkpoint.model.linears()]
    for name in draws[0]:
        predicted = np.mean([d[name] for d in draws])
        # Errors of keys and values of several tokens add up, which is not counted.
        rel = 0.5 if name.endswith("qkv_proj") else 0.25
        assert predicted == pytest.approx(coded_alone(checkpoint, name, lut), rel=rel), name


def test_bits_are_met_and_the_most_sensitive_get_more(checkpoint: Checkpoint) -> None:
    config = QuantConfig(
        LutConfig(scheme="weight", group_size=64),
        {"*.down_proj": {"table_bits": 16}},
        seed=3,
        head="int8",
    )
    mixed = MixedPrecision.within(checkpoint, config, 6.5, WINDOWS)
    quant, record = mixed.choose()
    assert 6.2 < record["bits_per_weight"] <= 6.5
    assert record["bits_per_weight"] == pytest.approx(stored_bits(checkpoint, quant))
    assert (quant.seed, quant.head) == (3, "int8")
    found = record["sensitivity"]
    given = {name: quant.for_linear(name).index_bits_per_weight for name in found}
    sizes = {s.name: s.in_features * s.out_features for s in checkpoint.model.linears()}
    worth = {name: found[name] / sizes[name] for name in found}
    assert given[max(worth, key=worth.__getitem__)] > given[min(worth, key=worth.__getitem__)]
    for name in found:
        assert quant.for_linear(name).table_bits == (16 if name.endswith("down_proj") else 8)
    assert mixed.choose()[0] == quant
    uniform, _ = MixedPrecision.within(checkpoint, config, 5.03, WINDOWS).choose()
    assert {uniform.for_linear(name).index_bits_per_weight for name in found} == {2.0}
    assert {option.index_bits_per_weight for option in map(quant.for_linear, found)} <= {
        2,
        3,
        4,
        6,
        8,
    }


@pytest.mark.parametrize("bits", [4.9, 17.3])
def test_bits_out_of_reach_are_refused(checkpoint: Checkpoint, bits: float) -> None:
    config = QuantConfig(LutConfig(scheme="weight", group_size=64))
    with pytest.raises(ConfigError, match=f"bits is {bits}; .* it can be 5.02 to 17.21 here"):
        MixedPrecision.within(checkpoint, config, bits, WINDOWS)


@pytest.mark.parametrize(("wide", "expected"), [(1, 1), (2, 3)])
def test_entries_of_every_stage_stay_wide(wide: int, expected: int) -> None:
    lut = LutConfig(scheme="weight", weight_stages=2, wide_stages=wide, table_bits=16)
    assert Option(3, 16, 0.0).of(lut).wide_stages == expected


def test_a_mixed_artifact_records_its_allocation(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = tmp_path / "calib.txt"
    text.write_text("the cat sat on the mat and looked at a dog. " * 200)
    config = QuantConfig(LutConfig(scheme="weight", group_size=64))
    options = {"calib": text, "calib_tokens": 512, "eval_tokens": 0, "bits": 6.5}
    report = api.quantize(checkpoint.source, tmp_path / "out", config, **options)
    assert report["allocation"]["bits_per_weight"] <= 6.5
    artifact = Artifact.open(tmp_path / "out")
    found = {artifact.linear(s).config.index_bits_per_weight for s in artifact.model.linears()}
    assert len(found) > 1
    again = api.quantize(checkpoint.source, tmp_path / "out", config, resume=True, **options)
    assert again["artifact_hash"] == report["artifact_hash"]


class Killed(Exception):
    """In the place of the end of a process."""


def test_measuring_goes_on_where_it_was_killed(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lut = LutConfig(scheme="weight", group_size=64)
    luts = {s.name: lut for s in checkpoint.model.linears()}
    args = (checkpoint, luts, FITTED[:8], MEASURED[:8])
    expected = sensitivities(*args)
    state, save = tmp_path / "state.npz", sensitivity.save_arrays

    def killed_after_one(path: Path, arrays: dict[str, np.ndarray]) -> None:
        save(path, arrays)
        raise Killed

    monkeypatch.setattr(sensitivity, "save_arrays", killed_after_one)
    with pytest.raises(Killed):
        sensitivities(*args, state_path=state)
    monkeypatch.setattr(sensitivity, "save_arrays", save)
    measured: list[str] = []
    error = sensitivity._coding_error

    def counted(shape: LinearShape, *rest: Any) -> torch.Tensor:
        measured.append(shape.name)
        return error(shape, *rest)

    monkeypatch.setattr(sensitivity, "_coding_error", counted)
    assert sensitivities(*args, state_path=state) == expected
    last = checkpoint.model.num_hidden_layers - 1
    assert set(measured) == {n for n in luts if f"layers.{last}." not in n}
    assert sensitivities(*args, state_path=state) == expected
    assert len(measured) == len(luts) - len(checkpoint.model.layer_linears(last))


def test_memory_for_measuring_is_checked_first(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = QuantConfig(LutConfig(scheme="weight", group_size=64)), tmp_path / "out"
    held = MixedPrecision.within(checkpoint, config, 6.5, WINDOWS).held_bytes()
    layers, hidden = checkpoint.model.num_hidden_layers, checkpoint.model.hidden_size
    assert held == 4 * (layers + 1) * 24 * 48 * hidden
    run, measuring = (pipeline.CalibrationConfig(windows * 48, 48) for windows in (2, 24))
    need = held + pipeline.estimate_peak_rss(checkpoint, config, measuring)
    monkeypatch.setattr(resources, "available_memory", lambda: need - 1)
    pipeline.check_resources(checkpoint, config, run, out)
    with pytest.raises(ResourceError, match="MiB of memory available, the run needs up to"):
        pipeline.quantize(checkpoint, out, config, WINDOWS.flatten(), calibration=run, bits=6.5)
    assert not list(tmp_path.iterdir())


def test_coding_of_activations_does_not_count(checkpoint: Checkpoint) -> None:
    """It is the same whatever codes the weights."""
    weight = QuantConfig(LutConfig(scheme="weight", group_size=64))
    coded = QuantConfig(
        LutConfig(group_size=64, act_stages=2, metric="chebyshev", token_scale=True)
    )
    _, expected = MixedPrecision.within(checkpoint, weight, 6.5, WINDOWS).choose()
    _, found = MixedPrecision.within(checkpoint, coded, 14.0, WINDOWS).choose()
    assert found["sensitivity"] == expected["sensitivity"]


def test_one_window_of_text_is_refused(checkpoint: Checkpoint) -> None:
    config = QuantConfig(LutConfig(scheme="weight", group_size=64))
    with pytest.raises(ConfigError, match="takes two windows of calibration text; there is 1"):
        MixedPrecision.within(checkpoint, config, 6.5, WINDOWS[:1])


def test_other_vectors_are_refused(checkpoint: Checkpoint) -> None:
    config = QuantConfig(overrides={"*.o_proj": {"vec_len": 4}})
    with pytest.raises(ConfigError, match="leave vec_len at 2"):
        MixedPrecision.within(checkpoint, config, 6.5, WINDOWS)
