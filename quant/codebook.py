"""Integer weight codebooks for one position and one row group, fitted in a given metric.

Points live in three domains. `w` f32[v, n] is the target in weight units; z = T^T w is the whitened
domain in which squared distance is the objective; the stored centroid is an integer per coordinate,
centroid = integer * step[j] * 2^exponent. Rounding to integers happens here, inside the search for
codes, so that error feedback sees it.
"""

from __future__ import annotations

import math
from functools import lru_cache

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
#: Rounds over the stages, where sums are too many to be searched at once.
_TURNS = 2
#: Of a unit normal that a template of several stages is fitted to, and how often.
_TEMPLATE_VECTORS, _TEMPLATE_ROUNDS = 32768, 150
_LOWEST_EXPONENT = -60
#: In the place of an exponent: the best one.
FREE = -1000


@lru_cache
def normal_template(stages: int, count: int, vec_len: int) -> np.ndarray:
    """Centroids for a unit normal, the start of weight codebooks: f32[S, K, v] of all stages, or
    f32[1, K, v], from which each stage starts on what the ones before it leave.

    Measured on normal vectors: with few sums a fit that starts from one stage is as good. With more
    it ends up in a worse optimum than one of many rounds on many vectors. With more than are
    searched at once, a number system is better than any fit, and a greedy search finds its nearest.
    The array is the same in every call and not to be written.
    """
    sums, digits = count**stages, round(count ** (1 / vec_len))
    if stages > 1 and sums > JOINT_LIMIT and digits**vec_len == count:
        return _number_system(stages, digits, vec_len)
    rng = np.random.default_rng(1)
    sample = rng.standard_normal((1, vec_len, 64 * count)).astype(np.float32)
    one = kmeans(sample, count, 30, seed=1)
    if stages == 1 or sums <= _FEW_SUMS:
        return one
    sample = rng.standard_normal((vec_len, _TEMPLATE_VECTORS)).astype(np.float32)
    centroids = np.empty((stages, count, vec_len), np.float32)
    codes = np.empty((stages, _TEMPLATE_VECTORS), np.int32)
    weights = np.ones(_TEMPLATE_VECTORS, np.float32)
    fit_stages(sample, weights, one, _TEMPLATE_ROUNDS, False, centroids, codes)
    return centroids


def _number_system(stages: int, digits: int, vec_len: int) -> np.ndarray:
    """f32[S, digits^v, v]: a digit of every coordinate in each stage, the most significant first.

    Sums are a uniform grid of the spacing with the least error on a unit normal.
    """
    levels = digits**stages
    x = np.linspace(0, 8, 20001)
    mass = np.exp(-np.square(x) / 2)
    spacings = np.geomspace(2 / levels, 12 / levels, 400)
    errors = []
    for spacing in spacings:
        nearest = np.minimum(np.floor(x / spacing) + 0.5, (levels - 1) / 2) * spacing
        errors.append((mass * np.square(x - nearest)).sum())
    spacing = spacings[int(np.argmin(errors))]
    digit = np.arange(digits) - (digits - 1) / 2
    vectors = np.stack(np.meshgrid(*[digit] * vec_len, indexing="ij"), -1).reshape(-1, vec_len)
    scale = spacing * float(digits) ** np.arange(stages - 1, -1, -1)
    return (scale[:, None, None] * vectors).astype(np.float32)


@njit(cache=True)
def place_template(
    points: np.ndarray, weights: np.ndarray, template: np.ndarray, centroids: np.ndarray
) -> None:
    """centroids f32[S, K, v] = template * spread, per coordinate, and the mean in the first stage.

    points: f32[v, n].
    """
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
        for s in range(template.shape[0]):
            for k in range(template.shape[1]):
                centroids[s, k, j] = np.float32(template[s, k, j] * spread)
        for k in range(template.shape[1]):
            centroids[0, k, j] += np.float32(mean)


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
def _subtract(points: np.ndarray, centroids: np.ndarray, codes: np.ndarray) -> None:
    """points f32[v, n] -= the chosen of centroids f32[K, v]."""
    for j in range(points.shape[0]):
        for i in range(points.shape[1]):
            points[j, i] -= centroids[codes[i], j]


@njit(cache=True)
def _subtract_stages(
    points: np.ndarray, centroids: np.ndarray, codes: np.ndarray, skip: int, out: np.ndarray
) -> None:
    """out = points - sum of the chosen centroids of every stage but `skip`."""
    out[:] = points
    for s in range(centroids.shape[0]):
        if s != skip:
            _subtract(out, centroids[s], codes[s])


@njit(cache=True)
def _assign_stages(
    points: np.ndarray, centroids: np.ndarray, codes: np.ndarray, warm: bool, best: np.ndarray
) -> None:
    """Codes of all stages for the given centroids f32[S, K, v]; codes: i32[S, n] in (when `warm`)
    and out.

    All stages at once where that is at most JOINT_LIMIT sums, else one at a time in turn, at first
    each on what the stages before it leave.
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
    rest = points.copy()
    if not warm:
        for s in range(stages):
            assign_one(rest, centroids[s], codes[s], best)
            _subtract(rest, centroids[s], codes[s])
    for _ in range(_TURNS):
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
    searched = sums if sums <= JOINT_LIMIT else (1 + _TURNS) * stages * count
    one_by_one = stages * iterations * count if sums <= _FEW_SUMS else 0
    return one_by_one + (_rounds(sums, iterations) + 1) * searched


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

    points: f32[v, n]; weights: f32[n]; template: as `normal_template`; centroids: f32[S, K, v] and
    codes: i32[S, n], in (when `warm`) and out. Codes of all stages and centroids of each are
    improved in turn.
    """
    stages = centroids.shape[0]
    if not warm:
        _start(points, weights, template, iterations, centroids, codes)
    if stages == 1:
        lloyd_one(points, weights, centroids[0], codes[0], iterations)
        return
    rest, best = np.empty_like(points), np.empty(points.shape[1], np.float32)
    for r in range(_rounds(template.shape[1] ** stages, iterations)):
        _assign_stages(points, centroids, codes, warm or r > 0, best)
        for s in range(stages):
            _subtract_stages(points, centroids, codes, s, rest)
            update_one(rest, weights, codes[s], best, centroids[s])


@njit(cache=True)
def _start(
    points: np.ndarray,
    weights: np.ndarray,
    template: np.ndarray,
    iterations: int,
    centroids: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Centroids to improve. As `fit_stages`; codes are for work."""
    stages = centroids.shape[0]
    if len(template) == stages:
        place_template(points, weights, template, centroids)
        return
    rest = points.copy()
    for s in range(stages):
        place_template(rest, weights, template, centroids[s : s + 1])
        lloyd_one(rest, weights, centroids[s], codes[s], iterations)
        _subtract(rest, centroids[s], codes[s])


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

    w: f32[v, n] targets; weights: f32[n]; fixed: i32[S], given exponents, or FREE; template: as
    `normal_template`; iterations: 0 codes with the codebook that is given as it is, else it is
    fitted, from the one given when `warm`; integers: i8[S, K, v], exponents: i32[S], in (when
    given) and out; codes: i32[S, n], in (when `warm`) and out; coded: f32[v, n] out, the values.
    """
    stages, count, v = integers.shape
    n = w.shape[1]
    points = np.empty_like(w)
    _linear_map(w, matrix, points)
    centroids = np.empty((stages, count, v), np.float32)
    if warm or iterations == 0:
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
    _assign_stages(points, centroids, codes, warm or iterations > 0, best)
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
