"""Keys and values of the tokens seen so far, for one sequence."""

from __future__ import annotations

import numpy as np

from lutllm.config import KV_DTYPES
from lutllm.emulator.floats import KEYS
from lutllm.emulator.layout import aligned
from lutllm.model_config import ModelConfig

_FIRST_CAPACITY = 256


class KVCache:
    """Cache that grows by doubling up to `limit` positions.

    kind    "F32" or "F16", half precision
    keys    [L, kv_heads, capacity / KEYS, head_dim, KEYS]: scores of KEYS keys are one vector
    values  [L, kv_heads, capacity, wide], wide = head_dim rounded up to KEYS
    length  positions filled
    table   i64[1 + 2 L]: the capacity, then the addresses of keys and values of each layer; what
            kernels know of a cache
    """

    def __init__(self, config: ModelConfig, limit: int, kind: str = "F32"):
        self._config = config
        self._dtype = np.dtype(KV_DTYPES[kind])
        self.limit = limit
        self.length = 0
        self.table = np.zeros(1 + 2 * config.num_hidden_layers, np.int64)
        self._allocate(min(_FIRST_CAPACITY, -(-limit // KEYS) * KEYS))

    def _allocate(self, capacity: int) -> None:
        config = self._config
        wide = -(-config.head_dim // KEYS) * KEYS
        heads = (config.num_hidden_layers, config.num_key_value_heads)
        self.capacity = capacity
        self.keys = aligned((*heads, capacity // KEYS, config.head_dim, KEYS), self._dtype)
        self.values = aligned((*heads, capacity, wide), self._dtype)
        self.table[0] = capacity
        self.table[1::2] = [keys.ctypes.data for keys in self.keys]
        self.table[2::2] = [values.ctypes.data for values in self.values]

    def reserve(self, length: int) -> None:
        """Make room for `length` positions."""
        if length <= self.capacity:
            return
        keys, values = self.keys, self.values
        most = -(-self.limit // KEYS) * KEYS
        capacity = self.capacity
        while capacity < length:
            capacity *= 2
        self._allocate(min(capacity, most))
        self.keys[:, :, : keys.shape[2]] = keys
        self.values[:, :, : values.shape[2]] = values

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes
