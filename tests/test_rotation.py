"""Rotated inputs: the definition against a matrix, the quantizer's against the definition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numba import njit
from scipy.linalg import block_diag, hadamard

from lutllm.config import MAX_ROTATION, LutConfig
from lutllm.emulator.rotation import rotate as rotate_at
from lutllm.emulator.simd import address_of
from lutllm.errors import ConfigError
from lutllm.rotation import lengths, rotate, steps
from quant.rotated import orthogonal, rotated

#: channels, rotation, blocks
CASES = [
    (64, 16, [16] * 4),
    (576, 512, [512, 64]),
    (100, 32, [32, 32, 32, 4]),
    (7, 8, [4, 2, 1]),
    (7, 2, [2, 2, 2, 1]),
    (1, 4, [1]),
    (9, 0, [1] * 9),
]


@pytest.mark.parametrize(("channels", "rotation", "blocks"), CASES)
def test_rotation_is_a_hadamard_matrix_of_every_block(channels, rotation, blocks):
    matrix = block_diag(*(hadamard(n) for n in blocks))
    x = np.random.default_rng(0).integers(-99, 99, (5, channels)).astype(np.float32)
    np.testing.assert_array_equal(rotate(x, rotation), x @ matrix)
    np.testing.assert_allclose(lengths(channels, rotation) ** 2, np.diag(matrix @ matrix))
    assert all(end <= channels and end % (2 * h) == 0 for h, end in steps(channels, rotation))


class Shape(NamedTuple):
    in_features: int
    rotation: int


@njit
def rotate_addresses(shape, x, out):
    rotate_at(shape, address_of(x), address_of(out))


@pytest.mark.parametrize("rotation", [1 << k for k in range(1, 13)])
def test_the_kernel_rotates_to_the_same_bits(rotation):
    rng = np.random.default_rng(1)
    for channels in (1, 7, 8, 20, 24, 31, 48, 100, 576, 896, 1000, 1536, 4864):
        x = rng.standard_normal(channels).astype(np.float32)
        out = np.full(channels + 8, 3, np.float32)
        rotate_addresses(Shape(channels, rotation), x, out)
        np.testing.assert_array_equal(out[:channels], rotate(x[None], rotation)[0])
        assert (out[channels:] == 3).all()


@pytest.mark.parametrize(("channels", "rotation", "blocks"), CASES)
def test_the_quantizer_rotates_likewise(channels, rotation, blocks):
    x = np.random.default_rng(1).standard_normal((6, channels)).astype(np.float32)
    found = rotated(torch.from_numpy(x), rotation).numpy()
    np.testing.assert_array_equal(found.view(np.int32), rotate(x, rotation).view(np.int32))
    turned = orthogonal(torch.from_numpy(x), rotation)
    torch.testing.assert_close(turned @ turned.t(), torch.from_numpy(x @ x.T), rtol=1e-5, atol=1e-4)


def test_input_is_left_alone_and_gradient_is_the_transpose():
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(2)).requires_grad_()
    before = x.detach().clone()
    weight = torch.randn(3, 100, generator=torch.Generator().manual_seed(3))
    (rotated(x, 32) * weight).sum().backward()
    assert torch.equal(x.detach(), before)
    matrix = torch.from_numpy(rotate(np.eye(100, dtype=np.float32), 32))
    torch.testing.assert_close(x.grad, weight @ matrix.t())


@pytest.mark.parametrize("value", [1, 3, 24, -2, 2 * MAX_ROTATION, 4.0])
def test_other_sizes_are_refused(value):
    with pytest.raises(ConfigError, match=f"rotation is {value!r}"):
        LutConfig(rotation=value)


def test_token_scale_is_a_truth():
    with pytest.raises(ConfigError, match="token_scale is 1; it must be true or false"):
        LutConfig(token_scale=1)
