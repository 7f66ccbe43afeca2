"""Progress of a long stage on stderr: steps done, time elapsed, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

#: Seconds between two updates of the line on a terminal, and between two lines elsewhere.
TTY_INTERVAL_S = 1.0
LINE_INTERVAL_S = 10.0


def format_seconds(seconds: float) -> str:
    """A duration as people read it: "4s", "3m05s", "1h02m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Counts `total` steps of the stage `label` and reports them on stderr.

    On a terminal one line is rewritten at most once a second; elsewhere a plain line appears about
    every ten seconds. `enabled=False` prints nothing. `done` steps were finished in an earlier run;
    the time left is judged from the steps since.

        with Progress(len(layers), "quantizing") as progress:
            for layer in layers:
                ...
                progress.advance(note=layer.name)
    """

    def __init__(
        self,
        total: int,
        label: str,
        enabled: bool = True,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total = total
        self.label = label
        self.done = self._done_before = done
        self._note = ""
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._clock = clock
        self._tty = self._stream.isatty()
        self._interval = TTY_INTERVAL_S if self._tty else LINE_INTERVAL_S
        self._start = clock()
        self._printed_at = self._start
        self._width = 0
        self._closed = False
        if enabled and self._tty:
            self._print(self.line())

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more steps; `note` says what the last one was."""
        self.done += n
        self._note = note
        now = self._clock()
        if self._enabled and now - self._printed_at >= self._interval:
            self._printed_at = now
            self._print(self.line())

    def line(self) -> str:
        """The report as it would be printed now."""
        elapsed = self._clock() - self._start
        parts = [f"{self.label} {self.done}/{self.total}", f"{format_seconds(elapsed)} elapsed"]
        steps = self.done - self._done_before
        if steps > 0 and self.done < self.total:
            left = elapsed / steps * (self.total - self.done)
            parts.append(f"{format_seconds(left)} left")
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)

    def close(self) -> None:
        """Print the last line: how far the stage came and how long it took."""
        if self._closed:
            return
        self._closed = True
        if not self._enabled:
            return
        elapsed = format_seconds(self._clock() - self._start)
        verb = "done in" if self.done >= self.total else "stopped after"
        self._print(f"{self.label} {self.done}/{self.total}, {verb} {elapsed}")
        if self._tty:
            self._write("\n")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _print(self, line: str) -> None:
        if self._tty:
            padding = " " * max(0, self._width - len(line))
            self._width = len(line)
            self._write(f"\r{line}{padding}")
        else:
            self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        """Write to the stream; a reader that went away does not stop the work."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._enabled = False
