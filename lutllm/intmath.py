"""The integer arithmetic of a LUT linear: the plain numpy definition everything else must equal.

The emulator's kernels, the ONNX graph and the HLS engines are tested against these functions to
the bit. Float steps are single float32 operations in the stated order, so they too are exact.

    x_int  rotated, quantized activation  `quantize_activation`
    codes  nearest activation centroid    `search`           (scheme "co")
    rows   table entries of a position    `table_rows`
    acc    integer sum over positions     `lookup_accumulate`
    y      = acc * output_scale (* token_scale) + bias       `dequantize`
"""

from __future__ import annotations

import numpy as np

from lutllm.config import CENTROID_LIMIT, STAGE_BITS, TINY_INPUT
from lutllm.lut_linear import LutLinear
from lutllm.rotation import rotate


def gather_input(x: np.ndarray, input_perm: np.ndarray) -> np.ndarray:
    """Channels in coding order, zero where a slot is padding.

    x: f32[T, D]; input_perm: i32[P*v], -1 = padding. Returns f32[T, P*v].
    """
    padded = input_perm < 0
    out = x[:, np.where(padded, 0, input_perm)]
    out[:, padded] = 0.0
    return out


def quantize_activation(x: np.ndarray, linear: LutLinear) -> tuple[np.ndarray, np.ndarray | None]:
    """Integer activations and, where every token has one, its scale.

    x: f32[T, D]. Returns x_int i32[T, P, v] and token_scale f32[T] or None.

    z = rotate(x)[perm] * input_scale, and with limit = `LutConfig.act_limit`
    with token scales: top = max |z|; x_int = rint(z * (limit / top)); token_scale = top / 127;
                       a token with top <= TINY_INPUT is zero: limit / top must be finite
    without:           x_int = clamp(rint(z), +-limit)
    rint rounds halves to even, as IEEE 754 does.
    """
    config = linear.config
    z = gather_input(rotate(x, config.rotation), linear.input_perm) * linear.input_scale
    token_scale = None
    limit = config.act_limit
    if config.scales_tokens:
        top = np.abs(z).max(axis=1)
        inverse = np.zeros_like(top)
        np.divide(np.float32(limit), top, out=inverse, where=top > TINY_INPUT)
        token_scale = top / np.float32(CENTROID_LIMIT)
        z = z * inverse[:, None]
    x_int = np.clip(np.rint(z), -limit, limit).astype(np.int32)
    return x_int.reshape(len(x), -1, config.vec_len), token_scale


def search(x_int: np.ndarray, act_codebook: np.ndarray, metric: str) -> np.ndarray:
    """Nearest activation centroid per position and stage; ties go to the lowest index.

    x_int: i32[T, P, v]; act_codebook: i8[Sa, P, Ka, v]; metric: of `lutllm.config.METRICS`.
    Returns codes u8[T, Sa, P].
    Stage t codes the rest left by the stages before, on a grid 8^t times finer.
    """
    stages = len(act_codebook)
    rest = x_int.astype(np.int32)
    codes = np.empty((len(x_int), stages, x_int.shape[1]), np.uint8)
    for t in range(stages):
        centroids = act_codebook[t].astype(np.int32) << (STAGE_BITS * (stages - 1 - t))
        difference = rest[:, :, None, :] - centroids[None]
        if metric == "chebyshev":
            distance = np.abs(difference).max(axis=-1)
        else:
            distance = (difference**2).sum(axis=-1)
        codes[:, t] = distance.argmin(axis=-1)
        rest = rest - _pick(centroids, codes[:, t])
    return codes


