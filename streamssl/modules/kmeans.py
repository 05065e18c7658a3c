"""Spherical k-means: clusters of unit vectors by cosine, all at once or batch by batch.

Shape letters: N rows of this rank, G rows of all ranks, K clusters, D feature.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.distributed.collectives import all_reduce_sum

# Rows compared with all centroids at once: 16,384 x 3,000 cosines are 200 MB.
_ROWS_AT_ONCE = 16_384


@torch.no_grad()
def nearest_centroids(rows_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    """Return the cluster (N,) of each row: the centroid with the largest dot product."""
    parts = [(rows @ centroids_KD.T).argmax(dim=1) for rows in _parts(rows_ND)]
    return torch.cat(parts) if parts else rows_ND.new_zeros(0, dtype=torch.int64)


def count_labels(labels_N: Tensor, num_labels: int) -> Tensor:
    """Return the number (K,) int64 of rows with each label; negative labels do not count.

    `torch.bincount` waits for the device, as does a choice of rows by a mask.
    """
    ones_N = (labels_N >= 0).to(torch.int64)
    counts_K = ones_N.new_zeros(num_labels)
    return counts_K.index_add_(0, labels_N.clamp(min=0), ones_N)


@torch.no_grad()
def sum_by_cluster(
    rows_ND: Tensor, labels_N: Tensor, num_clusters: int, group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum (K, D) and the number (K,) of the rows of each cluster, over all ranks."""
    sums_KD = rows_ND.new_zeros(num_clusters, rows_ND.shape[1]).index_add_(0, labels_N, rows_ND)
    counts_K = count_labels(labels_N, num_clusters).to(rows_ND.dtype)
    both = all_reduce_sum(torch.cat([sums_KD, counts_K[:, None]], dim=1), group)
    return both[:, :-1], both[:, -1]


@torch.no_grad()
def spherical_kmeans(
    rows_ND: Tensor,
    centroids_KD: Tensor,
    num_iterations: int,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Return unit-norm centroids (K, D) after `num_iterations` of Lloyd from `centroids_KD`.

    As in DeepCluster-v2 (arXiv:2006.09882, appendix D): a centroid becomes the mean of its rows,
    an empty cluster keeps its centroid, all are normalised. Ranks add up sums and counts.
    """
    for _ in range(num_iterations):
        labels_N = nearest_centroids(rows_ND, centroids_KD)
        sums_KD, counts_K = sum_by_cluster(rows_ND, labels_N, len(centroids_KD), group)
        means_KD = sums_KD / counts_K.clamp(min=1)[:, None]
        centroids_KD = torch.where(counts_K[:, None] > 0, means_KD, centroids_KD)
        centroids_KD = F.normalize(centroids_KD, dim=1)
    return centroids_KD


def _parts(rows_ND: Tensor) -> Iterator[Tensor]:
    for first in range(0, len(rows_ND), _ROWS_AT_ONCE):
        yield rows_ND[first : first + _ROWS_AT_ONCE]


class Centroids(nn.Module):
    """Computed, untrained centroids: buffers `centroids` (K, D) and `masses` (K,).

    `masses` count the rows whose mean a centroid is; all 0 before the first clustering.
    """

    centroids: Tensor
    masses: Tensor

    def __init__(self, num_clusters: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.zeros(num_clusters, dim))
        self.register_buffer("masses", torch.zeros(num_clusters))

    def forward(self, z_ND: Tensor) -> Tensor:
        """Return scores (N, K): cosines if the rows have unit norm."""
        # A copy: backward needs these centroids, and they may move before it.
        return F.linear(z_ND, self.centroids.to(z_ND.dtype, copy=True))

    def __len__(self) -> int:
        return len(self.centroids)

    @torch.no_grad()
    def fit_(
        self,
        rows_ND: Tensor,
        start_KD: Tensor,
        num_iterations: int,
        group: ProcessGroup | None = None,
    ) -> Tensor:
        """Run k-means on all ranks' rows; return the cluster (N,) of each own row."""
        self.centroids.copy_(spherical_kmeans(rows_ND, start_KD, num_iterations, group))
        labels_N = nearest_centroids(rows_ND, self.centroids)
        self.masses.copy_(sum_by_cluster(rows_ND, labels_N, len(self), group)[1])
        return labels_N

    @torch.no_grad()
    def follow_(self, rows_GD: Tensor, forget: float) -> None:
        """Run a step of mini-batch spherical k-means on the rows of all ranks.

        Older rows lose the share `forget` of their weight, since features drift. Otherwise as
        Sculley, "Web-scale k-means clustering" (WWW 2010).
        """
        labels_G = nearest_centroids(rows_GD, self.centroids)
        sums_KD, counts_K = sum_by_cluster(rows_GD, labels_G, len(self))
        self.masses *= 1 - forget
        moved_KD = F.normalize(self.centroids * self.masses[:, None] + sums_KD, dim=1)
        self.centroids.copy_(torch.where(counts_K[:, None] > 0, moved_KD, self.centroids))
        self.masses += counts_K
