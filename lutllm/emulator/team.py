"""A team of threads that runs one kernel together, and the barrier they meet at.

Python threads are enough: a kernel releases the GIL for its whole run, and a team has no pool of
its own beside Numba's, OpenMP's or a BLAS library's that could oversubscribe the machine. Every
member runs the same function with its number; work is divided by number, so results do not depend
on how many members there are.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from lutllm.emulator.cpu import available_threads
from lutllm.emulator.jit import inline
from lutllm.emulator.simd import (
    atomic_add,
    atomic_load,
    load_i64,
    pause,
    sleep_while,
    store_i64,
    wake_all,
)
from lutllm.errors import ConfigError

#: Polls before a waiting thread goes to sleep: about what a phase takes on an idle machine.
SPINS = 2000
#: Most halvings of that number.
MOST_HALVINGS = 6
#: Of so many waits that poll less, one polls in full.
PROBE = 16
MAX_THREADS = 256


@inline
def barrier(arrivals: int, phase: int, members: int) -> None:
    """Wait until all members are here: the barrier number `phase` of a run, from 1.

    arrivals: address of four int64 that were zero before the run: arrivals, sleeping threads,
    halvings of SPINS, waits with fewer. On a busy machine a thread may share its processor with the
    one it waits for: then it must sleep, and polling first is lost. So waits that end asleep make
    the next ones poll less, those that do not make them poll more.
    Waking takes long, though, most of all in a virtual machine: longer than a short poll lasts, so
    that threads out of step would put each other to sleep at every barrier from then on. One wait
    in PROBE polls in full and brings them back into step where nothing else is in the way. The
    first barrier of a run waits for threads to be started and says nothing of the machine.
    The last to arrive looks for sleepers after it has counted itself, and a thread looks at the
    count after it has called itself asleep, so one of the two sees the other.
    """
    expected = members * phase
    if atomic_add(arrivals, 1) + 1 == expected:
        if atomic_load(arrivals + 8) > 0:
            wake_all(arrivals)
        return
    halvings = load_i64(arrivals + 16)
    left = SPINS >> halvings
    if halvings > 0:
        waits = load_i64(arrivals + 24) + 1
        store_i64(arrivals + 24, waits)
        if waits % PROBE == 0:
            halvings, left = 1, SPINS
    while atomic_load(arrivals) < expected and left > 0:
        pause()
        left -= 1
    if left > 0:
        if halvings > 0:
            store_i64(arrivals + 16, halvings - 1)
        return
    if phase > 1:
        store_i64(arrivals + 16, min(halvings + 2, MOST_HALVINGS))
    while atomic_load(arrivals) < expected:
        atomic_add(arrivals + 8, 1)
        count = atomic_load(arrivals)
        if count < expected:
            sleep_while(arrivals, count)
        atomic_add(arrivals + 8, -1)


@inline
def share(count: int, member: int, members: int) -> tuple[int, int]:
    """The part first..end of `count` items that belongs to `member`."""
    return count * member // members, count * (member + 1) // members


def _serve(jobs: queue.SimpleQueue) -> None:
    while (job := jobs.get()) is not None:
        done, function, args = job
        try:
            function(*args)
            done.put(None)
        except BaseException as cause:
            done.put(cause)
        del job, done, function, args


def _dismiss(queues: list[queue.SimpleQueue]) -> None:
    for jobs in queues:
        jobs.put(None)


class Team:
    """`size` threads, the caller being the first. Not for use from two threads at once."""

    def __init__(self, size: int | None = None):
        self.size = available_threads() if size is None else size
        if not 1 <= self.size <= MAX_THREADS:
            raise ConfigError(f"threads is {self.size}; it must be 1 to {MAX_THREADS}")
        self._arrivals = np.zeros(16, np.int64)  # a cache line of its own
        self._busy = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._jobs: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in range(self.size - 1)]
        for i, jobs in enumerate(self._jobs):
            name = f"lutllm-{i + 1}"
            threading.Thread(target=_serve, args=(jobs,), name=name, daemon=True).start()
        weakref.finalize(self, _dismiss, self._jobs)

    def run(self, function: Callable[..., Any], *args: Any) -> None:
        """Call function(*args, arrivals, member, size) in every member and wait for all."""
        with self._busy:
            if self._process != os.getpid():  # after a fork there are no threads
                self._start()
            self._arrivals[:] = 0
            arrivals = self._arrivals.ctypes.data + 64
            done: queue.SimpleQueue = queue.SimpleQueue()  # of this run: an interrupt leaves none
            for member, jobs in enumerate(self._jobs, 1):
                jobs.put((done, function, (*args, arrivals, member, self.size)))
            function(*args, arrivals, 0, self.size)
            failures = [done.get() for _ in self._jobs]
        for cause in failures:
            if cause is not None:
                raise cause
