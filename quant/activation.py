"""The input side of a LUT linear: slot order, scales and activation codebooks.

Each channel is scaled by u, the norm of its weight column, so that squared distance between scaled
activations is (up to correlations) squared error in the output. That domain is called `y` below:
y = x[perm] * u, with x rotated where the linear rotates (`quant.rotated.orthogonal`). A slot's
stored input_scale is u * rho, where rho brings the integers of its position to full range; where
tokens have scales, to the range that positions have in common, and a token's largest slot then to
full range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

from lutllm.config import CENTROID_LIMIT, STAGE_BITS, LutConfig
from lutllm.rotation import lengths
from quant.kmeans import assign_one, kmeans

#: Tokens that codebooks are fitted on; all calibration tokens are coded with the result.
FIT_TOKENS = 16384
_ITERATIONS = 15
#: Rounds in which codebooks of several stages are fitted to what the others leave.
_JOINT_ROUNDS = 10
_TINY = np.float32(1e-30)


@dataclass(frozen=True)
class InputCode:
    """How the input vector of a linear becomes integers.

    perm         i32[C]            channel of each slot, -1 = padding (C = P * v)
    column_norm  f32[C]            u, zero at padding
    rho          f32[P, v]         integer units per unit of y, before the scale of a token
    length       f32[C]            what a rotated channel is divided by, 1 where none is
    codebook     i8[Sa, P, Ka, v]  scheme "co", else None
    """

    perm: np.ndarray
    column_norm: np.ndarray
    rho: np.ndarray
    length: np.ndarray
    codebook: np.ndarray | None

    def input_scale(self, config: LutConfig) -> np.ndarray:
        """f32[C]: what the artifact stores. Further activation stages ask for a finer grid, to
        which a token's scale brings its activations by itself.
        """
        fine = 1.0 if config.scales_tokens else _finest(config)
        scale = self.column_norm * self.rho.reshape(-1) * np.float32(fine)
        return (scale / self.length).astype(np.float32)


@dataclass(frozen=True)
class CodedInput:
    """Activations as the tables see them.

    codes  u8[P, T] per activation stage
    unit   f32[T], what 1 is worth in each token, or None where it is worth 1 / rho in all
    """

    codes: list[np.ndarray]
    unit: np.ndarray | None


def _finest(config: LutConfig) -> float:
    """Steps of the finest activation grid in a unit of a first-stage centroid."""
    return float(1 << (STAGE_BITS * (config.act_stages - 1)))


def slot_order(importance: np.ndarray, vec_len: int) -> np.ndarray:
    """Channels to slots: the most important channel of a position beside the least important.

    importance: f32[D], output energy of each channel. Returns i32[P*v], -1 = padding. Channels are
    dealt in order of importance, forth and back over the positions, so position 0 holds the
    strongest channel: codes adapt within a position, and positions of like magnitude are
    neighbours, as the shared block exponents need.
    """
    order = np.argsort(-importance, kind="stable")
    positions = -(-len(order) // vec_len)
    perm = np.full((positions, vec_len), -1, np.int32)
    for slot in range(vec_len):
        dealt = order[slot * positions : (slot + 1) * positions]
        column = np.full(positions, -1, np.int32)
        column[: len(dealt)] = dealt
        perm[:, slot] = column[::-1] if slot % 2 else column
    return perm.reshape(-1)


def gather_slots(x: torch.Tensor, perm: np.ndarray, scale: np.ndarray) -> torch.Tensor:
    """x f32[T, D] -> f32[C, T], slot-major, each slot times its scale, padding zero."""
    index = torch.from_numpy(np.maximum(perm, 0).astype(np.int64))
    factor = torch.from_numpy(np.where(perm < 0, 0, scale).astype(np.float32))
    return x.t().contiguous()[index].mul_(factor[:, None])


def column_norms(weight: torch.Tensor) -> np.ndarray:
    """Root mean square of each column, kept away from zero. weight: f32[M, D] -> f32[D]."""
    norm = weight.pow(2).mean(0).sqrt().numpy()
    return np.maximum(norm, 1e-4 * max(float(norm.mean()), 1e-20)).astype(np.float32)


def sample_tokens(tokens: int, limit: int, seed: int) -> np.ndarray:
    """Which of `tokens` to look at where `limit` are enough: i64[at most limit], ascending.

    Drawn at random: a regular step would meet the first token of every window, and those are
    like no other.
    """
    return np.sort(np.random.default_rng(seed).permutation(tokens)[:limit])


def sample_by_energy(energy: np.ndarray, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some `limit` tokens for sums that a few tokens may dominate: what is drawn, and its weights.

    energy: f[T] -> i64[n] ascending, f32[n]. A token is drawn with a probability, at most 1, half
    of which is the same for all and half in proportion to its energy; it counts by the inverse, so
    that weighted sums are on average those over all tokens. All are taken where there are no more.
    """
    tokens = len(energy)
    if tokens <= limit:
        return np.arange(tokens), np.ones(tokens, np.float32)
    share = 0.5 + 0.5 * energy.astype(np.float64) / max(float(energy.mean(dtype=np.float64)), 1e-30)
    certain = np.zeros(tokens, bool)
    while True:
        scale = (limit - certain.sum()) / share[~certain].sum()
        more = ~certain & (scale * share >= 1)
        if not more.any():
            break
        certain |= more
    probability = np.where(certain, 1.0, scale * share)
    drawn = np.flatnonzero(np.random.default_rng(seed).random(tokens) < probability)
    return drawn, (1 / probability[drawn]).astype(np.float32)


