"""Retrieval on frozen features: mean average precision and rank-k accuracy.

The protocol is that of re-identification (Zheng et al., "Scalable person re-identification",
2015): each query ranks the whole gallery by cosine similarity, and images with its label are right.
Queries and gallery usually come from different cameras.

Shape letters: Q queries, N gallery images, D features.
"""

from dataclasses import dataclass

import numpy as np

from shards.errors import ConfigError, UserError
from streamssl.evaluation.knn import Features, Labels, check_features, unit_rows


@dataclass(frozen=True, slots=True)
class RetrievalScore:
    """Scores in percent. `rank` maps k to the share of queries with a match among the first k.

    `num_queries` queries were ranked; `num_unmatched` have no image of their label in the gallery
    and were left out.
    """

    mean_average_precision: float
    rank: dict[int, float]
    num_queries: int
    num_unmatched: int


def retrieve(
    query_features: Features,
    query_labels: Labels,
    gallery_features: Features,
    gallery_labels: Labels,
    ranks: tuple[int, ...] = (1, 5, 10),
    num_rows: int = 1024,
) -> RetrievalScore:
    """Rank the gallery (N, D) for each query (Q, D); labels are (N,) and (Q,).

    `num_rows` queries are ranked at once: this bounds the similarities, (num_rows, N) float32.
    Equal similarities keep the order of the gallery. Raises UserError if no query has a match.
    """
    if not ranks or min(ranks) < 1:
        raise ConfigError(
            f"retrieval with ranks={ranks}; each rank must be 1 or more: give --ranks 1"
        )
    check_features(query_features, query_labels, "query")
    check_features(gallery_features, gallery_labels, "gallery")
    if query_features.shape[1] != gallery_features.shape[1]:
        raise UserError(
            f"query features have {query_features.shape[1]} numbers and gallery features "
            f"{gallery_features.shape[1]}; they must have as many; embed both with one encoder"
        )
    gallery = unit_rows(gallery_features)
    precisions, firsts = [], []
    for start in range(0, len(query_labels), num_rows):
        rows = slice(start, start + num_rows)
        similarities = unit_rows(query_features[rows]) @ gallery.T
        order = np.argsort(-similarities, axis=1, kind="stable")
        is_match = gallery_labels[order] == query_labels[rows, None]
        is_match = is_match[is_match.any(1)]
        found = is_match.cumsum(1)
        at_each = found / np.arange(1, len(gallery) + 1)
        precisions.append((at_each * is_match).sum(1) / found[:, -1])
        firsts.append(is_match.argmax(1))
    precision, first = np.concatenate(precisions), np.concatenate(firsts)
    if not len(precision):
        raise UserError(
            "no query has its identity in the gallery; at least one must: check that both sets "
            "number their identities alike"
        )
    return RetrievalScore(
        100.0 * float(precision.mean()),
        {k: 100.0 * float((first < k).mean()) for k in ranks},
        len(precision),
        len(query_labels) - len(precision),
    )
