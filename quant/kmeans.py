"""k-means over many small problems at once, one per position.

A layer needs thousands of independent codebooks of two-dimensional vectors. One call of a library
per codebook costs more than the clustering, so the Lloyd iterations here are batched over problems
and compiled; larger problems (`use_faiss`) go to faiss, whose matrix products win there.
"""

from __future__ import annotations

import faiss
import numpy as np
from numba import njit, prange
from sklearn.cluster import kmeans_plusplus

#: From this many coordinates per codebook on, faiss is faster than the compiled loop.
FAISS_COORDINATES = 1024
_CHUNK = 512


@njit(cache=True)
def _next_random(state: np.ndarray) -> float:
    """Uniform in [0, 1) from a xorshift64* generator; state: u64[1]."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True)
def _distances(points: np.ndarray, centroid: np.ndarray, out: np.ndarray) -> None:
    """Squared distances of points f32[v, n] to one centroid f32[v] -> out f32[n]."""
    c = centroid[0]
    for i in range(out.size):
        d = points[0, i] - c
        out[i] = d * d
    for j in range(1, points.shape[0]):
        c = centroid[j]
        for i in range(out.size):
            d = points[j, i] - c
            out[i] += d * d


@njit(cache=True)
def _largest_differences(points: np.ndarray, centroid: np.ndarray, out: np.ndarray) -> None:
    """Chebyshev distances, as `_distances`."""
    c = centroid[0]
    for i in range(out.size):
        out[i] = abs(points[0, i] - c)
    for j in range(1, points.shape[0]):
        c = centroid[j]
        for i in range(out.size):
            out[i] = max(out[i], abs(points[j, i] - c))


@njit(cache=True)
def _keep_closer(dist: np.ndarray, k: int, codes: np.ndarray, best: np.ndarray) -> None:
    """Where dist < best, take centroid k. All arrays [n]."""
    code = np.int32(k)
    for i in range(dist.size):
        closer = dist[i] < best[i]
        codes[i] = code if closer else codes[i]
        best[i] = dist[i] if closer else best[i]


@njit(inline="always")
def _pair_distance(d0: np.float32, d1: np.float32, chebyshev: bool) -> np.float32:
    """Of two differences."""
    return max(abs(d0), abs(d1)) if chebyshev else d0 * d0 + d1 * d1


@njit(cache=True)
def _pair_chunk(
    x0: np.ndarray,
    x1: np.ndarray,
    quads: np.ndarray,
    codes: np.ndarray,
    best: np.ndarray,
    chebyshev: bool,
) -> None:
    """`assign_one` for a chunk of two-dimensional points. quads: f32[K / 4, 4, 2].

    Four centroids a pass: LLVM turns the conditional updates into masked stores, which are slow
    on some processors, so there must be few of them.
    """
    for q in range(quads.shape[0]):
        c = quads[q]
        a0, a1, b0, b1 = c[0, 0], c[0, 1], c[1, 0], c[1, 1]
        e0, e1, f0, f1 = c[2, 0], c[2, 1], c[3, 0], c[3, 1]
        k0, k1, k2, k3 = (
            np.int32(4 * q),
            np.int32(4 * q + 1),
            np.int32(4 * q + 2),
            np.int32(4 * q + 3),
        )
        for i in range(x0.size):
            u, w = x0[i], x1[i]
            da = _pair_distance(u - a0, w - a1, chebyshev)
            db = _pair_distance(u - b0, w - b1, chebyshev)
            de = _pair_distance(u - e0, w - e1, chebyshev)
            df = _pair_distance(u - f0, w - f1, chebyshev)
            left = db < da
            d, k = (db if left else da), (k1 if left else k0)
            right = df < de
            d2, kr = (df if right else de), (k3 if right else k2)
            later = d2 < d
            d, k = (d2 if later else d), (kr if later else k)
            closer = d < best[i]
            codes[i] = k if closer else codes[i]
            best[i] = d if closer else best[i]


@njit(cache=True)
def _in_quads(centroids: np.ndarray) -> np.ndarray:
    """f32[K, 2] -> f32[ceil(K / 4), 4, 2], padded with points too far to be chosen."""
    count = centroids.shape[0]
    quads = np.full(((count + 3) // 4, 4, 2), np.float32(1e18), np.float32)
    for k in range(count):
        quads[k // 4, k % 4, 0] = centroids[k, 0]
        quads[k // 4, k % 4, 1] = centroids[k, 1]
    return quads


@njit(cache=True)
def assign_one(
    points: np.ndarray,
    centroids: np.ndarray,
    codes: np.ndarray,
    best: np.ndarray,
    chebyshev: bool = False,
) -> None:
    """Nearest centroid of each point, lowest index on ties.

    points: f32[v, n]; centroids: f32[K, v]; codes: i32[n] out; best: f32[n] out, the squared
    distances, or the largest differences. Works in chunks that stay in the first-level cache.
    """
    v, n = points.shape
    dist = np.empty(_CHUNK, np.float32)
    quads = _in_quads(centroids) if v == 2 else np.empty((0, 4, 2), np.float32)
    best[:] = np.inf
    for start in range(0, n, _CHUNK):
        stop = min(n, start + _CHUNK)
        if v == 2:
            _pair_chunk(
                points[0, start:stop],
                points[1, start:stop],
                quads,
                codes[start:stop],
                best[start:stop],
                chebyshev,
            )
            continue
        for k in range(centroids.shape[0]):
            if chebyshev:
                _largest_differences(points[:, start:stop], centroids[k], dist[: stop - start])
            else:
                _distances(points[:, start:stop], centroids[k], dist[: stop - start])
            _keep_closer(dist[: stop - start], k, codes[start:stop], best[start:stop])


@njit(cache=True, fastmath={"reassoc", "contract"})
def _dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    total = np.float32(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(cache=True)
def seed_one(
    points: np.ndarray, weights: np.ndarray, centroids: np.ndarray, state: np.ndarray
) -> None:
    """k-means++ seeding. points: f32[v, n]; weights: f32[n]; centroids: f32[K, v] out.

    All points are candidates: in a sample the few of great weight may be missing, and Lloyd
    iterations do not move a centroid to them from far away.
    """
    v, n = points.shape
    gap = np.ones(n, np.float32)
    dist = np.empty(n, np.float32)
    for k in range(centroids.shape[0]):
        target = _next_random(state) * _dot(weights, gap)
        chosen, running = n - 1, 0.0
        for i in range(n):
            running += weights[i] * gap[i]
            if running > target:
                chosen = i
                break
        for j in range(v):
            centroids[k, j] = points[j, chosen]
        _distances(points, centroids[k], dist)
        for i in range(n):
            gap[i] = dist[i] if k == 0 else min(gap[i], dist[i])


@njit(cache=True)
def update_one(
    points: np.ndarray,
    weights: np.ndarray,
    codes: np.ndarray,
    best: np.ndarray,
    centroids: np.ndarray,
) -> None:
    """Move each centroid to the weighted mean of its points; an empty one to the worst point."""
    v, n = points.shape
    count = centroids.shape[0]
    mass = np.zeros(count, np.float64)
    total = np.zeros((count, v), np.float64)
    for i in range(n):
        mass[codes[i]] += weights[i]
    for j in range(v):
        for i in range(n):
            total[codes[i], j] += weights[i] * points[j, i]
    for k in range(count):
        if mass[k] > 0:
            for j in range(v):
                centroids[k, j] = np.float32(total[k, j] / mass[k])
            continue
        worst = 0
        for i in range(n):
            if best[i] * weights[i] > best[worst] * weights[worst]:
                worst = i
        for j in range(v):
            centroids[k, j] = points[j, worst]
        best[worst] = 0.0


@njit(cache=True)
def lloyd_one(
    points: np.ndarray,
    weights: np.ndarray,
    centroids: np.ndarray,
    codes: np.ndarray,
    iterations: int,
    chebyshev: bool = False,
) -> None:
    """Weighted Lloyd iterations from the given centroids, which are updated in place.

    points: f32[v, n]; weights: f32[n]; centroids: f32[K, v]; codes: i32[n] out. Whatever the
    distance that points are assigned by, the mean has the least squared error.
    """
    n = points.shape[1]
    best = np.empty(n, np.float32)
    for _ in range(iterations):
        assign_one(points, centroids, codes, best, chebyshev)
        update_one(points, weights, codes, best, centroids)
    assign_one(points, centroids, codes, best, chebyshev)


@njit(cache=True, parallel=True)
def _kmeans_batch(
    points: np.ndarray,
    weights: np.ndarray,
    centroids: np.ndarray,
    iterations: int,
    seed: int,
    chebyshev: bool,
) -> None:
    """points: f32[P, v, n]; weights: f32[n]; centroids: f32[P, K, v] out."""
    n = points.shape[2]
    for p in prange(points.shape[0]):
        state = np.empty(1, np.uint64)
        state[0] = np.uint64(seed * 1000003 + p * 7919 + 88172645463325252)
        _next_random(state)
        codes = np.empty(n, np.int32)
        seed_one(points[p], weights, centroids[p], state)
        lloyd_one(points[p], weights, centroids[p], codes, iterations, chebyshev)


def use_faiss(count: int, vec_len: int) -> bool:
    """Whether codebooks of `count` centroids of `vec_len` coordinates go to faiss."""
    return count * vec_len >= FAISS_COORDINATES


def kmeans(
    points: np.ndarray,
    count: int,
    iterations: int,
    seed: int,
    weights: np.ndarray | None = None,
    chebyshev: bool = False,
) -> np.ndarray:
    """One codebook per position. points: f32[P, v, n] -> centroids f32[P, count, v].

    weights: f32[n], how much each point counts; None counts all alike. chebyshev: points belong to
    the centroid with the least largest difference, which faiss does not know.

    k-means++ seeds and Lloyd iterations (Lloyd 1982; Arthur and Vassilvitskii 2007). The same
    seed gives the same result with any number of threads.
    """
    positions, vec_len, n = points.shape
    weights = np.ones(n, np.float32) if weights is None else weights.astype(np.float32)
    if not chebyshev and use_faiss(count, vec_len) and n >= count:
        return np.stack(
            [
                _kmeans_faiss(points[p], weights, count, iterations, seed + p)
                for p in range(positions)
            ]
        )
    centroids = np.empty((positions, count, vec_len), np.float32)
    points = np.ascontiguousarray(points, np.float32)
    _kmeans_batch(points, weights, centroids, iterations, seed, chebyshev)
    return centroids


def _kmeans_faiss(
    points: np.ndarray, weights: np.ndarray, count: int, iterations: int, seed: int
) -> np.ndarray:
    """points: f32[v, n] -> f32[count, v]; scikit-learn seeds, faiss iterates."""
    rows = np.ascontiguousarray(points.T, np.float32)
    clustering = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=1 << 30,
    )
    start, _ = kmeans_plusplus(rows, count, sample_weight=weights, random_state=seed)
    clustering.train(rows, weights=weights, init_centroids=start)
    return np.asarray(clustering.centroids)