def fit_input(
    x: torch.Tensor,
    weight: torch.Tensor,
    config: LutConfig,
    seed: int,
    token_weights: torch.Tensor | None = None,
) -> InputCode:
    """Slot order, scales and codebooks from calibration inputs.

    x: f32[T, D]; weight: f32[M, D]; token_weights: f32[T], how much the error of a token counts.
    """
    if token_weights is None:
        token_weights = torch.ones(len(x))
    norm = column_norms(weight)
    squares = x.pow(2)
    importance = (token_weights @ squares).numpy() * norm**2
    perm = slot_order(importance, config.vec_len)
    slot_norm = np.where(perm < 0, 0, norm[np.maximum(perm, 0)]).astype(np.float32)
    length = lengths(x.shape[1], config.rotation)[np.maximum(perm, 0)]
    if config.scheme == "weight":
        drawn = sample_tokens(len(x), FIT_TOKENS, seed)
        y = gather_slots(x[torch.from_numpy(drawn)], perm, slot_norm).numpy()
        shared = config.codebook_positions > 1
        rho = _common_rho(y) if shared else _token_scaled_rho(y)
        return InputCode(perm, slot_norm, rho.reshape(-1, config.vec_len), length, None)
    energy = token_weights * (squares @ torch.from_numpy(norm**2))
    drawn, weights = sample_by_energy(energy.numpy(), FIT_TOKENS, seed)
    y = gather_slots(x[torch.from_numpy(drawn)], perm, slot_norm).numpy()
    points = y.reshape(-1, config.vec_len, len(drawn))
    weights = weights * token_weights[drawn].numpy()
    unit = None
    if config.token_scale:
        unit = CENTROID_LIMIT / _reach(points, weights)
        points = points * unit[:, None, None]
        token_unit = _token_unit(points)
        points, weights = points / token_unit, weights * np.square(token_unit)
    codebook, unit = _fit_codebooks(points, weights, config, seed, unit)
    rho = np.repeat(unit[:, None], config.vec_len, axis=1)
    return InputCode(perm, slot_norm, rho, length, codebook)


