"""Speed of a loaded model, and the memory bandwidth that bounds it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from lutllm.emulator.cache import KVCache
from lutllm.emulator.floats import KINDS, LANES, WIDTHS
from lutllm.emulator.jit import kernel
from lutllm.emulator.layout import aligned
from lutllm.emulator.model import CHUNK, LutModel
from lutllm.emulator.simd import add, f32x8, load, splat, store
from lutllm.emulator.team import Team, share
from lutllm.errors import ConfigError

#: Larger than any cache, small enough for any machine that holds a model.
BANDWIDTH_BYTES = 256 << 20


@kernel
def _read(data: int, size: int, out: int, arrivals: int, member: int, members: int) -> None:
    """Add up the float32 vectors of this member's share of `size` bytes."""
    first, end = share(size // 256, member, members)
    a = b = c = d = splat(f32x8, 0.0)
    for i in range(first * 256, end * 256, 128):
        a = add(a, load(f32x8, data + i))
        b = add(b, load(f32x8, data + i + 32))
        c = add(c, load(f32x8, data + i + 64))
        d = add(d, load(f32x8, data + i + 96))
    store(out + 4 * LANES * member, add(add(a, b), add(c, d)))


class MemoryProbe:
    """Measures how fast a team reads memory."""

    def __init__(self, team: Team):
        self._team = team
        self._data = np.zeros(BANDWIDTH_BYTES, np.uint8)
        self._data[::4096] = 1  # every page exists
        self._out = aligned((team.size, LANES), np.float32)
        self.gb_per_s()

    def gb_per_s(self) -> float:
        start = time.perf_counter()
        self._team.run(_read, self._data.ctypes.data, self._data.nbytes, self._out.ctypes.data)
        return self._data.nbytes / (time.perf_counter() - start) / 1e9


def decode_bytes(model: LutModel, position: int) -> int:
    """Bytes read to decode one token after `position` tokens: tables, head, norms, cache."""
    config = model.config
    width = WIDTHS[KINDS[model.kv]]
    cached = 2 * width * position * config.kv_size * config.num_hidden_layers
    return model.table_bytes + model.head_bytes + cached


def bench_ids(model: LutModel, text: str | None, count: int) -> np.ndarray:
    """The first `count` tokens of a text, or random ones: i64[count].

    A head behind a LUT linear reads more rows the flatter the predictions are, and behind random
    tokens they are flat: its speed is that on a text.
    """
    if text is None:
        return np.random.default_rng(0).integers(0, model.config.vocab_size, count)
    ids = model.tokenizer.encode(text)
    if len(ids) < count:
        raise ConfigError(f"the text has {len(ids)} tokens, {count} are needed; give a longer one")
    return np.array(ids[:count], np.int64)


def bench(
    model: LutModel,
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    repeats: int = 3,
    batch: int = 0,
    text: str | None = None,
) -> dict[str, Any]:
    """Speed of prefill and decode; medians of `repeats` alternating rounds.

    decode_gb_per_s is what a token reads times tokens/s; memory_gb_per_s what the same threads
    read from memory in between. batch: also decode so many sequences together, tokens of all of
    them counted in batch_tokens_per_s. text: see `bench_ids`.
    """
    ids = bench_ids(model, text, prompt_tokens + decode_tokens)
    probe = MemoryProbe(model.team)
    model.reset()
    model.prefill(ids[: min(CHUNK, prompt_tokens)])  # compiled, buffers in place
    model.decode(int(ids[0])) if prompt_tokens < model.context else None
    caches = [model.new_cache() for _ in range(batch)]
    prefill, decode, together, memory = [], [], [], []
    for _ in range(repeats):
        memory.append(probe.gb_per_s())
        model.reset()
        start = time.perf_counter()
        model.prefill(ids[:prompt_tokens])
        ready = time.perf_counter()
        for token in ids[prompt_tokens:]:
            model.decode(int(token))
        end = time.perf_counter()
        prefill.append(prompt_tokens / (ready - start))
        decode.append(decode_tokens / (end - ready))
        if batch:
            together.append(_batch_speed(model, caches, ids, prompt_tokens))
    per_token = decode_bytes(model, prompt_tokens + decode_tokens // 2)
    speed = float(np.median(decode))
    return {
        "prefill_tokens_per_s": float(np.median(prefill)),
        "decode_tokens_per_s": speed,
        "decode_bytes_per_token": per_token,
        "decode_gb_per_s": per_token * speed / 1e9,
        "memory_gb_per_s": float(np.median(memory)),
        "lookups_per_s": model.lookups_per_token * float(np.median(prefill)),
        "threads": model.threads,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
        "batch": batch,
        "batch_tokens_per_s": float(np.median(together)) if batch else None,
    }


def _batch_speed(
    model: LutModel, caches: list[KVCache], ids: np.ndarray, prompt_tokens: int
) -> float:
    """Tokens per second of all sequences, each with a prompt and the tokens of `ids` behind it."""
    for cache in caches:
        cache.length = 0
        model.prefill(ids[:prompt_tokens], cache)
    start = time.perf_counter()
    for token in ids[prompt_tokens:]:
        model.decode_batch([int(token)] * len(caches), caches)
    steps = len(ids) - prompt_tokens
    return steps * len(caches) / (time.perf_counter() - start)
