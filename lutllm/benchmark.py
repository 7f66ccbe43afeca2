"""Speed of a loaded artifact, beside the memory speed that bounds its decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lutllm.emulator import LutModel

#: Large enough to leave every cache behind.
MEMORY_BYTES = 256 << 20
_REPEATS = 4


def run_bench(model: LutModel, prompt_tokens: int, decode_tokens: int) -> dict[str, Any]:
    """Prefill and decode speed on random tokens, one sequence.

    decode_gb_per_s   bytes of LUT linears and head that a token reads, times tokens per second
    memory_gb_per_s   what this machine reads from memory with as many threads
    """
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, prompt_tokens)
    model.reset()
    model.prefill(ids[:2])  # compiles what is not compiled yet
    model.decode(0)
    model.reset()
    prefill_s = _seconds(lambda: model.prefill(ids))
    decode_s = _seconds(lambda: [model.decode(0) for _ in range(decode_tokens)])
    token_bytes = model.table_bytes + model.head_bytes
    return {
        "prefill_tokens_per_s": prompt_tokens / prefill_s,
        "decode_tokens_per_s": decode_tokens / decode_s,
        "decode_gb_per_s": token_bytes * decode_tokens / decode_s / 1e9,
        "memory_gb_per_s": memory_bytes_per_s(model.threads) / 1e9,
        "threads": model.threads,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
        "token_bytes": token_bytes,
    }


def memory_bytes_per_s(threads: int, size: int = MEMORY_BYTES) -> float:
    """Bytes a second read from memory by `threads` threads, best of a few runs."""
    parts = np.array_split(np.ones(size // 8, np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = [_seconds(lambda: list(pool.map(np.sum, parts))) for _ in range(_REPEATS)]
    return size / min(seconds)


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return max(time.perf_counter() - begun, 1e-9)
