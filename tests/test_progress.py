"""What the progress line says and how often."""

from __future__ import annotations

import io

import pytest

from lutllm.progress import Progress, format_seconds


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (3725, "1h02m")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_plain_lines_every_ten_seconds():
    clock, out = FakeClock(), io.StringIO()
    with Progress(40, "work", stream=out, clock=clock) as progress:
        for _ in range(40):
            clock.now += 1
            progress.advance()
    lines = out.getvalue().splitlines()
    assert lines[0] == "work 10/40, 10s elapsed, 30s left"
    assert lines[-1] == "work 40/40, done in 40s"
    assert len(lines) == 5


def test_time_left_of_a_resumed_stage_counts_new_steps_only():
    clock, out = FakeClock(), io.StringIO()
    progress = Progress(40, "work", done=20, stream=out, clock=clock)
    clock.now += 10
    progress.advance(5)
    assert out.getvalue() == "work 25/40, 10s elapsed, 30s left\n"


def test_terminal_rewrites_one_line():
    clock, out = FakeClock(), Terminal()
    with Progress(4, "work", stream=out, clock=clock) as progress:
        for note in ("a rather long note", "b", "c", "d"):
            clock.now += 0.5
            progress.advance(note=note)
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text.count("\r") == 4  # the start, two updates a second apart, the end


def test_silent_prints_nothing():
    out = io.StringIO()
    with Progress(1, "work", enabled=False, stream=out) as progress:
        progress.advance()
    assert out.getvalue() == ""


def test_interrupted_stage_says_where_it_stopped():
    out = io.StringIO()
    with Progress(3, "work", stream=out) as progress:
        progress.advance()
    assert "work 1/3, stopped after" in out.getvalue()


def test_closed_stream_does_not_stop_the_work():
    out = io.StringIO()
    progress = Progress(1, "work", stream=out)
    out.close()
    progress.close()
