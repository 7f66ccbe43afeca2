"""Integer weight codebooks for one position and one row group, fitted in a given metric.

Points live in three domains. `w` f32[v, n] is the target in weight units; z = T^T w is the whitened
domain in which squared distance is the objective; the stored centroid is an integer per coordinate,
centroid = integer * step[j] * 2^exponent. Rounding to integers happens here, inside the search for
codes, so that error feedback sees it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from quant.kmeans import assign_one, kmeans, lloyd_one, update_one

#: Sums of centroids, one of each stage, up to which codes of all stages are searched at once.
#: Measured on normal vectors, three stages of 16: 3 dB less error than one stage at a time, and
#: another one with centroids fitted to what the search finds.
JOINT_LIMIT = 4096
#: Sums up to which codes and centroids are improved so many times as often: it costs little there,
#: and the error of two stages of 16 is still 5 % lower.
_FEW_SUMS, _MORE_ROUNDS = 256, 3
_LOWEST_EXPONENT = -60
#: In the place of an exponent: the best one.
FREE = -1000


def gaussian_template(count: int, vec_len: int) -> np.ndarray:
    """f32[count, vec_len]: fitted to a unit normal, the start of weight codebooks."""
    rng = np.random.default_rng(1)
    sample = rng.standard_normal((1, vec_len, 64 * count)).astype(np.float32)
    return kmeans(sample, count, 30, seed=1)[0]


@njit(cache=True)
def place_template(
    points: np.ndarray, weights: np.ndarray, template: np.ndarray, centroids: np.ndarray
) -> None:
    """centroids = mean + template * spread, the spread per coordinate. points: f32[v, n]."""
    v, n = points.shape
    mass = 0.0
    for i in range(n):
        mass += weights[i]
    for j in range(v):
        first, second = 0.0, 0.0
        for i in range(n):
            first += weights[i] * points[j, i]
            second += weights[i] * points[j, i] * points[j, i]
        mean = first / mass if mass > 0 else 0.0
        spread = math.sqrt(max(0.0, second / mass - mean * mean)) if mass > 0 else 0.0
        for k in range(template.shape[0]):
            centroids[k, j] = np.float32(mean + template[k, j] * spread)


@njit(cache=True)
def _linear_map(points: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    """out[:, i] = matrix^T points[:, i]. points, out: f32[v, n]; matrix: f32[v, v]."""
    v, n = points.shape
    for j in range(v):
        c = matrix[0, j]
        for i in range(n):
            out[j, i] = c * points[0, i]
        for m in range(1, v):
            c = matrix[m, j]
            for i in range(n):
                out[j, i] += c * points[m, i]


@njit(cache=True)
def round_centroids(
    centroids: np.ndarray,
    matrix: np.ndarray,
    inverse: np.ndarray,
    step: np.ndarray,
    exponent: int,
    integers: np.ndarray,
) -> int:
    """Round whitened centroids to integers and put the rounded ones back.

    centroids: f32[K, v] in z, replaced by their rounded values; matrix, inverse: f32[v, v] with
    z = matrix^T w; step: f32[v]; exponent: e, or FREE for the smallest with which no integer is
    beyond 127; integers: i8[K, v] out. Returns e: centroid_w[j] = integer[j] * step[j] * 2^e.
    """
    count, v = centroids.shape
    plain = np.empty((count, v), np.float32)
    top = 0.0
    for k in range(count):
        for j in range(v):
            total = np.float32(0)
            for m in range(v):
                total += centroids[k, m] * inverse[m, j]
            plain[k, j] = total
            top = max(top, abs(total) / step[j])
    if exponent == FREE:
        exponent = _LOWEST_EXPONENT
        if top > 0:
            exponent = max(_LOWEST_EXPONENT, math.ceil(math.log2(top / 127.0)))
    unit = 2.0**exponent
    for k in range(count):
        for j in range(v):
            whole = int(np.rint(plain[k, j] / (step[j] * unit)))
            whole = min(127, max(-127, whole))
            integers[k, j] = whole
            plain[k, j] = np.float32(whole * step[j] * unit)
    for k in range(count):
        for j in range(v):
            total = np.float32(0)
            for m in range(v):
                total += plain[k, m] * matrix[m, j]
            centroids[k, j] = total
    return exponent


@njit(cache=True)
def _subtract_stages(
    points: np.ndarray, centroids: np.ndarray, codes: np.ndarray, skip: int, out: np.ndarray
) -> None:
    """out = points - sum of the chosen centroids of every stage but `skip`."""
    out[:] = points
    for s in range(centroids.shape[0]):
        if s == skip:
            continue
        for j in range(points.shape[0]):
            for i in range(points.shape[1]):
                out[j, i] -= centroids[s, codes[s, i], j]


@njit(cache=True)
def _assign_stages(
    points: np.ndarray, centroids: np.ndarray, codes: np.ndarray, best: np.ndarray
) -> None:
    """Codes of all stages for the given centroids f32[S, K, v]; codes: i32[S, n] in and out.

    All stages at once where that is at most JOINT_LIMIT sums, else one at a time in turn.
    """
    stages, count, _ = centroids.shape
    if stages == 1:
        assign_one(points, centroids[0], codes[0], best)
        return
    if count**stages <= JOINT_LIMIT:
        joint = np.empty(points.shape[1], np.int32)
        assign_one(points, _all_sums(centroids), joint, best)
        for i in range(joint.size):
            code = joint[i]
            for s in range(stages - 1, -1, -1):
                codes[s, i] = code % count
                code //= count
        return
    rest = np.empty_like(points)
    for _ in range(2):
        for s in range(stages):
            _subtract_stages(points, centroids, codes, s, rest)
            assign_one(rest, centroids[s], codes[s], best)


@njit(cache=True)
def _all_sums(centroids: np.ndarray) -> np.ndarray:
    """f32[K^S, v]: centroids f32[S, K, v], one of each stage, the last changing fastest."""
    stages, count, v = centroids.shape
    sums = np.zeros((count**stages, v), np.float32)
    for i in range(len(sums)):
        code = i
        for s in range(stages - 1, -1, -1):
            for j in range(v):
                sums[i, j] += centroids[s, code % count, j]
            code //= count
    return sums


@njit(cache=True)
def _rounds(sums: int, iterations: int) -> int:
    """Times that codes of several stages and their centroids are improved."""
    return _MORE_ROUNDS * iterations if sums <= _FEW_SUMS else iterations


def searched_sums(count: int, stages: int, iterations: int) -> int:
    """Centroids, or sums of them, that a vector is compared with in one call of `code_group`."""
    if stages == 1:
        return (iterations + 1) * count
    sums = count**stages
    searched = sums if sums <= JOINT_LIMIT else 2 * stages * count
    return stages * iterations * count + (_rounds(sums, iterations) + 1) * searched


@njit(cache=True)
def fit_stages(
    points: np.ndarray,
    weights: np.ndarray,
    template: np.ndarray,
    iterations: int,
    warm: bool,
    centroids: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Fit an additive codebook in the whitened domain.

    points: f32[v, n]; weights: f32[n]; template: f32[K, v]; centroids: f32[S, K, v] in (when
    `warm`) and out; codes: i32[S, n] out. Stages start one on the rest of the other, then codes
    of all and centroids of each are improved in turn, `iterations` times and more.
    """
    stages = centroids.shape[0]
    n = points.shape[1]
    rest = points.copy()
    best = np.empty(n, np.float32)
    if not warm:
        for s in range(stages):
            place_template(rest, weights, template, centroids[s])
            lloyd_one(rest, weights, centroids[s], codes[s], iterations)
            for j in range(points.shape[0]):
                for i in range(n):
                    rest[j, i] -= centroids[s, codes[s, i], j]
    if warm and stages == 1:
        lloyd_one(points, weights, centroids[0], codes[0], iterations)
    if stages > 1:
        for _ in range(_rounds(len(template) ** stages, iterations)):
            _assign_stages(points, centroids, codes, best)
            for s in range(stages):
                _subtract_stages(points, centroids, codes, s, rest)
                update_one(rest, weights, codes[s], best, centroids[s])