def _reach(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What brings positions to a common range: f32[P, v, n], f32[n] -> f32[P].

    The geometric mean of root mean square and maximum of the position's stronger channel. With
    the former alone positions of heavy tails would set the scale of most tokens, with the latter
    alone a position would have few units for all that is not in its tail. What the calibration
    hardly used must not set the scale of other text: it gets the range of the strongest position.
    """
    top = np.abs(points).max(axis=2)
    rms = np.sqrt(np.square(points) @ (weights / weights.sum()))
    reach = np.sqrt(top * rms).max(axis=1)
    largest = max(float(reach.max()), 1e-20)
    return np.where(reach > 1e-4 * largest, reach, largest).astype(np.float32)


def _token_unit(z: np.ndarray) -> np.ndarray:
    """z f32[..., T] -> f32[T], by which the largest magnitude of each token is 127."""
    top = np.abs(z).reshape(-1, z.shape[-1]).max(axis=0)
    return np.maximum(top, _TINY) / np.float32(CENTROID_LIMIT)


def _fit_codebooks(
    points: np.ndarray,
    weights: np.ndarray,
    config: LutConfig,
    seed: int,
    unit: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Residual codebooks on the integer grid. points: f32[P, v, n], in y or, where tokens have
    scales, in integer units; weights: f32[n]; unit: f32[P], integer units per unit of y in the
    latter case.

    Returns i8[Sa, P, Ka, v] and rho f32[P].
    """
    chebyshev = config.metric == "chebyshev"
    points = np.ascontiguousarray(points)
    stages = []
    rest = points
    for t in range(config.act_stages):
        centroids = kmeans(
            rest, config.act_centroids, _ITERATIONS, seed + 7919 * t, weights, chebyshev
        )
        stages.append(centroids)
        rest = rest - take_centroids(centroids, assign(rest, centroids, chebyshev))
    if config.act_stages > 1:
        _fit_jointly(points, weights, stages, chebyshev)
    grid = np.ones(len(points), np.float32)
    if unit is None:
        usage = code_usage(assign(points, stages[0], chebyshev), config.act_centroids, weights)
        grid = unit = _integer_unit(stages[0], usage)
    integers = []
    for t, centroids in enumerate(stages):
        fine = grid[:, None, None] * np.float32(1 << (STAGE_BITS * t))
        limit = CENTROID_LIMIT
        integers.append(np.clip(np.rint(centroids * fine), -limit, limit).astype(np.int8))
    return np.stack(integers), unit


def _fit_jointly(
    points: np.ndarray, weights: np.ndarray, stages: list[np.ndarray], chebyshev: bool
) -> None:
    """Improve the centroids f32[P, Ka, v] of several stages in place.

    A code is found stage by stage, as kernels do. Given the codes, a centroid is the mean of what
    the other stages leave of its points, which the search that follows may only use better.
    """
    best, found = np.inf, [c.copy() for c in stages]
    for _ in range(_JOINT_ROUNDS + 1):
        codes, rest = [], points
        for centroids in stages:
            codes.append(assign(rest, centroids, chebyshev))
            rest = rest - take_centroids(centroids, codes[-1])
        error = float((np.square(rest).sum(axis=(0, 1), dtype=np.float64) * weights).sum())
        if error < best:
            best, found = error, [c.copy() for c in stages]
        for centroids, chosen in zip(stages, codes, strict=True):
            target = rest + take_centroids(centroids, chosen)
            _means(target, weights, chosen, centroids)
            rest = target - take_centroids(centroids, chosen)
    stages[:] = found


@njit(cache=True, parallel=True)
def _means(points: np.ndarray, weights: np.ndarray, codes: np.ndarray, out: np.ndarray) -> None:
    """out f32[P, K, v] = weighted mean of the points f32[P, v, n] of each code u8[P, n]; unused
    ones stay as they are."""
    for p in prange(len(points)):
        total = np.zeros(out.shape[1])
        sums = np.zeros(out.shape[1:])
        for i in range(codes.shape[1]):
            total[codes[p, i]] += weights[i]
            for j in range(out.shape[2]):
                sums[codes[p, i], j] += weights[i] * points[p, j, i]
        for k in range(out.shape[1]):
            if total[k] > 0:
                for j in range(out.shape[2]):
                    out[p, k, j] = sums[k, j] / total[k]


def code_usage(codes: np.ndarray, count: int, weights: np.ndarray) -> np.ndarray:
    """Share of each centroid. codes: u8[P, n]; weights: f32[n] -> f32[P, count], sums to 1."""
    total = [np.bincount(row, weights, minlength=count) for row in codes]
    return (np.stack(total) / weights.sum()).astype(np.float32)


def _integer_unit(centroids: np.ndarray, usage: np.ndarray) -> np.ndarray:
    """Units per y that lose the least when centroids are rounded to -127 .. 127.

    Full range serves the largest centroid; where a rare outlier would leave no resolution to the
    rest, clipping it may lose less. centroids: f32[P, Ka, v]; usage: f32[P, Ka] -> f32[P].
    """
    top = np.maximum(np.abs(centroids).max(axis=(1, 2)), 1e-20)
    best = np.full(len(centroids), np.inf)
    unit = np.empty(len(centroids), np.float32)
    for half_octaves in range(7):
        trial = (127.0 / top * 2.0 ** (half_octaves / 2)).astype(np.float32)
        scaled = centroids * trial[:, None, None]
        error = (np.clip(np.rint(scaled), -127, 127) - scaled) / trial[:, None, None]
        loss = (usage * (error**2).sum(-1)).sum(-1)
        unit = np.where(loss < best, trial, unit)
        best = np.minimum(loss, best)
    return unit


def _common_rho(y: np.ndarray) -> np.ndarray:
    """The same for all slots, whose weights then are of one size in integer units. y: f32[C, n]."""
    return np.full(len(y), 1.0 / max(float(np.abs(y).max()), 1e-20), np.float32)


def _token_scaled_rho(y: np.ndarray) -> np.ndarray:
    """Per-slot scale for activations that are rounded with one scale a token. y: f32[C, n].

    Between "every channel reaches the same maximum" and "every channel has the same energy" the
    mixture with the least expected rounding error is taken, relative to what a token holds: a few
    tokens a hundred times as large as the others, the first of a text, would choose for them alone.
    """
    y = y / np.maximum(np.sqrt((y**2).mean(axis=0)), _TINY)
    top = np.maximum(np.abs(y).max(axis=1), 1e-20)
    rms = np.maximum(np.sqrt((y**2).mean(axis=1)), 1e-4 * top)
    used = np.abs(y).max(axis=1) > 0
    best, choice = np.inf, 1.0 / top
    for mix in (0.0, 0.25, 0.5, 0.75, 1.0):
        reach = top**mix * rms ** (1 - mix)
        token_top = np.abs(y / reach[:, None]).max(axis=0)
        loss = float((token_top**2).mean() * (reach[used] ** 2).sum())
        if loss < best:
            best, choice = loss, 1.0 / reach
    return np.where(used, choice, 0.0).astype(np.float32)


@njit(cache=True, parallel=True)
def _assign_batch(
    points: np.ndarray, centroids: np.ndarray, codes: np.ndarray, chebyshev: bool
) -> None:
    n = points.shape[2]
    for p in prange(points.shape[0]):
        best = np.empty(n, np.float32)
        found = np.empty(n, np.int32)
        assign_one(points[p], centroids[p], found, best, chebyshev)
        for i in range(n):
            codes[p, i] = found[i]


def assign(points: np.ndarray, centroids: np.ndarray, chebyshev: bool = False) -> np.ndarray:
    """Nearest centroid, lowest index on ties. f32[P, v, n], f32[P, K, v] -> u8[P, n].

    chebyshev: by the largest difference instead of the sum of squares.
    """
    codes = np.empty((len(points), points.shape[2]), np.uint8)
    centroids = np.ascontiguousarray(centroids, np.float32)
    _assign_batch(np.ascontiguousarray(points, np.float32), centroids, codes, chebyshev)
    return codes


@njit(cache=True, parallel=True)
def _take_batch(centroids: np.ndarray, codes: np.ndarray, out: np.ndarray) -> None:
    for p in prange(codes.shape[0]):
        for j in range(centroids.shape[2]):
            for i in range(codes.shape[1]):
                out[p, j, i] = centroids[p, codes[p, i], j]


def take_centroids(centroids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """f32[P, K, v] chosen by u8[P, n] -> f32[P, v, n]."""
    out = np.empty((len(codes), centroids.shape[2], codes.shape[1]), np.float32)
    _take_batch(np.ascontiguousarray(centroids, np.float32), codes, out)
    return out


def input_codes(x: torch.Tensor, code: InputCode, config: LutConfig) -> CodedInput:
    """Activation codes of each stage, scheme "co". x: f32[T, D].

    The search compares float32 squares, which are exact for one stage; with more stages a near tie
    may fall differently from `lutllm.intmath.search`. Chebyshev distances are always exact. With
    token scales, which are divided by here, a value next to a half may be rounded otherwise.
    """
    assert code.codebook is not None
    scale = code.column_norm * code.rho.reshape(-1)
    fine = np.float32(_finest(config))
    z = gather_slots(x, code.perm, scale).numpy()
    unit = None
    if config.token_scale:
        unit = _token_unit(z)
        z /= unit
    limit = np.float32(config.act_limit)
    rest = np.clip(np.rint(z * fine), -limit, limit) / fine
    rest = rest.reshape(-1, config.vec_len, len(x)).astype(np.float32)
    codes = []
    for t in range(config.act_stages):
        centroids = code.codebook[t] / np.float32(1 << (STAGE_BITS * t))
        codes.append(assign(rest, centroids, config.metric == "chebyshev"))
        if t + 1 < config.act_stages:
            rest -= take_centroids(centroids, codes[t])
    return CodedInput(codes, unit)


def decode_input(coded: CodedInput, code: InputCode) -> torch.Tensor:
    """The coded activation in y: f32[C, T]."""
    assert code.codebook is not None
    rho = np.where(code.rho > 0, code.rho, 1.0).astype(np.float32)[:, None, :]
    total = None
    for t, stage in enumerate(coded.codes):
        centroids = code.codebook[t] / (rho * np.float32(1 << (STAGE_BITS * t)))
        chosen = take_centroids(centroids, stage)
        total = chosen if total is None else total + chosen
    assert total is not None
    y = total.reshape(-1, total.shape[-1])
    if coded.unit is not None:
        y *= coded.unit
    return torch.from_numpy(y)


def round_input(x: torch.Tensor, code: InputCode) -> torch.Tensor:
    """The activation rounded with one scale a token, in y, scheme "weight": [T, D] -> [C, T]."""
    rho = np.where(code.rho > 0, code.rho, 1.0).astype(np.float32)
    z = gather_slots(x, code.perm, code.column_norm * code.rho.reshape(-1)).numpy()
    top = np.maximum(np.abs(z).max(axis=0), np.float32(1e-30))
    rounded = np.rint(z * (np.float32(127) / top)) * (top / np.float32(127))
    return torch.from_numpy(rounded / rho.reshape(-1, 1))


def code_input(x: torch.Tensor, code: InputCode, config: LutConfig) -> torch.Tensor:
    """What the tables see of x, back in y: f32[T, D] -> f32[C, T].

    Follows `lutllm.intmath.quantize_activation` and `search`.
    """
    if config.scheme == "weight":
        return round_input(x, code)
    return decode_input(input_codes(x, code, config), code)
