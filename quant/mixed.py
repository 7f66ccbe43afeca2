"""Mixed precision: weight stages and codebooks of every linear, chosen by measured sensitivity."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.checkpoint import Checkpoint
from lutllm.config import HEAD_LINEAR, LutConfig, QuantConfig
from lutllm.errors import ConfigError
from lutllm.lut_linear import stored_bytes
from quant.allocation import allocate
from quant.sensitivity import held_bytes, sensitivities


@dataclass(frozen=True)
class Option:
    """A way to code weights, and the output error it leaves, relative to the output's variation."""

    weight_stages: int
    weight_centroids: int
    error: float

    def of(self, lut: LutConfig) -> LutConfig:
        """`lut` with weights coded this way. Where all stages had wide entries, all have them."""
        wide = self.weight_stages if lut.wide_stages >= lut.weight_stages else lut.wide_stages
        return dataclasses.replace(
            lut,
            weight_stages=self.weight_stages,
            weight_centroids=self.weight_centroids,
            wide_stages=wide,
        )


#: For vectors of two; all codebooks fit a byte shuffle. Errors are means over eight linears of
#: SmolLM2-135M (layers 5 and 20), inputs rotated, 16 positions to a codebook, 12k calibration
#: tokens, 4k others to measure. Of the last, most is activations in int8.
OPTIONS = (
    Option(1, 16, 0.072),
    Option(2, 8, 0.021),
    Option(2, 16, 0.0062),
    Option(3, 16, 0.00060),
    Option(4, 16, 0.00016),
)
#: What an option decides; overrides of the caller cannot.
_CHOSEN = ("weight_stages", "weight_centroids", "wide_stages")
#: By which the weights of every linear are coded to measure what the error does; the errors of the
#: others follow from OPTIONS.
_PROBE = OPTIONS[1]
#: Windows of calibration text to code on, and others to measure on.
_FITTED, _MEASURED = 16, 8


@dataclass(frozen=True)
class MixedPrecision:
    """One of OPTIONS for every linear, at most `bits` a weight on average.

    config   says all else of the linears
    bits     of everything that is stored of them: indices, codebooks, scales
    price    i64[linears, options], bytes
    fitted, measured  i64[N, ctx] and i64[K, ctx], windows to code on and to measure errors on
    """

    checkpoint: Checkpoint
    config: QuantConfig
    bits: float
    price: np.ndarray
    fitted: np.ndarray
    measured: np.ndarray

    @classmethod
    def within(
        cls, checkpoint: Checkpoint, config: QuantConfig, bits: float, windows: np.ndarray
    ) -> MixedPrecision:
        """windows: i64[N, ctx] of calibration text.

        Raises ConfigError when no choice meets `bits`, vec_len is not 2, or there is too little
        text.
        """
        shapes = list(checkpoint.model.linears())
        base = _without_choice(config)
        luts = [[option.of(_pairs(base.for_linear(s.name))) for option in OPTIONS] for s in shapes]
        price = np.array(
            [
                [stored_bytes(lut, s.in_features, s.out_features, s.has_bias) for lut in row]
                for s, row in zip(shapes, luts, strict=True)
            ]
        )
        mixed = cls(checkpoint, base, bits, price, *_drawn(windows, config.seed))
        low, high = (mixed._average(p) for p in (price.min(axis=1), price.max(axis=1)))
        if not low <= bits <= high:
            raise ConfigError(
                f"bits is {bits:g}; codebooks and scales included, it can be {low:.2f} to "
                f"{high:.2f} here, less in larger groups (group_size)"
            )
        return mixed

    @property
    def tokens(self) -> int:
        """That errors are measured with."""
        return self.fitted.size + self.measured.size

    def held_bytes(self) -> int:
        """Memory of what measuring keeps beside the linear at work."""
        windows = len(self.fitted) + len(self.measured)
        return held_bytes(self.checkpoint.model, windows, self.fitted.shape[1])

    def choose(
        self, state_path: Path | None = None, progress: bool = False
    ) -> tuple[QuantConfig, dict[str, Any]]:
        """The configuration, by measured errors, and a record for the report.

        A run that was killed goes on from `state_path`.
        """
        base, names = self.config, [s.name for s in self.checkpoint.model.linears()]
        found = sensitivities(
            self.checkpoint,
            {name: _weights_alone(_PROBE.of(base.for_linear(name))) for name in names},
            self.fitted,
            self.measured,
            base.seed,
            progress,
            state_path,
        )
        relative = [option.error / _PROBE.error for option in OPTIONS]
        cost = np.outer([found[name] for name in names], relative)
        chosen = allocate(cost, self.price, int(self.bits * self._weights() / 8))
        rows = np.arange(len(names))
        return _with_options(base, names, [OPTIONS[i] for i in chosen]), {
            "bits": self.bits,
            "bits_per_weight": self._average(self.price[rows, chosen]),
            "expected_divergence": float(cost[rows, chosen].sum()),
            "sensitivity": found,
        }

    def _weights(self) -> int:
        return sum(s.in_features * s.out_features for s in self.checkpoint.model.linears())

    def _average(self, price: np.ndarray) -> float:
        """Bits a weight of linears of `price` i64[linears] bytes."""
        return 8 * float(price.sum()) / self._weights()


def _drawn(windows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows to code on and others to measure on, of windows i64[N, ctx]."""
    if len(windows) < 2:
        raise ConfigError(
            "bits are chosen by errors on text that was not coded on, which takes two windows of "
            f"calibration text; there is {len(windows)}, give more text"
        )
    drawn = np.random.default_rng(seed).permutation(len(windows))[: _FITTED + _MEASURED]
    count = max(1, len(drawn) * _MEASURED // (_FITTED + _MEASURED))
    return windows[drawn[count:]], windows[drawn[:count]]


def _pairs(lut: LutConfig) -> LutConfig:
    """`lut`, for which the errors of OPTIONS are known; ConfigError where they are not."""
    if lut.vec_len != 2:
        raise ConfigError(
            f"vec_len is {lut.vec_len}; bits are chosen for vectors of two, leave vec_len at 2"
        )
    return lut


def _weights_alone(lut: LutConfig) -> LutConfig:
    """`lut` without coded activations, whose error is the same with every option."""
    return dataclasses.replace(lut, scheme="weight", act_stages=1, metric="l2", token_scale=False)


def _without_choice(config: QuantConfig) -> QuantConfig:
    """`config` with nothing said of what an option decides in its overrides."""
    overrides = {
        pattern: {k: v for k, v in fields.items() if pattern == HEAD_LINEAR or k not in _CHOSEN}
        for pattern, fields in config.overrides.items()
    }
    return dataclasses.replace(config, overrides={k: v for k, v in overrides.items() if v})


def _with_options(config: QuantConfig, names: list[str], options: list[Option]) -> QuantConfig:
    """The most frequent option as the default, overrides for the other linears."""
    common = Counter(options).most_common(1)[0][0]
    overrides = {k: dict(v) for k, v in config.overrides.items()}
    for name, option in zip(names, options, strict=True):
        if option != common:
            chosen = option.of(config.for_linear(name)).to_dict()
            overrides.setdefault(name, {}).update({k: chosen[k] for k in _CHOSEN})
    return dataclasses.replace(config, default=common.of(config.default), overrides=overrides)