@njit(cache=True)
def code_group(
    w: np.ndarray,
    weights: np.ndarray,
    matrix: np.ndarray,
    inverse: np.ndarray,
    step: np.ndarray,
    fixed: np.ndarray,
    template: np.ndarray,
    iterations: int,
    warm: bool,
    integers: np.ndarray,
    exponents: np.ndarray,
    codes: np.ndarray,
    coded: np.ndarray,
) -> float:
    """Codebook and codes of one position and row group; returns the weighted squared error in z.

    w: f32[v, n] targets; weights: f32[n]; fixed: i32[S], given exponents, or FREE; iterations: 0
    codes with the codebook that is given (`warm`) as it is; integers: i8[S, K, v], exponents:
    i32[S], codes: i32[S, n], all three in (when `warm`) and out; coded: f32[v, n] out, the coded
    values.
    """
    stages, count, v = integers.shape
    n = w.shape[1]
    points = np.empty_like(w)
    _linear_map(w, matrix, points)
    centroids = np.empty((stages, count, v), np.float32)
    if warm:
        for s in range(stages):
            unit = 2.0 ** exponents[s]
            for k in range(count):
                for j in range(v):
                    total = np.float32(0)
                    for m in range(v):
                        total += np.float32(integers[s, k, m] * step[m] * unit) * matrix[m, j]
                    centroids[s, k, j] = total
    if iterations > 0:
        fit_stages(points, weights, template, iterations, warm, centroids, codes)
        for s in range(stages):
            exponents[s] = round_centroids(
                centroids[s], matrix, inverse, step, fixed[s], integers[s]
            )
    best = np.empty(n, np.float32)
    _assign_stages(points, centroids, codes, best)
    decode_group(integers, exponents, step, codes, coded)
    return weighted_error(w, coded, weights, matrix)


@njit(cache=True)
def decode_group(
    integers: np.ndarray,
    exponents: np.ndarray,
    step: np.ndarray,
    codes: np.ndarray,
    out: np.ndarray,
) -> None:
    """out f32[v, n] = sum over stages of integer * step * 2^exponent."""
    out[:] = 0
    for s in range(integers.shape[0]):
        unit = 2.0 ** exponents[s]
        for j in range(out.shape[0]):
            scale = np.float32(step[j] * unit)
            for i in range(out.shape[1]):
                out[j, i] += integers[s, codes[s, i], j] * scale


@njit(cache=True)
def weighted_error(
    w: np.ndarray, coded: np.ndarray, weights: np.ndarray, matrix: np.ndarray
) -> float:
    """sum_i weights[i] |matrix^T (w_i - coded_i)|^2."""
    v, n = w.shape
    total = 0.0
    for i in range(n):
        for j in range(v):
            e = np.float32(0)
            for m in range(v):
                e += matrix[m, j] * (w[m, i] - coded[m, i])
            total += weights[i] * e * e
    return total
