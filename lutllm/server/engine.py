"""One thread that runs one sequence at a time, behind a bounded queue.

A request is a `Job`: its events are handed to a function of the caller, from the engine's thread.
A job that is cancelled ends before its next token, or leaves the queue.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lutllm.emulator.model import CHUNK, LutModel, check_finite
from lutllm.emulator.sampling import Sampling
from lutllm.server.stops import StopFilter


@dataclass(frozen=True)
class Work:
    """What to generate. ids: the prompt, at least one token; max_tokens: at least 1."""

    ids: list[int]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that was generated."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end. finish_reason: "stop" or "length"; cached_tokens: of the prompt, not run again."""

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Failed:
    """The end of a job that could not be run."""

    message: str


Event = Piece | Done | Failed


class Busy(Exception):
    """The queue is full, or the engine is closed."""


class Job:
    """A request in the queue or at work; `emit` gets its events, none after `cancel`."""

    def __init__(self, work: Work, emit: Callable[[Event], None]):
        self.work, self.emit = work, emit
        self.cancelled = threading.Event()


class Sequences:
    """Runs sequences on a model, and keeps what the last one left in the cache.

    A prompt that begins like the sequence before goes on from there: a chat's next turn runs only
    what is new. Results do not depend on it, since prefill and decode agree to the bit.
    """

    def __init__(self, model: LutModel):
        self.model = model
        self._seen: list[int] = []

    def _start(self, ids: list[int]) -> int:
        """Begin a sequence; returns how many of its tokens the cache holds."""
        common = 0
        limit = min(len(self._seen), len(ids) - 1)  # the last token is run for its logits
        while common < limit and self._seen[common] == ids[common]:
            common += 1
        del self._seen[common:]
        self.model.reset()
        self.model.cache.length = common
        return common

    def _append(self, ids: list[int]) -> np.ndarray:
        logits = self.model.prefill(ids)
        self._seen += ids
        return logits

    def run(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[Event]:
        """The events of `work`; ends without `Done` once `cancelled` says so."""
        model, rng = self.model, np.random.default_rng(work.seed)
        cached = self._start(work.ids)
        for first in range(cached, len(work.ids), CHUNK):
            if cancelled():
                return
            logits = self._append(work.ids[first : first + CHUNK])
        stream, stops = model.tokenizer.stream_decoder(), StopFilter(work.stop)
        count, reason = 0, "length"
        while count < work.max_tokens:
            if cancelled():
                return
            token = work.sampling.choose(check_finite(logits, model.path), rng)
            if token in model.tokenizer.eos_ids:
                reason = "stop"
                break
            count += 1
            if text := stops.push(stream.push(token)):
                yield Piece(text)
            if stops.hit or count == work.max_tokens or model.cache.length == model.context:
                break
            logits = self._append([token])
        if text := stops.push(stream.finish()) + stops.finish():
            yield Piece(text)
        yield Done("stop" if stops.hit else reason, len(work.ids), count, cached)


class Engine:
    """The thread and its queue. `queue`: jobs that may wait behind the one at work."""

    def __init__(self, model: LutModel, queue: int):
        self.model = model
        self.queue = queue
        self._sequences = Sequences(model)
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="lutllm-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> bool:
        return self._current is not None

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, work: Work, emit: Callable[[Event], None]) -> Job:
        """Queue `work`; Busy where there is no room."""
        job = Job(work, emit)
        with self._changed:
            ahead = len(self._waiting) + self.running
            if self._closed or ahead > self.queue:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """End a job early; nothing happens to one that has ended."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.cancelled.set()
            self._waiting.clear()
            if self._current:
                self._current.cancelled.set()
            self._changed.notify()
        self._thread.join()

    def _next(self) -> Job | None:
        with self._changed:
            self._current = None
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._current = self._waiting.popleft()
            return self._current

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)

    def _run(self, job: Job) -> None:
        """A failure ends its job, not the engine: the next job may be able to run."""
        try:
            for event in self._sequences.run(job.work, job.cancelled.is_set):
                job.emit(event)
        except Exception as cause:
            self._sequences = Sequences(self.model)
            if not job.cancelled.is_set():
                job.emit(Failed(str(cause) or type(cause).__name__))
