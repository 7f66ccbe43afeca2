"""Random but valid LUT linears and inputs, for tests of kernels and formats."""

from __future__ import annotations

import numpy as np

from lutllm.config import LutConfig
from lutllm.lut_linear import LutLinear, accumulator_bound, pack_codes


def random_linear(
    config: LutConfig,
    in_features: int,
    out_features: int,
    seed: int = 0,
    bias: bool = False,
    name: str = "test.linear",
    exact: bool = False,
) -> LutLinear:
    """A LutLinear with random contents that passes validation.

    exact: no table entry is rounded (`LutLinear.exact` where entries are wide enough).
    """
    rng = np.random.default_rng(seed)
    positions = config.num_positions(in_features)
    groups = config.num_groups(out_features)
    blocks = config.num_blocks(in_features)
    v, sw, sa = config.vec_len, config.weight_stages, config.act_stages
    perm = np.full(positions * v, -1, np.int32)
    perm[rng.permutation(positions * v)[:in_features]] = rng.permutation(in_features)
    codes = rng.integers(0, config.weight_centroids, (sw, positions, out_features), dtype=np.uint8)
    block_shift = np.sort(rng.integers(0, 7, (sa, sw, blocks), dtype=np.uint8), axis=-1)[..., ::-1]
    while accumulator_bound(config, positions, block_shift) >= 1 << 31:
        block_shift = np.maximum(block_shift, 1) - 1
    act_codebook = None
    if config.scheme == "co":
        act_codebook = rng.integers(
            -127, 128, (sa, positions, config.act_centroids, v), dtype=np.int8
        )
        act_codebook[:, :, -1] = act_codebook[:, :, 0]  # a tie: the lowest index must win
    linear = LutLinear(
        name=name,
        config=config,
        in_features=in_features,
        out_features=out_features,
        input_perm=perm,
        input_scale=np.where(
            perm < 0, 0, rng.uniform(20, 60, positions * v) * 8.0 ** (sa - 1)
        ).astype(np.float32),
        act_codebook=act_codebook,
        weight_codebook=rng.integers(
            -127,
            128,
            (sw, config.num_codebooks(in_features), groups, config.weight_centroids, v),
            dtype=np.int8,
        ),
        weight_codes=pack_codes(codes, config.code_bits),
        table_shift=rng.integers(5, 12, (sa, sw, positions, groups), dtype=np.uint8) * (not exact),
        block_shift=np.ascontiguousarray(block_shift),
        output_scale=rng.uniform(1e-4, 1e-3, out_features).astype(np.float32),
        bias=rng.standard_normal(out_features).astype(np.float32) if bias else None,
    )
    linear.validate()
    return linear


def random_input(tokens: int, in_features: int, seed: int = 0) -> np.ndarray:
    """f32[tokens, in_features] with a few large channels and one all-zero token."""
    rng = np.random.default_rng(seed + 1000)
    x = rng.standard_normal((tokens, in_features)).astype(np.float32)
    x[:, :: max(1, in_features // 5)] *= 20
    if tokens > 1:
        x[-1] = 0
    return x
