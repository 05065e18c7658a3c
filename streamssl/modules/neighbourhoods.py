"""Neighbourhoods: k-reciprocal Jaccard distances and density clusters, kept sparse.

Zhong et al., arXiv:1701.08398 (k-reciprocal encoding), in the form of SpCL (arXiv:2006.02713). Two
samples are near if they share mutual near neighbours. A sample has at most a few hundred
neighbours, and only pairs that share some are stored: memory grows with N, not N^2.

Shape letters: N samples, D feature, K neighbours, P padded places, E pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

# Samples processed at once: bounds the memory of every function below.
_SAMPLES_AT_ONCE = 512
_EMPTY = -1


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Rows of a sparse matrix: row i has `columns[start[i] : start[i + 1]]`, ascending."""

    start: Indices
    columns: Indices
    values: Floats

    def row(self, i: int) -> tuple[Indices, Floats]:
        part = slice(self.start[i], self.start[i + 1])
        return self.columns[part], self.values[part]

    def __len__(self) -> int:
        return len(self.start) - 1


def jaccard_neighbours(features_ND: Tensor, *, k1: int, k2: int, largest: float) -> SparseRows:
    """Return for every sample the samples at a Jaccard distance of at most `largest` < 1.

    `features_ND` have unit norm. Encodings use `k1` neighbours, the sample itself included, and are
    averaged over the nearest `k2`. A sample is its own neighbour, at distance 0.
    """
    rank_NK = nearest(features_ND, k1)
    rows = jaccard_rows(encode(features_ND, rank_NK, k1=k1, k2=k2))
    starts, columns, values = [0], [], []
    for i, distance_N in enumerate(rows):
        near = np.flatnonzero(distance_N <= largest)
        near = near if i in near else np.sort(np.append(near, i))
        columns.append(near)
        values.append(distance_N[near])
        starts.append(starts[-1] + len(near))
    return SparseRows(np.array(starts), np.concatenate(columns), np.concatenate(values))


def nearest(features_ND: Tensor, num: int) -> Indices:
    """Return the `num` samples nearest to each, (N, num), nearest first, itself included."""
    num = min(num, len(features_ND))
    parts = [
        (rows @ features_ND.T).topk(num, dim=1).indices
        for rows in features_ND.split(_SAMPLES_AT_ONCE)
    ]
    return torch.cat(parts).cpu().numpy()


def encode(features_ND: Tensor, rank_NK: Indices, *, k1: int, k2: int) -> SparseRows:
    """Return every sample as weights, with sum 1, over the samples that are mutually near it.

    The set of reciprocal neighbours is extended by the half-size set of a neighbour if more than
    two thirds of that set are in it. The weight of a member is the softmax of minus its squared
    distance. Each encoding is averaged over the nearest `k2`.
    """
    num = len(rank_NK)
    # The authors' code slices k1 + 1 columns of a list of k1; the half list is one longer.
    whole_NP = _reciprocal(rank_NK[:, : k1 + 1])
    half_NP = _reciprocal(rank_NK[:, : int(np.around(k1 / 2)) + 1])
    pairs = np.unique(np.concatenate(list(_expand(whole_NP, half_NP))))
    owners, members = np.divmod(pairs, num)
    weights = _weights(features_ND, owners, members)
    single = _to_rows(owners, members, weights, num)
    if k2 == 1:
        return single
    return _averaged(single, rank_NK[:, :k2])


def jaccard_rows(encoding: SparseRows) -> Iterator[Floats]:
    """Yield the rows (N,) of Jaccard distances: 1 - sum of minima / sum of maxima."""
    num = len(encoding)
    by_column = _transposed(encoding)
    for i in range(num):
        columns, weights = encoding.row(i)
        lengths = by_column.start[columns + 1] - by_column.start[columns]
        places = np.repeat(by_column.start[columns] - np.cumsum(lengths) + lengths, lengths)
        places = places + np.arange(len(places))
        minima = np.minimum(np.repeat(weights, lengths), by_column.values[places])
        shared_N = np.bincount(by_column.columns[places], weights=minima, minlength=num)
        yield np.maximum(1 - shared_N / (2 - shared_N), 0.0)


