"""Mixed precision: an exact allocation, sensitivities that predict divergence, a valid artifact."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.decoder import FloatDecoder
from lutllm import api
from lutllm.artifact import Artifact
from lutllm.checkpoint import Checkpoint, open_checkpoint
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import ConfigError
from lutllm.model_config import LinearShape
from quant.allocation import allocate
from quant.mixed import mixed_precision
from quant.sensitivity import sensitivities
from tests.tiny_models import make_model, tiny_config, write_hf, write_tokenizer

WINDOWS = np.random.default_rng(0).integers(0, 300, (4, 48))


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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = write_hf(tmp_path_factory.mktemp("model"), make_model(tiny_config("qwen3")))
    write_tokenizer(folder)
    return open_checkpoint(folder)


def disturbed(checkpoint: Checkpoint, name: str, size: float, seed: int) -> float:
    """Mean divergence per token when the output of one linear gets white noise."""
    decoder = FloatDecoder(checkpoint)
    noise = torch.Generator().manual_seed(seed)

    def logits(active: bool) -> torch.Tensor:
        hidden = decoder.embed(WINDOWS)
        for i in range(checkpoint.model.num_hidden_layers):
            weights = decoder.layer(i)

            def apply(shape: LinearShape, x: torch.Tensor, weights=weights) -> torch.Tensor:
                y = weights.apply(shape, x)
                if not active or shape.name != name:
                    return y
                tokens = y.unflatten(0, WINDOWS.shape)
                rest = tokens[:, 1:].flatten(0, 1)
                spread = (tokens - rest.mean(0)).pow(2).mean(-1, keepdim=True).sqrt()
                spread[:, 0] = 0
                drawn = torch.randn(tokens.shape, generator=noise)
                return (tokens + size * spread * drawn).flatten(0, 1)

            hidden = decoder.run_layer(hidden, weights, apply)
        norm, head = decoder.head()
        from calib.operators import rms_norm

        return rms_norm(hidden.flatten(0, 1), norm, checkpoint.model.rms_norm_eps) @ head.t()

    exact, found = F.log_softmax(logits(False), -1), F.log_softmax(logits(True), -1)
    total = F.kl_div(found, exact, reduction="sum", log_target=True)
    return float(total) / (WINDOWS.shape[0] * (WINDOWS.shape[1] - 1))


@torch.no_grad()
def test_sensitivity_predicts_the_divergence_of_a_small_error(checkpoint: Checkpoint) -> None:
    with torch.enable_grad():
        draws = [sensitivities(checkpoint, WINDOWS, seed) for seed in range(6)]
    assert list(draws[0]) == [s.name for s in checkpoint.model.linears()]
    for name in draws[0]:
        predicted = np.mean([d[name] for d in draws]) * 0.05**2
        measured = np.mean([disturbed(checkpoint, name, 0.05, seed) for seed in range(4)])
        assert predicted == pytest.approx(measured, rel=0.35), name


def test_bits_are_met_and_the_most_sensitive_get_more(checkpoint: Checkpoint) -> None:
    config = QuantConfig(
        LutConfig(scheme="weight", group_size=64),
        {"*.down_proj": {"table_bits": 16}},
        seed=3,
        head="int8",
    )
    quant, record = mixed_precision(checkpoint, config, 2.9, WINDOWS)
    assert 2.3 < record["index_bits"] <= 2.9
    assert (quant.seed, quant.head) == (3, "int8")
    found = record["sensitivity"]
    given = {name: quant.for_linear(name).index_bits_per_weight for name in found}
    sizes = {s.name: s.in_features * s.out_features for s in checkpoint.model.linears()}
    worth = {name: found[name] / sizes[name] for name in found}
    assert given[max(worth, key=worth.__getitem__)] > given[min(worth, key=worth.__getitem__)]
    for name in found:
        assert quant.for_linear(name).table_bits == (16 if name.endswith("down_proj") else 8)
    assert mixed_precision(checkpoint, config, 2.9, WINDOWS)[0] == quant
    uniform, _ = mixed_precision(checkpoint, config, 2.0, WINDOWS)
    assert {uniform.for_linear(name).index_bits_per_weight for name in found} == {2.0}
    assert {option.index_bits_per_weight for option in map(quant.for_linear, found)} <= {2, 3, 4, 6}


@pytest.mark.parametrize("bits", [1.9, 6.1])
def test_bits_out_of_reach_are_refused(checkpoint: Checkpoint, bits: float) -> None:
    with pytest.raises(ConfigError, match="index bits can be 2 to 6"):
        mixed_precision(checkpoint, QuantConfig(), bits, WINDOWS)


def test_a_mixed_artifact_records_its_allocation(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = tmp_path / "calib.txt"
    text.write_text("the cat sat on the mat and looked at a dog. " * 200)
    config = QuantConfig(LutConfig(scheme="weight", group_size=64))
    options = {"calib": text, "calib_tokens": 512, "eval_tokens": 0, "bits": 3.0}
    report = api.quantize(checkpoint.source, tmp_path / "out", config, **options)
    assert report["allocation"]["index_bits"] <= 3.0
    artifact = Artifact.open(tmp_path / "out")
    found = {artifact.linear(s).config.index_bits_per_weight for s in artifact.model.linears()}
    assert len(found) > 1
    again = api.quantize(checkpoint.source, tmp_path / "out", config, resume=True, **options)
    assert again["artifact_hash"] == report["artifact_hash"]


def test_other_vectors_are_refused(checkpoint: Checkpoint) -> None:
    config = QuantConfig(overrides={"*.o_proj": {"vec_len": 4}})
    with pytest.raises(ConfigError, match="leave vec_len at 2"):
        mixed_precision(checkpoint, config, 3.0, WINDOWS)
