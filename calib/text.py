"""Text files to windows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from lutllm.errors import ConfigError


def read_text(path: str | Path) -> str:
    """The UTF-8 text in `path`; ConfigError says why it cannot be used."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found; give a plain text file") from None
    except OSError as cause:
        raise ConfigError(f"{path}: cannot be read ({cause.strerror})") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise ConfigError(
            f"{path}: not UTF-8 text (byte {cause.start}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ConfigError(f"{path}: holds zero bytes, so it is not a text; give a plain text file")
    if not text.strip():
        raise ConfigError(f"{path}: the file is empty; give a plain text file")
    return text


def default_text() -> str:
    """The calibration text that ships with lutllm."""
    return resources.files("calib").joinpath("data/default.txt").read_text(encoding="utf-8")


def windows(ids: Sequence[int] | np.ndarray, ctx: int, max_tokens: int | None = None) -> np.ndarray:
    """The text cut into windows that do not overlap, from its beginning. Returns i64[N, ctx].

    max_tokens limits N * ctx; the rest that fills no window is left out.
    """
    _check_ctx(ctx)
    array = np.asarray(ids, np.int64)
    limit = len(array) if max_tokens is None else min(len(array), max_tokens)
    count = limit // ctx
    if count == 0:
        if max_tokens is not None and max_tokens < ctx:
            raise ConfigError(
                f"max_tokens is {max_tokens}, less than one window of {ctx} tokens; raise it or "
                "lower ctx"
            )
        raise _too_short(len(array), ctx, ctx)
    return array[: count * ctx].reshape(count, ctx)


def calibration_windows(
    ids: Sequence[int] | np.ndarray, ctx: int, count: int, seed: int
) -> np.ndarray:
    """`count` windows that do not overlap, spread over the text. Returns i64[count, ctx].

    The text is cut into `count` equal stretches of whole windows, and one window is drawn from
    each; the same seed draws the same windows.
    """
    _check_ctx(ctx)
    if count < 1:
        raise ConfigError(f"number of calibration windows is {count}; it must be at least 1")
    array = np.asarray(ids, np.int64)
    available = len(array) // ctx
    if available < count:
        raise _too_short(len(array), ctx * count, ctx)
    bounds = np.arange(count + 1) * available // count
    rng = np.random.default_rng(seed)
    chosen = rng.integers(bounds[:-1], bounds[1:])
    return array[: available * ctx].reshape(available, ctx)[chosen]


def _check_ctx(ctx: int) -> None:
    if ctx < 2:
        raise ConfigError(f"ctx is {ctx}; a window needs at least 2 tokens")


def _too_short(have: int, need: int, ctx: int) -> ConfigError:
    return ConfigError(
        f"the text has {have} tokens, but {need} are needed ({need // ctx} windows of {ctx}); "
        "give a longer text or ask for fewer tokens"
    )
