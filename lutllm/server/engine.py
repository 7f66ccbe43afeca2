"""One thread that decodes some sequences together, behind a bounded queue.

A request is a `Job`: its events are handed to a function of the caller, from the engine's thread.
A job that is cancelled ends before its next token, or leaves the queue. A new sequence joins those
that run; its prompt is taken a chunk at a time, with a token for everybody else in between.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutllm.emulator.generation import check_finite
from lutllm.emulator.model import CHUNK, LutModel
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


class Slot:
    """Room for one sequence, and the tokens that the last one left in its cache.

    A prompt that begins like them goes on from there: a chat's next turn runs only what is new.
    Results do not depend on it, since prefill and decode agree to the bit.
    """

    def __init__(self, model: LutModel):
        self._model = model
        self.cache = model.new_cache()
        self._seen: list[int] = []

    def common(self, ids: list[int]) -> int:
        """Tokens of a prompt that the cache holds; the last is run for its logits in any case."""
        limit = min(len(self._seen), len(ids) - 1)
        return next((n for n in range(limit) if self._seen[n] != ids[n]), limit)

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self._seen[length:]
        self.cache.length = length

    def prefill(self, ids: list[int]) -> np.ndarray:
        """Append tokens; logits after the last."""
        logits = self._model.prefill(ids, self.cache)
        self._seen += ids
        return logits

    def appended(self, token: int) -> None:
        """A token was put into the cache from outside."""
        self._seen.append(token)


class Generation:
    """A job at work in a slot: first its prompt, then one token after the other.

    pending  the token chosen last, not in the cache yet; None while the prompt is run and at the
             end
    """

    def __init__(self, model: LutModel, slot: Slot, job: Job):
        self._model, self.slot, self.job = model, slot, job
        work = job.work
        self._rng = np.random.default_rng(work.seed)
        self._stream, self._stops = model.tokenizer.stream_decoder(), StopFilter(work.stop)
        self._count = 0
        self._cached = slot.common(work.ids)
        self._left = work.ids[self._cached :]
        self.pending: int | None = None
        self.ended = False
        slot.cut(self._cached)

    def _emit(self, event: Event) -> None:
        if not self.job.cancelled.is_set():
            self.job.emit(event)

    def run_prompt(self) -> None:
        """One chunk of the prompt, and the first token behind its last."""
        chunk, self._left = self._left[:CHUNK], self._left[CHUNK:]
        logits = self.slot.prefill(chunk)
        if not self._left:
            self.take(logits)

    def take(self, logits: np.ndarray) -> None:
        """Choose the next token: f32[V] after all before it."""
        work, model = self.job.work, self._model
        token = work.sampling.choose(check_finite(logits, model.path), self._rng)
        if token in model.tokenizer.eos_ids:
            self._end("stop")
            return
        self._count += 1
        if text := self._stops.push(self._stream.push(token)):
            self._emit(Piece(text))
        if self._stops.hit:
            self._end("stop")
        elif self._count == work.max_tokens or self.slot.cache.length == model.context:
            self._end("length")
        else:
            self.pending = token

    def _end(self, reason: str) -> None:
        if text := self._stops.push(self._stream.finish()) + self._stops.finish():
            self._emit(Piece(text))
        reason = "stop" if self._stops.hit else reason
        prompt = len(self.job.work.ids)
        self._emit(Done(reason, prompt, self._count, self._cached))
        self.stop()

    def fail(self, cause: Exception) -> None:
        """End with a message; what the slot's cache holds is not known any more."""
        self.slot.cut(0)
        self._emit(Failed(str(cause) or type(cause).__name__))
        self.stop()

    def stop(self) -> None:
        """No more of it."""
        self.pending, self.ended = None, True


class Engine:
    """The thread and its queue.

    queue  jobs that may wait behind those at work
    batch  jobs at work together, at most
    """

    def __init__(self, model: LutModel, queue: int, batch: int = 1):
        self.model = model
        self.queue, self.batch = queue, batch
        self._free = [Slot(model) for _ in range(batch)]
        self._waiting: deque[Job] = deque()
        self._current: list[Generation] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="lutllm-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._current)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, work: Work, emit: Callable[[Event], None]) -> Job:
        """Queue `work`; Busy where there is no room."""
        job = Job(work, emit)
        with self._changed:
            if self._closed or self.waiting + self.running >= self.queue + self.batch:
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
            for job in [*self._waiting, *(generation.job for generation in self._current)]:
                job.cancelled.set()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _admit(self) -> bool:
        """Wait for work and give waiting jobs free slots; False at the end."""
        with self._changed:
            while not self._waiting and not self._current and not self._closed:
                self._changed.wait()
            while self._waiting and self._free:
                job = self._waiting.popleft()
                slot = max(self._free, key=lambda slot: slot.common(job.work.ids))
                self._free.remove(slot)
                self._current.append(Generation(self.model, slot, job))
            return not self._closed

    def _leave(self) -> None:
        """Take back the slots of what has ended."""
        with self._changed:
            for generation in self._current:
                if generation.job.cancelled.is_set():
                    generation.stop()
            self._free += [g.slot for g in self._current if g.ended]
            self._current = [g for g in self._current if not g.ended]

    def _serve(self) -> None:
        while self._admit():
            self._leave()  # a job may have been cancelled meanwhile
            prompt = next((g for g in self._current if g.pending is None), None)
            if prompt:
                self._guard([prompt], prompt.run_prompt)
            ready = [g for g in self._current if g.pending is not None]
            if ready:
                self._guard(ready, self._decode, ready)
            self._leave()

    def _decode(self, ready: list[Generation]) -> None:
        """One token for every sequence that has one pending."""
        tokens = [t for generation in ready if (t := generation.pending) is not None]
        logits = self.model.decode_batch(tokens, [g.slot.cache for g in ready])
        for generation, token, row in zip(ready, tokens, logits, strict=True):
            generation.slot.appended(token)
            generation.pending = None
            self._guard([generation], generation.take, row)

    @staticmethod
    def _guard(generations: list[Generation], step: Callable[..., None], *args: Any) -> None:
        """A failure ends the jobs it concerns, not the engine: others may be able to run."""
        try:
            step(*args)
        except Exception as cause:
            for generation in generations:
                generation.fail(cause)
