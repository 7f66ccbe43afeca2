"""Perplexity: against a plain computation and against transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest

import calib.evaluate
from calib.decoder import FloatDecoder
from calib.evaluate import Perplexity, perplexity_of_checkpoint, perplexity_of_logits
from lutllm.checkpoint import open_checkpoint
from lutllm.errors import CheckpointError
from tests.tiny_models import make_model, tiny_config, write_hf


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 300, (7, 24))


def test_uniform_model_has_the_vocabulary_as_perplexity(windows):
    result = perplexity_of_logits(lambda ids: np.zeros((len(ids), 300), np.float32), windows)
    assert result.perplexity == pytest.approx(300, rel=1e-5)
    assert result.stderr == pytest.approx(0, abs=1e-3)
    assert (result.tokens, result.ctx) == (7 * 23, 24)


def test_standard_error_is_the_delta_method_over_windows():
    nll = np.array([2.0, 2.5, 3.0, 2.1])
    result = Perplexity.from_window_nll(nll, 10)
    assert result.perplexity == pytest.approx(math.exp(nll.mean()))
    assert result.stderr == pytest.approx(result.perplexity * nll.std(ddof=1) / 2)
    assert Perplexity.from_window_nll(nll[:1], 10).stderr is None


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(CheckpointError, match="1 of 2 windows"):
        Perplexity.from_window_nll(np.array([1.0, np.nan]), 10)


@pytest.mark.parametrize("hidden_bytes", [1 << 30, 2 * 24 * 64 * 4])
def test_checkpoint_equals_transformers_and_logits(tmp_path, windows, monkeypatch, hidden_bytes):
    """In one pass, and in passes of two windows."""
    import torch

    monkeypatch.setattr(calib.evaluate, "HIDDEN_BYTES", hidden_bytes)
    monkeypatch.setattr(calib.evaluate, "HEAD_TOKENS", 10)
    monkeypatch.setattr(calib.evaluate, "LAYER_TOKENS", 24 * 3)
    model = make_model(tiny_config("qwen3"))
    checkpoint = open_checkpoint(write_hf(tmp_path, model))
    found = perplexity_of_checkpoint(checkpoint, windows)
    batch = torch.from_numpy(windows)
    with torch.no_grad():
        expected = math.exp(model(batch, labels=batch).loss.item())
    assert found.perplexity == pytest.approx(expected, rel=1e-4)
    other = perplexity_of_logits(FloatDecoder(checkpoint).logits, windows)
    assert other.perplexity == pytest.approx(found.perplexity, rel=1e-5)
    assert other.stderr == pytest.approx(found.stderr, rel=1e-3)
