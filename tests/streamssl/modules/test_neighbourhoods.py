"""Sparse neighbourhoods are those of the plain definitions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from streamssl.modules.neighbourhoods import (
    SparseRows,
    dbscan,
    encode,
    jaccard_neighbours,
    jaccard_rows,
    nearest,
)


def features(num: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    """Unit vectors in a handful of groups."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, dim, generator=generator)
    rows = centres[torch.arange(num) % 5] + 0.8 * torch.randn(num, dim, generator=generator)
    return F.normalize(rows.double(), dim=1)


def plain_jaccard(x: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Sets and a full matrix, by the book."""
    num = len(x)
    rank = np.argsort(-(x @ x.T), axis=1, kind="stable")[:, :k1]

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in rank[i, : k + 1] if i in rank[j, : k + 1]}

    whole = [mutual(i, k1) for i in range(num)]
    half = [mutual(i, round(k1 / 2)) for i in range(num)]
    encoding = np.zeros((num, num))
    for i in range(num):
        members = set(whole[i])
        for j in whole[i]:
            if len(half[j] & whole[i]) > 2 / 3 * len(half[j]):
                members |= half[j]
        chosen = sorted(members)
        weights = np.exp(-(2 - 2 * x[chosen] @ x[i]))
        encoding[i, chosen] = weights / weights.sum()
    encoding = np.stack([encoding[rank[i, :k2]].mean(axis=0) for i in range(num)])
    shared = np.minimum(encoding[:, None], encoding[None]).sum(axis=2)
    return np.maximum(1 - shared / (2 - shared), 0)


@pytest.mark.parametrize(("num", "k1", "k2"), [(60, 12, 3), (37, 6, 1), (20, 30, 6)])
def test_jaccard_distances_are_those_of_full_matrices(num: int, k1: int, k2: int) -> None:
    """Also for more neighbours than samples."""
    x = features(num)
    expected = plain_jaccard(x.numpy(), k1, k2)
    rank = nearest(x, k1)
    found = np.stack(list(jaccard_rows(encode(x, rank, k1=k1, k2=k2))))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    near = jaccard_neighbours(x, k1=k1, k2=k2, largest=0.7)
    for i in range(num):
        columns, values = near.row(i)
        # A pair at exactly the border may fall to either side by rounding.
        assert set(columns) >= set(np.flatnonzero(expected[i] <= 0.7 - 1e-9)) | {i}
        np.testing.assert_allclose(values, expected[i, columns], atol=1e-12)


def line(places: list[float]) -> SparseRows:
    """Samples on a line; all pairs at a distance of at most 3."""
    x = np.array(places)
    distance = np.abs(x[:, None] - x[None])
    owners, columns = np.nonzero(distance <= 3)
    start = np.searchsorted(owners, np.arange(len(x) + 1))
    return SparseRows(start, columns, distance[owners, columns])


def test_density_clusters_on_a_line() -> None:
    """Two dense groups, a bridge that joins the first that reaches it, and noise."""
    places = [9.0, 0.0, 0.5, 1.0, 2.0, 3.0, 3.5, 4.0]
    labels = dbscan(line(places), epsilon=1.0, min_samples=3)
    assert labels.tolist() == [-1, 0, 0, 0, 0, 0, 0, 0]
    labels = dbscan(line(places), epsilon=0.9, min_samples=3)
    assert labels.tolist() == [-1, 0, 0, 0, -1, 1, 1, 1]
    border = dbscan(line([0.0, 0.4, 0.8, 1.5, 2.2, 2.6, 3.0]), epsilon=0.7, min_samples=4)
    assert (border == -1).all()
    border = dbscan(line([3.0, 2.6, 2.2, 1.5, 0.8, 0.4, 0.0]), epsilon=0.8, min_samples=3)
    assert border.tolist() == [0] * 7


def test_samples_without_neighbours_are_no_cluster() -> None:
    """As in a memory that was just filled."""
    assert (dbscan(line([0, 10, 20]), epsilon=1.0, min_samples=2) == -1).all()
