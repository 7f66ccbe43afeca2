"""An artifact that runs: prefill, decode, logits, losses, generated text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.artifact import Artifact
from lutllm.config import KV_DTYPES
from lutllm.emulator.cache import KVCache
from lutllm.emulator.float_tensors import FloatTensors
from lutllm.emulator.floats import KEYS, KINDS, LANES, WIDTHS
from lutllm.emulator.forward import forward, project
from lutllm.emulator.generation import Continuation, Generation
from lutllm.emulator.layout import Arena, PackedLinear, aligned, pack
from lutllm.emulator.linear import act_bytes, scratch_bytes
from lutllm.emulator.records import BUFFERS, QUERIES
from lutllm.emulator.sampling import Sampling
from lutllm.emulator.team import Team
from lutllm.errors import ConfigError
from lutllm.model_config import ModelConfig
from lutllm.notebook import facts_table
from lutllm.rope import rope_tables
from lutllm.tokenizer import Tokenizer

#: Tokens that go through the model together.
CHUNK = 512
#: Tokens whose logits exist at a time while losses are summed.
HEAD_CHUNK = 64


class LutModel:
    """A loaded artifact; not for use from two threads.

    The sequence at work is kept in `cache`; `decode_batch` goes on with several, each with a cache
    of its own from `new_cache`.

    context  positions a sequence may have
    kv       "F32" or "F16": what keys and values are kept as. Half precision takes half the memory
             and its traffic, and rounds: results are then those of no other runtime to the bit
    """

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        context: int | None = None,
        kv: str = "F32",
    ):
        if kv not in KV_DTYPES:
            raise ConfigError(f"kv is {kv!r}; choose {' or '.join(KV_DTYPES)}")
        self.kv = kv
        self.config: ModelConfig = artifact.model
        self.path = artifact.path
        self.context = self._context_limit(context)
        self.team = Team(threads)
        self._check_supported()
        arena = Arena()
        self.linears: list[PackedLinear] = [pack(lin, arena) for lin in artifact.linears()]
        head = artifact.head_linear()
        self._head = None if head is None else pack(head, arena)
        packed = [*self.linears, *([self._head] if self._head else [])]
        self._lins = np.concatenate([p.record for p in packed])
        self._floats = FloatTensors(artifact.path)
        self._decoder = self._floats.decoder(self.config)
        self._decoder["kv_kind"] = KINDS[kv]
        self._layers = self._floats.layers(self.config)
        self._tokenizer: Tokenizer | None = None
        self._arrays: dict[str, np.ndarray] = {}
        self._buffers = np.zeros(1, BUFFERS)
        self._rows = 0
        self._positions = 0
        self.cache = self.new_cache()
        self._reserve_positions(self.cache.capacity)

    @classmethod
    def load(
        cls,
        path: str | Path,
        threads: int | None = None,
        context: int | None = None,
        kv: str = "F32",
    ) -> LutModel:
        """Load an artifact folder. threads: all available by default; context: the model's own."""
        return cls(Artifact.open(path), threads, context, kv)

    @property
    def threads(self) -> int:
        return self.team.size

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_folder(self.path)
        return self._tokenizer

    @property
    def table_bytes(self) -> int:
        """Bytes of the packed LUT linears of the layers."""
        return sum(p.nbytes for p in self.linears)

    @property
    def lookups_per_token(self) -> int:
        """Table lookups that one token needs in the LUT linears of the layers."""
        lins = self._lins[: len(self.linears)]
        stages = lins["act_stages"] * lins["weight_stages"]
        positions = -(-lins["in_features"] // lins["vec_len"])
        return int((lins["out_features"] * positions * stages).sum())

    @property
    def head_bytes(self) -> int:
        """Bytes of the output head that every token reads, row scales included.

        Behind a LUT linear that is the linear: the few rows that it finds come on top.
        """
        if self._head is not None:
            return self._head.nbytes
        dec = self._decoder[0]
        scales = 4 if dec["head_scale"] else 0
        width = self.config.hidden_size * WIDTHS[int(dec["head_kind"])]
        return self.config.vocab_size * (width + scales)

    def _repr_html_(self) -> str:
        config = self.config
        rows = [
            ("model", f"{config.model_type}, {config.num_hidden_layers} layers"),
            ("hidden size, vocabulary", f"{config.hidden_size}, {config.vocab_size}"),
            ("linears", f"{len(self.linears)}, {self.table_bytes / 1e6:.3g} MB packed"),
            ("sequence", f"{self.cache.length} of {self.context} tokens"),
            ("threads", str(self.threads)),
        ]
        return facts_table(self.path.resolve().name, rows)

    def _context_limit(self, context: int | None) -> int:
        most = self.config.max_position_embeddings
        if context is None:
            return most
        if not 1 <= context <= most:
            raise ConfigError(f"context is {context}; this model has 1 to {most} positions")
        return context

    def _check_supported(self) -> None:
        if self.config.hidden_size < LANES:
            raise ConfigError(
                f"hidden_size is {self.config.hidden_size}; the emulator needs {LANES} or more"
            )

    # ------------------------------------------------------------ memory

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> int:
        """(Re)allocate a zeroed buffer; its address goes into the BUFFERS record."""
        array = aligned(shape, dtype)
        array[...] = 0
        self._arrays[name] = array
        self._buffers[name] = array.ctypes.data
        return array.strides[0]

    def _reserve_rows(self, rows: int) -> None:
        """Buffers for `rows` tokens at a time."""
        if rows <= self._rows:
            return
        config, buffers = self.config, self._buffers
        qkv = config.q_size + 2 * config.kv_size
        wide = -(-config.hidden_size // 16) * 16
        for name in ("ids", "positions", "caches"):
            self._array(name, (rows,), np.int64)
        for name in ("scales", "head_scales", "least"):
            self._array(name, (rows,), np.float32)
        buffers["h_bytes"] = self._array("h", (rows, wide), np.float32)
        self._array("normed", (rows, wide), np.float32)
        buffers["act_bytes"] = self._array("act", (rows, act_bytes(self._lins)), np.int8)
        self._array("turns", (2 * len(self._lins) + config.num_hidden_layers,), np.int64)
        for name, width in (
            ("qkv", qkv),
            ("mixed", config.q_size),
            ("gate_up", 2 * config.intermediate_size),
            ("product", config.intermediate_size),
        ):
            buffers[f"{name}_bytes"] = self._array(name, (rows, width), np.float32)
        head = 4 * 4 * wide
        scratch = -(-max(scratch_bytes(self._lins), head) // 64) * 64
        buffers["scratch_bytes"] = self._array("scratch", (self.team.size, scratch), np.uint8)
        self._rows = rows

    def _reserve_positions(self, capacity: int) -> None:
        """Rotary tables and scores for caches of `capacity` positions."""
        if capacity <= self._positions:
            return
        self._positions = capacity
        self._buffers["score_row"] = capacity
        wide = -(-self.config.head_dim // KEYS) * KEYS
        width = QUERIES * (capacity + wide)
        self._buffers["scores_bytes"] = self._array("scores", (self.team.size, width), np.float32)
        for name, table in zip(("cos", "sin"), rope_tables(self.config, capacity), strict=True):
            self._arrays[name] = np.ascontiguousarray(table)
            self._decoder[name] = self._arrays[name].ctypes.data

    # ------------------------------------------------------------ running

    def reset(self) -> None:
        """Start a new sequence."""
        self.cache.length = 0

    def new_cache(self) -> KVCache:
        """An empty cache for a sequence beside the one at work."""
        return KVCache(self.config, self.context, self.kv)

    def _check_ids(
        self, ids: Sequence[int] | np.ndarray, cache: KVCache | None = None
    ) -> np.ndarray:
        """i64[T]: tokens that can be appended to a cache; to none with None."""
        values = np.asarray(ids, np.int64).reshape(-1)
        if not len(values):
            raise ConfigError("there are no tokens to run; give at least one")
        wrong = (values < 0) | (values >= self.config.vocab_size)
        if wrong.any():
            raise ConfigError(
                f"token id {values[wrong][0]} is not in the vocabulary of "
                f"{self.config.vocab_size}; use the tokenizer of {self.path}"
            )
        if cache is not None:
            self._check_room(cache, len(values))
        return values

    def _check_room(self, cache: KVCache, tokens: int) -> None:
        needed = cache.length + tokens
        if needed > self.context:
            raise ConfigError(
                f"the sequence would have {needed} tokens, but the context ends at {self.context}; "
                "shorten the prompt or start a new sequence"
            )

    def _forward(
        self, ids: np.ndarray, caches: Sequence[KVCache], wanted: int, logits: np.ndarray | None
    ) -> None:
        """Run one chunk and advance its caches: as many tokens for each, one after another."""
        each = len(ids) // len(caches)
        self._reserve_rows(len(ids))
        for n, cache in enumerate(caches):
            cache.reserve(cache.length + each)
            self._reserve_positions(cache.capacity)
            rows = slice(n * each, (n + 1) * each)
            self._arrays["positions"][rows] = np.arange(cache.length, cache.length + each)
            self._arrays["caches"][rows] = cache.table.ctypes.data
        self._arrays["ids"][: len(ids)] = ids
        self._arrays["turns"][:] = 0
        self.team.run(
            forward,
            self._decoder,
            self._layers,
            self._lins,
            self._buffers,
            len(ids),
            len(caches),
            wanted,
            0 if logits is None else logits.ctypes.data,
        )
        for cache in caches:
            cache.length += each

    def prefill(self, ids: Sequence[int] | np.ndarray, cache: KVCache | None = None) -> np.ndarray:
        """Append tokens to the sequence of `cache`, of `self.cache` with None.

        Returns the logits f32[V] after the last.
        """
        cache = self.cache if cache is None else cache
        values = self._check_ids(ids, cache)
        out = np.empty(self.config.vocab_size, np.float32)
        for first in range(0, len(values), CHUNK):
            part = values[first : first + CHUNK]
            last = first + CHUNK >= len(values)
            self._forward(part, [cache], int(last), out if last else None)
        return out

    def decode(self, token: int) -> np.ndarray:
        """Append one token; logits f32[V] after it."""
        return self.prefill([token])

    def decode_batch(
        self, tokens: Sequence[int] | np.ndarray, caches: Sequence[KVCache]
    ) -> np.ndarray:
        """Append one token to each of several sequences; logits f32[N, V] after them.

        Everything but attention reads the weights once for all of them. A sequence gets what it
        would get alone, to the bit.
        """
        values = self._check_ids(tokens)
        if len(values) != len(caches) or len({id(cache) for cache in caches}) != len(caches):
            raise ConfigError(
                f"{len(values)} tokens for {len(caches)} caches; each needs one of its own"
            )
        for cache in caches:
            self._check_room(cache, 1)
        out = np.empty((len(values), self.config.vocab_size), np.float32)
        for first in range(0, len(values), CHUNK):
            part = slice(first, first + CHUNK)
            count = len(values[part])
            self._forward(values[part], caches[part], count, out[part])
        return out

    def logits(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits f32[T, V] of a sequence of its own, i64[T]."""
        self.reset()
        values = self._check_ids(ids, self.cache)
        out = np.empty((len(values), self.config.vocab_size), np.float32)
        for first in range(0, len(values), CHUNK):
            part = values[first : first + CHUNK]
            self._forward(part, [self.cache], len(part), out[first:])
        return out

    def nll(self, windows: np.ndarray) -> np.ndarray:
        """Negative log-likelihoods of each window's tokens after its first.

        windows: i64[N, ctx], each a sequence of its own. Returns f64[N, ctx - 1]. Logits of
        HEAD_CHUNK tokens exist at a time.
        """
        windows = np.atleast_2d(np.asarray(windows, np.int64))
        losses = np.empty((len(windows), windows.shape[1] - 1), np.float64)
        logits = np.empty((HEAD_CHUNK, self.config.vocab_size), np.float32)
        for window, row in zip(windows, losses, strict=True):
            self.reset()
            self._check_ids(window, self.cache)
            for first in range(0, len(row), CHUNK):
                part = window[first : min(first + CHUNK, len(row))]
                self._forward(part, [self.cache], len(part), None)
                self._losses(window[first + 1 :], logits, row[first : first + len(part)])
        return losses

    def _losses(self, targets: np.ndarray, logits: np.ndarray, out: np.ndarray) -> None:
        for first in range(0, len(out), HEAD_CHUNK):
            part = np.ascontiguousarray(targets[first : first + HEAD_CHUNK])
            count = min(HEAD_CHUNK, len(out) - first)
            self._arrays["turns"][:] = 0
            self.team.run(
                project,
                self._decoder,
                self._lins,
                self._buffers,
                first,
                count,
                logits.ctypes.data,
                part.ctypes.data,
                out[first:].ctypes.data,
            )

    def capture(
        self, ids: Sequence[int] | np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Inputs f32[T, D] and accumulators i32[T, M] of every linear for a sequence of its own."""
        self.reset()
        values = self._check_ids(ids, self.cache)
        if len(values) > CHUNK:
            raise ConfigError(f"capture takes up to {CHUNK} tokens, not {len(values)}")
        inputs, sums = {}, {}
        for packed in self.linears:
            lin = packed.record[0]
            inputs[packed.name] = np.empty((len(values), int(lin["in_features"])), np.float32)
            sums[packed.name] = np.empty((len(values), int(lin["out_features"])), np.int32)
        tables = [
            np.array([a.ctypes.data for a in arrays.values()], np.int64)
            for arrays in (inputs, sums)
        ]
        self._buffers["capture"], self._buffers["sums"] = (t.ctypes.data for t in tables)
        try:
            self._forward(values, [self.cache], 0, None)
        finally:
            self._buffers["capture"] = self._buffers["sums"] = 0
        return inputs, sums

    def capture_inputs(self, ids: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The input f32[T, D] of every linear by name, for a sequence of its own."""
        return self.capture(ids)[0]

    def capture_stream(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The residual stream f32[T, hidden] after all layers, for a sequence of its own."""
        if len(ids) > CHUNK:
            raise ConfigError(f"capture takes up to {CHUNK} tokens, not {len(ids)}")
        self.logits(ids)
        return self._arrays["h"][: len(ids), : self.config.hidden_size].copy()

    # ------------------------------------------------------------ text

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[dict[str, Any]] | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Continue a prompt, or answer the messages of a chat through the chat template.

        on_text receives the text piece by piece as it is generated.
        """
        sampling = Sampling(temperature, top_p, top_k)
        ids = self._prompt_ids(prompt, messages)
        self.reset()
        text = Continuation(self, ids, self.cache, sampling, max_tokens, seed, on_text)
        start = time.perf_counter()
        logits = self.prefill(ids)
        ready = time.perf_counter()
        while text.push(logits):
            logits = self.decode(text.tokens[-1])
        return text.finish(ready - start, time.perf_counter() - ready)

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[Generation]:
        """Continue several prompts side by side, see `decode_batch`.

        Each text is what `generate` would give it alone. Speeds are those of the whole batch.
        """
        sampling = Sampling(temperature, top_p, top_k)
        texts = [
            Continuation(self, ids, self.new_cache(), sampling, max_tokens, seed)
            for ids in [self._prompt_ids(prompt, None) for prompt in prompts]
        ]
        start = time.perf_counter()
        logits = [self.prefill(text.prompt, text.cache) for text in texts]
        ready = time.perf_counter()
        going = [text for text, row in zip(texts, logits, strict=True) if text.push(row)]
        while going:
            rows = self.decode_batch([t.tokens[-1] for t in going], [t.cache for t in going])
            going = [text for text, row in zip(going, rows, strict=True) if text.push(row)]
        decoding = time.perf_counter() - ready
        return [text.finish(ready - start, decoding) for text in texts]

    def _prompt_ids(
        self, prompt: str | None, messages: Sequence[dict[str, Any]] | None
    ) -> list[int]:
        if (prompt is None) == (messages is None):
            raise ConfigError("give either a prompt or messages")
        if messages is not None:
            return self.tokenizer.encode(self.tokenizer.apply_chat(messages))
        assert prompt is not None
        ids = self.tokenizer.encode_prompt(prompt)
        if not ids:
            raise ConfigError("the prompt is empty; give it some text")
        return ids
