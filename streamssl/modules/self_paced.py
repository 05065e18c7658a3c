"""Reliability of clusters in SpCL (arXiv:2006.02713, section 3.2).

Clusters are also made by a looser and by a tighter criterion. A cluster is kept if these agree with
it; samples of clusters that they join or split become classes of one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamssl.modules.neighbourhoods import Indices

# Share of clusters that count as independent enough at the first clustering (section 3.2).
_INDEPENDENT_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """Classes of all samples, with the reliability of their clusters.

    `compactness` and `independence` are the distances 1 - R_comp and 1 - R_indep, as in the
    authors' code: 0 is best. The value of a cluster is the minimum of its members.
    """

    labels: Indices
    compactness: NDArray[np.float32]
    independence: NDArray[np.float32]
    cluster_compactness: NDArray[np.float32]
    cluster_independence: NDArray[np.float32]
    threshold: float


def self_paced_labels(
    clusters: Indices, tight: Indices, loose: Indices, threshold: float | None = None
) -> PseudoLabels:
    """Return classes from the reliable part of `clusters` (N,), -1 is noise: section 3.2.

    A cluster is independent if a looser criterion does not join it with others, and compact if a
    tighter one does not split it. A sample keeps its cluster if that is independent enough and the
    sample is among its most compact; any other sample becomes a class of its own. The first
    `threshold` is the independence of nine in ten clusters; later calls must be given it.
    """
    labels, tight, loose = (_classes(each) for each in (clusters, tight, loose))
    compactness, independence = _disagreement(labels, tight), _disagreement(labels, loose)
    num_labels = labels.max() + 1
    cluster_compactness = np.full(num_labels, np.inf, np.float32)
    cluster_independence = np.full(num_labels, np.inf, np.float32)
    np.minimum.at(cluster_compactness, labels, compactness)
    np.minimum.at(cluster_independence, labels, independence)
    if threshold is None:
        values = np.sort(cluster_independence[np.bincount(labels) > 1])
        place = min(len(values) - 1, int(np.round(len(values) * _INDEPENDENT_SHARE)))
        threshold = float(values[place]) if len(values) else 0.0
    kept = cluster_independence[labels] <= np.float32(threshold)
    kept &= compactness <= cluster_compactness[labels]
    result = labels.copy()
    result[~kept] = num_labels + np.arange(np.count_nonzero(~kept))
    return PseudoLabels(
        result, compactness, independence, cluster_compactness, cluster_independence, threshold
    )


def _classes(clusters: Indices) -> Indices:
    """Turn noise into classes of one, numbered after the clusters in sample order."""
    noise = clusters < 0
    result = clusters.copy()
    result[noise] = clusters.max(initial=-1) + 1 + np.arange(np.count_nonzero(noise))
    return result


def _disagreement(ours: Indices, theirs: Indices) -> NDArray[np.float32]:
    """Return 1 - intersection over union of each sample's two classes."""
    pair = ours * (theirs.max() + 1) + theirs
    _, inverse, counts = np.unique(pair, return_inverse=True, return_counts=True)
    both = counts[inverse].astype(np.float32)
    union = (np.bincount(ours)[ours] + np.bincount(theirs)[theirs]).astype(np.float32) - both
    result: NDArray[np.float32] = 1 - both / union
    return result