def dbscan(neighbours: SparseRows, *, epsilon: float, min_samples: int) -> Indices:
    """Return density clusters (N,), numbered from 0 in sample order; -1 is noise (Ester, 1996).

    `neighbours` hold at least all pairs at a distance of at most `epsilon`. A sample with
    `min_samples` of them, itself included, is dense. Another sample joins the first cluster that
    reaches it.
    """
    near = neighbours.values <= epsilon
    start = np.concatenate([[0], np.cumsum(near)])[neighbours.start]
    columns = neighbours.columns[near]
    dense_N = np.diff(start) >= min_samples
    labels_N = np.full(len(neighbours), -1, np.int64)
    num_clusters = 0
    for seed in np.flatnonzero(dense_N):
        if labels_N[seed] >= 0:
            continue
        labels_N[seed] = num_clusters
        waiting = [int(seed)]
        while waiting:
            i = waiting.pop()
            reached = columns[start[i] : start[i + 1]]
            reached = reached[labels_N[reached] < 0]
            labels_N[reached] = num_clusters
            waiting.extend(reached[dense_N[reached]].tolist())
        num_clusters += 1
    return labels_N


def _reciprocal(rank_NK: Indices) -> Indices:
    """Return the mutual neighbours of each sample; the others become -1."""
    parts = []
    for first in range(0, len(rank_NK), _SAMPLES_AT_ONCE):
        rows = rank_NK[first : first + _SAMPLES_AT_ONCE]
        own = np.arange(first, first + len(rows))[:, None, None]
        parts.append(np.where((rank_NK[rows] == own).any(axis=2), rows, _EMPTY))
    return np.concatenate(parts)


def _expand(whole_NP: Indices, half_NP: Indices) -> Iterator[Indices]:
    """Yield pairs (owner * N + member) of extended neighbourhoods, in parts."""
    num = len(whole_NP)
    half_sizes = (half_NP != _EMPTY).sum(axis=1)
    for first in range(0, num, _SAMPLES_AT_ONCE):
        rows = whole_NP[first : first + _SAMPLES_AT_ONCE]
        owners = np.arange(first, first + len(rows))[:, None]
        offered = np.where(rows[:, :, None] == _EMPTY, _EMPTY, half_NP[rows])
        inside = np.zeros(offered.shape, bool)
        for place in range(rows.shape[1]):
            inside |= offered == rows[:, place, None, None]
        inside &= offered != _EMPTY
        accepted = inside.sum(axis=2) > 2 / 3 * half_sizes[rows]
        offered = np.where(accepted[:, :, None], offered, _EMPTY)
        for members in (rows, offered.reshape(len(rows), -1)):
            yield (owners * num + members)[members != _EMPTY]


def _weights(features_ND: Tensor, owners: Indices, members: Indices) -> Floats:
    """Return the softmax over each owner's members of minus the squared distance, (E,)."""
    dots = np.empty(len(owners))
    for first in range(0, len(owners), 16 * _SAMPLES_AT_ONCE):
        part = slice(first, first + 16 * _SAMPLES_AT_ONCE)
        a, b = (features_ND[torch.from_numpy(index[part])] for index in (owners, members))
        dots[part] = (a * b).sum(dim=1).cpu().numpy()
    raw = np.exp(2 * dots - 2)
    totals = np.bincount(owners, weights=raw)
    weights: Floats = raw / totals[owners]
    return weights


def _averaged(encoding: SparseRows, nearest_NK: Indices) -> SparseRows:
    """Return the mean encoding of each sample's nearest samples."""
    num, k2 = nearest_NK.shape
    lengths = np.diff(encoding.start)[nearest_NK.ravel()]
    firsts = encoding.start[nearest_NK.ravel()]
    places = np.repeat(firsts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    owners = np.repeat(np.repeat(np.arange(num), k2), lengths)
    pairs, inverse = np.unique(owners * num + encoding.columns[places], return_inverse=True)
    values = np.bincount(inverse, weights=encoding.values[places]) / k2
    return _to_rows(*np.divmod(pairs, num), values, num)


def _transposed(matrix: SparseRows) -> SparseRows:
    owners = np.repeat(np.arange(len(matrix)), np.diff(matrix.start))
    order = np.argsort(matrix.columns, kind="stable")
    return _to_rows(matrix.columns[order], owners[order], matrix.values[order], len(matrix))


def _to_rows(owners: Indices, columns: Indices, values: Floats, num: int) -> SparseRows:
    """Build a sparse matrix from pairs that are sorted by owner, then by column."""
    start = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num))])
    return SparseRows(start, columns, values)
