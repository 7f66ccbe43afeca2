"""Paired comparison with the float model: zero for itself, known values for a known change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calib.compare import compare
from calib.decoder import FloatDecoder
from calib.evaluate import perplexity_of_checkpoint
from lutllm.checkpoint import Checkpoint, open_checkpoint
from tests.tiny_models import make_model, tiny_config, write_hf

WINDOWS = np.random.default_rng(0).integers(0, 300, (5, 48))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp("model")
    return open_checkpoint(write_hf(folder, make_model(tiny_config("llama"))))


def test_a_model_beside_itself(checkpoint: Checkpoint) -> None:
    found = compare(checkpoint, FloatDecoder(checkpoint).logits, WINDOWS)
    alone = perplexity_of_checkpoint(checkpoint, WINDOWS)
    assert found.perplexity == pytest.approx(alone.perplexity, rel=1e-5)
    assert found.reference_stderr == pytest.approx(alone.stderr, rel=1e-4)
    assert found.ratio == pytest.approx(1, abs=1e-5)
    assert found.kl_divergence == pytest.approx(0, abs=1e-5)
    assert found.top1_agreement == 1
    assert found.tokens == 5 * 47


def test_against_plain_numpy(checkpoint: Checkpoint) -> None:
    decoder = FloatDecoder(checkpoint)
    noise = np.random.default_rng(1).standard_normal((47, 300)).astype(np.float32)

    def model(ids: np.ndarray) -> np.ndarray:
        return decoder.logits(ids) + noise

    found = compare(checkpoint, model, WINDOWS)
    gaps, divergences, same = [], [], []
    for window in WINDOWS:
        exact = decoder.logits(window[:-1]).astype(np.float64)
        p = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
        q = exact + noise
        q = q - np.log(np.exp(q).sum(-1, keepdims=True))
        at = np.arange(47), window[1:]
        gaps.append((p[at] - q[at]).mean())
        divergences.append((np.exp(p) * (p - q)).sum(-1).mean())
        same.append((p.argmax(-1) == q.argmax(-1)).mean())
    assert found.ratio == pytest.approx(np.exp(np.mean(gaps)), rel=1e-4)
    error = np.std(gaps, ddof=1) / 5**0.5
    assert found.ratio_stderr == pytest.approx(found.ratio * error, rel=1e-3)
    assert found.kl_divergence == pytest.approx(np.mean(divergences), rel=1e-3)
    assert found.top1_agreement == pytest.approx(np.mean(same))


def test_one_window_has_no_error(checkpoint: Checkpoint) -> None:
    found = compare(checkpoint, FloatDecoder(checkpoint).logits, WINDOWS[:1])
    assert found.stderr is None
    assert found.kl_stderr is None
