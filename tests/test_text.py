"""Text files to token windows."""

from __future__ import annotations

import numpy as np
import pytest

from calib.text import calibration_windows, read_text, windows
from lutllm.errors import ConfigError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"\xff\xfe\x00a", "not UTF-8 text \\(byte 0\\)"),
        (b"abc\x80def", "byte 3"),
        (b"abc\0def", "zero bytes"),
    ],
)
def test_read_text_refuses(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_text(path)
    assert str(path) in str(error.value)


def test_read_text_missing_and_folder(tmp_path):
    with pytest.raises(ConfigError, match="not found"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path)


def test_read_text_drops_byte_order_mark(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffgrün".encode())
    assert read_text(path) == "grün"


def test_windows_cover_the_text_from_its_beginning():
    out = windows(range(25), 4)
    assert out.dtype == np.int64
    assert np.array_equal(out, np.arange(24).reshape(6, 4))
    assert np.array_equal(windows(range(25), 4, max_tokens=11), np.arange(8).reshape(2, 4))


def test_windows_refuse_what_is_too_short():
    with pytest.raises(ConfigError, match="has 3 tokens, but 4 are needed"):
        windows(range(3), 4)
    with pytest.raises(ConfigError, match="max_tokens is 3"):
        windows(range(10), 4, max_tokens=3)
    with pytest.raises(ConfigError, match="ctx is 1"):
        windows(range(10), 1)


def test_calibration_windows_are_disjoint_spread_and_seeded():
    ids = np.arange(1003)
    out = calibration_windows(ids, 10, 7, seed=3)
    assert out.shape == (7, 10)
    assert np.array_equal(out - out[:, :1], np.tile(np.arange(10), (7, 1)))
    assert np.all(np.diff(out[:, 0]) >= 10)
    thirds = out[:, 0] // 334
    assert set(thirds) == {0, 1, 2}
    assert np.array_equal(out, calibration_windows(ids, 10, 7, seed=3))
    assert not np.array_equal(out, calibration_windows(ids, 10, 7, seed=4))


def test_calibration_windows_use_the_whole_text_when_all_is_asked_for():
    assert np.array_equal(calibration_windows(range(40), 10, 4, 0).ravel(), np.arange(40))


def test_calibration_windows_say_what_is_missing():
    with pytest.raises(ConfigError, match=r"has 39 tokens, but 40 are needed \(4 windows of 10\)"):
        calibration_windows(range(39), 10, 4, 0)
    with pytest.raises(ConfigError, match="at least 1"):
        calibration_windows(range(39), 10, 0, 0)
