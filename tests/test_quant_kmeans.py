"""k-means: against scikit-learn, deterministic, independent of the number of threads."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from sklearn.cluster import KMeans

from quant.activation import assign
from quant.kmeans import kmeans, use_faiss


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    gaps = ((points.T[:, None] - centroids[None]) ** 2).sum(-1)
    return float(gaps.min(1).mean())


@pytest.mark.parametrize(("vec_len", "count"), [(1, 5), (2, 16), (2, 64), (3, 10), (4, 256)])
def test_close_to_scikit_learn(vec_len: int, count: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((2, vec_len, 1500)).astype(np.float32)
    points[:, 0] *= 3
    centroids = kmeans(points, count, 25, seed=3)
    for p in range(2):
        oracle = KMeans(count, n_init=1, max_iter=25, random_state=0).fit(points[p].T)
        assert inertia(points[p], centroids[p]) < 1.08 * oracle.inertia_ / 1500


@pytest.mark.parametrize(("vec_len", "count"), [(2, 16), (4, 256)])
def test_weights_count_points(vec_len: int, count: int) -> None:
    rng = np.random.default_rng(4)
    points = rng.standard_normal((1, vec_len, 2000)).astype(np.float32)
    weights = np.where(points[0, 0] > 0, 20, 1).astype(np.float32)
    centroids = kmeans(points, count, 20, 0, weights)
    heavy, light = points[:, :, weights > 1], points[:, :, weights == 1]
    plain = kmeans(points, count, 20, 0)
    assert inertia(heavy[0], centroids[0]) < 0.8 * inertia(heavy[0], plain[0])
    assert inertia(light[0], centroids[0]) > inertia(light[0], plain[0])


def test_large_codebooks_go_to_faiss() -> None:
    assert use_faiss(256, 4)
    assert not use_faiss(64, 2)


def test_same_seed_same_bytes_any_threads() -> None:
    points = np.random.default_rng(1).standard_normal((7, 2, 900)).astype(np.float32)
    before = numba.get_num_threads()
    results = []
    for threads in (1, before):
        numba.set_num_threads(threads)
        results.append(kmeans(points, 16, 8, seed=5).tobytes())
    assert results[0] == results[1]
    assert kmeans(points, 16, 8, seed=6).tobytes() != results[0]


def test_fewer_points_than_centroids() -> None:
    points = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    centroids = kmeans(points, 8, 5, seed=0)
    assert np.isfinite(centroids).all()
    assert inertia(points[0], centroids[0]) == 0


@pytest.mark.parametrize("vec_len", [1, 2, 3])
def test_assign_is_the_nearest_and_lowest(vec_len: int) -> None:
    rng = np.random.default_rng(2)
    points = rng.integers(-9, 10, (3, vec_len, 700)).astype(np.float32)
    centroids = rng.integers(-9, 10, (3, 21, vec_len)).astype(np.float32)
    centroids[:, 20] = centroids[:, 3]
    gaps = points.transpose(0, 2, 1)[:, :, None] - centroids[:, None]
    assert np.array_equal(assign(points, centroids), (gaps**2).sum(-1).argmin(-1))
    largest = np.abs(gaps).max(-1)
    assert np.array_equal(assign(points, centroids, chebyshev=True), largest.argmin(-1))


def test_chebyshev_centroids_are_the_means_of_their_points() -> None:
    points = np.random.default_rng(3).standard_normal((1, 2, 900)).astype(np.float32)
    centroids = kmeans(points, 6, 200, seed=0, chebyshev=True)
    codes = assign(points, centroids, chebyshev=True)[0]
    for k in range(6):
        mean = points[0][:, codes == k].mean(1)
        assert np.allclose(mean, centroids[0, k], atol=1e-5)


def test_few_points_of_great_weight_find_centroids() -> None:
    """First tokens of windows: one in 512, far away and spread out there."""
    rng = np.random.default_rng(4)
    points = 0.01 * rng.standard_normal((1, 2, 8192)).astype(np.float32)
    weights = np.ones(8192, np.float32)
    heavy = np.arange(5, 8192, 512)
    points[0, :, heavy] = np.stack([50 + np.arange(16), rng.random(16)], 1)
    weights[heavy] = 1e4
    (centroids,) = kmeans(points, 32, 15, 0, weights)
    gaps = points[0][:, heavy].T[:, None] - centroids[None]
    assert (gaps**2).sum(-1).min(1).max() < 0.3
