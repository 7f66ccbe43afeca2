"""What a layer does beside its linears: values and gradients are those of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calib.matmul import narrowed, widened, words
from calib.operators import causal_attention, maximum, rms_norm, rotate_heads, swiglu

Operation = Callable[..., torch.Tensor]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(operation: Operation, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The value and the gradient of each input, of a random projection of the value."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = operation(*leaves)
    (y.float() * random(*y.shape, seed=9)).sum().backward()
    return [y.detach().float(), *(x.grad.float() for x in leaves)]


def same(found: list[torch.Tensor], expected: list[torch.Tensor], within: float = 1e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).norm() / b.norm()) < within


@pytest.mark.parametrize("shape", [(37, 50), (2, 5, 3, 16)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    inputs = random(*shape), random(shape[-1], seed=1)
    plain = results(lambda x, w: F.rms_norm(x, (shape[-1],), w, 1e-5), *inputs)
    same(results(lambda x, w: rms_norm(x, w, 1e-5), *inputs), plain)


def test_rms_norm_of_heads_that_are_not_contiguous() -> None:
    x = random(2, 5, 6, 8)
    head = x[:, :, 1:3]
    assert torch.equal(
        rms_norm(head, torch.ones(8), 1e-6), rms_norm(head.clone(), torch.ones(8), 1e-6)
    )


def test_swiglu_of_small_and_large_gates() -> None:
    x = random(23, 70, scale=20)
    x[0, :3] = torch.tensor([0.0, 200.0, -200.0])

    def plain(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, 1)
        return F.silu(gate) * up

    same(results(swiglu, x), results(plain, x))


def test_rotation_leaves_the_last_heads_alone() -> None:
    x, angle = random(2, 7, 5, 8), random(7, 4, seed=1)
    cos, sin = angle.cos(), angle.sin()

    def plain(x: torch.Tensor) -> torch.Tensor:
        first, second = x[:, :, :3].chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        turned = torch.cat([first * c - second * s, second * c + first * s], -1)
        return torch.cat([turned, x[:, :, 3:]], 2)

    same(results(lambda x: rotate_heads(x, cos, sin, 3), x), results(plain, x))


@pytest.mark.parametrize(("scale", "within"), [(1.0, 0.01), (12.0, 0.05)])
def test_attention_in_bfloat16(scale: float, within: float) -> None:
    """Large scores as well: some shares of attention are then 0."""
    inputs = (random(2, 6, 70, 16, scale=scale), random(2, 2, 70, 16, seed=1), random(2, 2, 70, 16))
    halves = [x.to(torch.bfloat16) for x in inputs]
    exact = results(causal_attention, *(x.float() for x in halves))
    same(results(causal_attention, *halves), exact, within)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 50])
def test_maximum(size: int) -> None:
    for seed in range(5):
        x = random(size, seed=seed).numpy()
        assert maximum.py_func(x) == x.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_words_hold_what_torch_rounds_to(dtype: torch.dtype) -> None:
    x = torch.cat([random(50), torch.tensor([0.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1e30])])
    out = torch.empty(len(x), dtype=dtype)
    narrowed.py_func(x.numpy().view(np.uint32), words(out))
    assert torch.equal(out, x.to(dtype))
    bits = np.empty(len(x), np.uint32)
    widened.py_func(words(out), bits)
    assert np.array_equal(bits.view(np.float32), out.float().numpy())


def test_threads_do_not_matter() -> None:
    import numba

    inputs = random(300, 40), random(40, seed=1)
    found = []
    before = numba.get_num_threads()
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            found.append(results(lambda x, w: rms_norm(x, w, 1e-5), *inputs))
    finally:
        numba.set_num_threads(before)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