def _pick(centroids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """centroids [P, K, v] chosen by codes [T, P] -> [T, P, v]."""
    return centroids[np.arange(len(centroids))[None, :], codes]


def table_entry(dot: np.ndarray, shift: np.ndarray, bits: np.ndarray | int) -> np.ndarray:
    """saturate(round(dot / 2^shift)), halves away from zero, to a signed integer of `bits` bits.

    dot: i32, shift: i32 >= 0, bits: 4 to 16, broadcast together. Returns i16. The rounding is
    (dot - (dot < 0) + 2^(shift-1)) >> shift; with shift 0 there is none. Halves rounded up would
    give every entry a bias of 2^-(shift+1), which adds up over positions to an offset common to
    all outputs.
    """
    limit = np.int32(1) << (bits - 1)
    half = (np.int32(1) << shift) >> 1
    rounded = (dot - ((dot < 0) & (shift > 0)) + half) >> shift
    return np.clip(rounded, -limit, limit - 1).astype(np.int16)


def table_rows(activation: np.ndarray, linear: LutLinear, act_stage: int) -> np.ndarray:
    """The table row of every position, group and weight stage for given integer vectors.

    activation: i32[N, P, v]: centroids (scheme "co") or x_int (scheme "weight").
    Returns i16[N, Sw, P, B, Kw].
    """
    codebook = linear.position_codebooks().astype(np.int32)
    dot = np.einsum("npv,spbkv->nspbk", activation.astype(np.int32), codebook)
    shift = linear.table_shift[act_stage].astype(np.int32)[None, :, :, :, None]
    bits = np.array([linear.config.entry_bits(s) for s in range(linear.config.weight_stages)])
    return table_entry(dot, shift, bits[:, None, None, None])


def full_table(linear: LutLinear, act_stage: int = 0) -> np.ndarray:
    """The 2D tables of scheme "co": i16[Ka, Sw, P, B, Kw], row a for activation centroid a."""
    assert linear.act_codebook is not None
    return table_rows(np.swapaxes(linear.act_codebook[act_stage], 0, 1), linear, act_stage)


def lookup_accumulate(rows: np.ndarray, linear: LutLinear, act_stage: int) -> np.ndarray:
    """Integer sum over positions for one activation stage.

    rows: i16[T, Sw, P, B, Kw] from `table_rows`. Returns i32[T, M]:
    sum over stages and blocks of (sum over the block of row[weight code]) << block_shift.
    """
    config = linear.config
    codes = linear.unpack_weight_codes()
    group = np.arange(linear.out_features) // config.group_size
    block = np.arange(linear.num_positions) // config.block_positions
    acc = np.zeros((len(rows), linear.out_features), np.int64)
    for s in range(config.weight_stages):
        for p in range(linear.num_positions):
            picked = rows[:, s, p][:, group, codes[s, p]].astype(np.int64)
            acc += picked << int(linear.block_shift[act_stage, s, block[p]])
    return acc.astype(np.int32)


def accumulate(x: np.ndarray, linear: LutLinear) -> tuple[np.ndarray, np.ndarray | None]:
    """Everything up to the integer accumulators. x: f32[T, D] -> i32[T, M], token_scale or None."""
    x_int, token_scale = quantize_activation(x, linear)
    if linear.config.scheme == "weight":
        return lookup_accumulate(table_rows(x_int, linear, 0), linear, 0), token_scale
    assert linear.act_codebook is not None
    codes = search(x_int, linear.act_codebook, linear.config.metric)
    acc = np.zeros((len(x), linear.out_features), np.int32)
    for t in range(linear.config.act_stages):
        chosen = _pick(linear.act_codebook[t].astype(np.int32), codes[:, t])
        acc += lookup_accumulate(table_rows(chosen, linear, t), linear, t)
    return acc, token_scale


def dequantize(acc: np.ndarray, token_scale: np.ndarray | None, linear: LutLinear) -> np.ndarray:
    """f32(acc) * output_scale, then * token_scale, then + bias; each step rounded to float32."""
    y = acc.astype(np.float32) * linear.output_scale
    if token_scale is not None:
        y = y * token_scale[:, None]
    return y if linear.bias is None else y + linear.bias


def lut_linear(x: np.ndarray, linear: LutLinear) -> np.ndarray:
    """y = W x + b through the tables. x: f32[T, D] -> f32[T, M]."""
    return dequantize(*accumulate(x, linear), linear)
