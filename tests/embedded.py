"""The embedded model quantized in seconds, once for all tests of a process.

"mixed" has both schemes, one and two stages: layer 0 in scheme "weight" with two weight stages, the
MLP of layer 1 with two activation stages, the rest in the published setting with fewer centroids.
"co" and "weight" have one scheme each.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.config import LutConfig, QuantConfig

MODEL = Path(__file__).resolve().parent.parent / "models" / "tiny-qwen3"
SAMPLE = MODEL / "sample.txt"
#: Largest difference of logits between two runtimes before the first flip of an activation code,
#: relative to the largest logit. Found: 1e-6.
TOLERANCE = 1e-5
#: Codes that may flip where the first one does. Found: 1.
FIRST_FLIPS = 4
_FOLDER = tempfile.TemporaryDirectory(prefix="lutllm-embedded-")
CONFIGS = {
    "mixed": QuantConfig(
        LutConfig(block_positions=4, act_centroids=16),
        {
            "model.layers.0.*": {"scheme": "weight", "weight_stages": 2},
            "model.layers.1.mlp.*": {"act_stages": 2},
        },
    ),
    "co": QuantConfig(head="int8"),
    "weight": QuantConfig(LutConfig(scheme="weight", block_positions=4), head="int8"),
}


@functools.cache
def embedded_artifact(config: str = "mixed") -> Path:
    """An artifact of the embedded model, of one of CONFIGS, to be read only."""
    from calib.text import default_text
    from lutllm.checkpoint import open_checkpoint
    from quant import pipeline
    from quant.linear import Effort

    out = Path(_FOLDER.name) / config / "tiny-lut"
    out.parent.mkdir()
    checkpoint = open_checkpoint(MODEL)
    ids = np.array(checkpoint.tokenizer().encode(default_text()), np.int64)
    pipeline.quantize(
        checkpoint,
        out,
        CONFIGS[config],
        ids,
        calibration=pipeline.CalibrationConfig(1024, 512),
        effort=Effort(iterations=1, sweeps=0),
        progress=False,
    )
    return out


def sample_ids(count: int) -> np.ndarray:
    """The first tokens of the text that the embedded model was not trained on, i64[count]."""
    from lutllm.tokenizer import Tokenizer

    text = SAMPLE.read_text(encoding="utf-8")[: 64 * count]
    return np.array(Tokenizer.from_folder(MODEL).encode(text)[:count], np.int64)


def assert_equal_up_to_flips(found: dict[str, Any]) -> None:
    """found: of `lutllm.divergence.compare_runs`."""
    assert found["max_abs_error_before_flip"] <= TOLERANCE * found["max_abs_logit"]
    if found["codes_flipped"]:
        assert found["first_flip"]["codes"] <= FIRST_FLIPS
    else:
        assert found["first_flip"] is None
        assert found["tokens_equal"] == found["tokens_compared"]
