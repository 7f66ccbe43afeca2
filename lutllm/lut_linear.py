"""One quantized linear layer: its arrays, what must hold among them, and their packed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutllm.config import LutConfig
from lutllm.errors import ArtifactError

MAX_TABLE_SHIFT = 24
MAX_BLOCK_SHIFT = 23


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes along the last axis, least significant bit first. u8[..., M] -> u8[..., bytes].

    With 4 bits this is two codes a byte, the even one in the low nibble.
    """
    if bits == 8:
        return np.ascontiguousarray(codes, np.uint8)
    if bits == 4:
        even, odd = codes[..., 0::2], codes[..., 1::2]
        out = np.array(even, np.uint8)
        out[..., : odd.shape[-1]] |= (odd << 4).astype(np.uint8)
        return out
    unpacked = np.unpackbits(codes[..., None], axis=-1, bitorder="little", count=bits)
    flat = unpacked.reshape(*codes.shape[:-1], codes.shape[-1] * bits)
    return np.packbits(flat, axis=-1, bitorder="little")


def unpack_codes(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Undo `pack_codes`: u8[..., bytes] -> u8[..., count]."""
    if bits == 8:
        return packed[..., :count]
    if bits == 4:
        both = np.stack([packed & 15, packed >> 4], axis=-1)
        return both.reshape(*packed.shape[:-1], -1)[..., :count]
    flat = np.unpackbits(packed, axis=-1, bitorder="little", count=count * bits)
    return np.packbits(flat.reshape(*packed.shape[:-1], count, bits), axis=-1, bitorder="little")[
        ..., 0
    ]


@dataclass(frozen=True)
class LutLinear:
    """The arrays of one LUT linear; shapes use the letters of `lutllm.config`.

    input_perm      i32[P*v]           channel in each slot, -1 = padding
    input_scale     f32[P*v]           multiplies the gathered activation before rounding
    act_codebook    i8[Sa, P, Ka, v]   scheme "co"; None in scheme "weight"
    weight_codebook i8[Sw, PC, B, Kw, v]  position p has that of p // codebook_positions
    weight_codes    u8[Sw, P, ceil(M * code_bits / 8)] packed by `pack_codes`
    table_shift     u8[Sa, Sw, P, B]   right shift of a dot product to a table entry
    block_shift     u8[Sa, Sw, NB]     left shift of a block's sum of entries
    output_scale    f32[M]
    bias            f32[M] or None
    """

    name: str
    config: LutConfig
    in_features: int
    out_features: int
    input_perm: np.ndarray
    input_scale: np.ndarray
    act_codebook: np.ndarray | None
    weight_codebook: np.ndarray
    weight_codes: np.ndarray
    table_shift: np.ndarray
    block_shift: np.ndarray
    output_scale: np.ndarray
    bias: np.ndarray | None = None

    @property
    def num_positions(self) -> int:
        return self.config.num_positions(self.in_features)

    @property
    def num_groups(self) -> int:
        return self.config.num_groups(self.out_features)

    def exact(self, weight_stage: int) -> bool:
        """Whether the entries of a weight stage are the dot products themselves.

        Then sums of entries are products with decoded centroids, which an engine may compute in
        their place.
        """
        holds = self.config.exact_entries(weight_stage)
        return holds and not self.table_shift[:, weight_stage].any()

    def position_codebooks(self) -> np.ndarray:
        """The weight codebooks of every position: i8[Sw, P, B, Kw, v]."""
        shared = self.config.codebook_positions
        if shared == 1:
            return self.weight_codebook
        return self.weight_codebook[:, np.arange(self.num_positions) // shared]

    def unpack_weight_codes(self) -> np.ndarray:
        """u8[Sw, P, M]."""
        return unpack_codes(self.weight_codes, self.config.code_bits, self.out_features)

    def arrays(self) -> dict[str, np.ndarray]:
        """The stored arrays by field name, absent ones left out."""
        values = {key: getattr(self, key) for key in array_specs(self.config, 1, 1)}
        return {key: value for key, value in values.items() if value is not None}

    def validate(self) -> None:
        """Raise ArtifactError unless every shape, dtype, index and bound holds."""
        specs = array_specs(self.config, self.in_features, self.out_features)
        for key, (dtype, shape, optional) in specs.items():
            value = getattr(self, key)
            if value is None and optional:
                continue
            found = "absent" if value is None else f"{value.dtype}{list(value.shape)}"
            if value is None or value.dtype != dtype or value.shape != shape:
                self._fail(key, f"is {found}; the config asks for {np.dtype(dtype)}{list(shape)}")
        self._validate_inputs()
        self._validate_codes()
        self._validate_shifts()

    def _fail(self, key: str, problem: str) -> None:
        raise ArtifactError(f"{self.name}.{key}: {problem}; the artifact is damaged, make it again")

    def _validate_inputs(self) -> None:
        perm = self.input_perm
        used = perm[perm >= 0]
        if perm.min() < -1 or not np.array_equal(np.sort(used), np.arange(self.in_features)):
            self._fail("input_perm", f"does not name each of {self.in_features} channels once")
        for key in ("input_scale", "output_scale", "bias"):
            value = getattr(self, key)
            if value is not None and not np.isfinite(value).all():
                self._fail(key, "holds a value that is not finite")

    def _validate_codes(self) -> None:
        for key in ("act_codebook", "weight_codebook"):
            value = getattr(self, key)
            if value is not None and value.min() < -127:
                self._fail(key, "holds -128; centroids are -127 to 127")
        top = int(self.unpack_weight_codes().max())
        if top >= self.config.weight_centroids:
            self._fail("weight_codes", f"code {top} of {self.config.weight_centroids} centroids")

    def _validate_shifts(self) -> None:
        high = int(self.table_shift.max())
        if high > MAX_TABLE_SHIFT:
            self._fail("table_shift", f"reaches {high} of {MAX_TABLE_SHIFT}")
        if int(self.block_shift.max()) > MAX_BLOCK_SHIFT:
            self._fail("block_shift", f"reaches {self.block_shift.max()} of {MAX_BLOCK_SHIFT}")
        if accumulator_bound(self.config, self.num_positions, self.block_shift) >= 1 << 31:
            self._fail("block_shift", "the sum over positions could leave 32 bits")


def array_specs(
    config: LutConfig, in_features: int, out_features: int
) -> dict[str, tuple[type, tuple[int, ...], bool]]:
    """dtype, shape and whether it may be absent, for each array of a LUT linear."""
    positions = config.num_positions(in_features)
    groups = config.num_groups(out_features)
    v, stages, act_stages = config.vec_len, config.weight_stages, config.act_stages
    specs: dict[str, tuple[type, tuple[int, ...], bool]] = {
        "input_perm": (np.int32, (positions * v,), False),
        "input_scale": (np.float32, (positions * v,), False),
        "weight_codebook": (
            np.int8,
            (stages, config.num_codebooks(in_features), groups, config.weight_centroids, v),
            False,
        ),
        "weight_codes": (
            np.uint8,
            (stages, positions, -(-out_features * config.code_bits // 8)),
            False,
        ),
        "table_shift": (np.uint8, (act_stages, stages, positions, groups), False),
        "block_shift": (np.uint8, (act_stages, stages, config.num_blocks(in_features)), False),
        "output_scale": (np.float32, (out_features,), False),
        "bias": (np.float32, (out_features,), True),
    }
    if config.scheme == "co":
        shape = (act_stages, positions, config.act_centroids, v)
        specs["act_codebook"] = (np.int8, shape, False)
    return specs


def stored_bytes(config: LutConfig, in_features: int, out_features: int, bias: bool) -> int:
    """Bytes of all arrays of a LUT linear."""
    specs = array_specs(config, in_features, out_features)
    if not bias:
        del specs["bias"]
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape, _ in specs.values())


def accumulator_bound(config: LutConfig, positions: int, block_shift: np.ndarray) -> int:
    """Largest magnitude the accumulator of a layer can reach. block_shift: u8[Sa, Sw, NB]."""
    blocks = np.arange(block_shift.shape[-1])
    sizes = np.minimum(config.block_positions, positions - blocks * config.block_positions)
    per_block = sizes.astype(np.int64) << block_shift.astype(np.int64)
    per_stage = per_block.sum(axis=(0, 2)).tolist()
    return sum(total << (config.entry_bits(s) - 1) for s, total in enumerate(per_stage))
