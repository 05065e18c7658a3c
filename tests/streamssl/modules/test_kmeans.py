"""Spherical k-means, at once and batch by batch."""

import torch
from torch.nn import functional as F

from streamssl.modules.kmeans import Centroids, nearest_centroids, spherical_kmeans


def blobs(num_each: int, num_clusters: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Unit vectors around orthogonal directions, and which each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_clusters).repeat(num_each)
    noise = 0.1 * torch.randn(len(labels), dim, generator=generator)
    return F.normalize(torch.eye(num_clusters, dim)[labels] + noise, dim=1), labels


def plain_kmeans(rows: torch.Tensor, centroids: torch.Tensor, num: int) -> torch.Tensor:
    """Cluster by cluster, as one would write it on a blackboard."""
    for _ in range(num):
        labels = torch.stack([(centroids @ row).argmax() for row in rows])
        for k in range(len(centroids)):
            if (labels == k).any():
                centroids[k] = rows[labels == k].mean(dim=0)
        centroids = torch.stack([each / each.norm() for each in centroids])
    return centroids


def test_kmeans_is_lloyds_algorithm_on_the_sphere() -> None:
    """Compared with a plain reference, from a start with an empty cluster."""
    rows = F.normalize(torch.rand(40, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    start = torch.cat([rows[:4], -rows[:1]])  # no row is near the last
    found = spherical_kmeans(rows, start, 5)
    torch.testing.assert_close(found, plain_kmeans(rows, start.clone(), 5))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def test_an_empty_cluster_keeps_its_centroid() -> None:
    """Its mean would be a division by zero."""
    rows = torch.eye(3)[[0, 0, 0]]
    start = torch.eye(3)[[0, 2]]
    assert torch.equal(spherical_kmeans(rows, start, 3), start)


def test_separate_clusters_are_found() -> None:
    """Rows of a cluster must get the same number."""
    rows, labels = blobs(20, 4, 6)
    head = Centroids(4, 6)
    found = head.fit_(rows, rows[:4], 10)
    assert torch.equal(found, labels)
    assert head.masses.tolist() == [20.0] * 4
    assert torch.equal(head(rows).argmax(dim=1), labels)


def test_centroids_follow_new_rows_and_forget_old_ones() -> None:
    """Features drift; a mean over all time would lag."""
    head = Centroids(2, 4)
    rows, _ = blobs(30, 2, 4)
    head.fit_(rows, rows[:2], 3)
    turned = rows.roll(1, dims=1)  # the first direction becomes the second, and so on
    turned[:, 0] = 0.3 * rows[:, 0]  # still nearest to where they were
    before = nearest_centroids(turned, head.centroids)
    for _ in range(40):
        head.follow_(F.normalize(turned, dim=1), forget=0.2)
    assert len(before.unique()) == 2
    expected = F.normalize(turned, dim=1)
    labels = nearest_centroids(expected, head.centroids)
    means = torch.stack([F.normalize(expected[labels == k].mean(0), dim=0) for k in range(2)])
    torch.testing.assert_close(head.centroids, means, atol=1e-3, rtol=0)


def test_a_centroid_without_rows_stays() -> None:
    """A mean of no rows has no direction."""
    head = Centroids(2, 3)
    head.centroids.copy_(torch.eye(3)[:2])
    head.follow_(torch.eye(3)[[0, 0]], forget=0.5)
    assert torch.equal(head.centroids, torch.eye(3)[:2]) and head.masses.tolist() == [2.0, 0.0]
