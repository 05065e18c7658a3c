"""SpCL: the loss and its memory; neighbourhoods, density clusters and their reliable part."""

import numpy as np

from streamssl.methods.spcl import cluster_contrast, follow_
from streamssl.modules.neighbourhoods import (
    SparseRows,
    dbscan,
    encode,
    jaccard_neighbours,
    jaccard_rows,
    nearest,
)
from streamssl.modules.self_paced import self_paced_labels
from tests.golden_checks.vectors import Report, Vectors


def check_memory(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/temp$"):
        settings = vectors.under(case)
        memory, labels = settings.tensor("features0"), settings.tensor("labels")
        for _, here in settings.steps():
            x, slots = here.tensor("inputs").requires_grad_(), here.tensor("indexes")
            loss = cluster_contrast(x, labels[slots], memory, labels, settings.number("temp"))
            loss.backward()
            follow_(memory, slots, x.detach(), settings.number("momentum"))
            report.compare(here.prefix + "loss", loss, here.array("loss"))
            report.compare_gradient(here.prefix + "grad", x.grad, here.array("grad_inputs"))
            report.compare(here.prefix + "features_after", memory, here.array("features_after"))


def check_self_paced(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/k1$"):
        settings = vectors.under(case)
        threshold = None
        for epoch in sorted(int(text) for text in settings.match(r"epoch(\d+)/")):
            here = settings.under(f"epoch{epoch}")
            _check_neighbours(settings, here, report)
            threshold = _check_labels(here, report, threshold)


def _check_neighbours(settings: Vectors, here: Vectors, report: Report) -> None:
    """Compare neighbours as sets, distances and labels, from features to clusters."""
    k1, k2 = settings.count("k1"), settings.count("k2")
    features = here.tensor("features").double()
    rank = nearest(features, k1)
    recorded = here.array("initial_rank")
    for cut in (k2, int(np.around(k1 / 2)) + 1, k1):
        expected = np.sort(recorded[:, :cut], axis=1)
        report.compare(here.prefix + f"nearest {cut}", np.sort(rank[:, :cut], axis=1), expected)
    distances = np.stack(list(jaccard_rows(encode(features, rank, k1=k1, k2=k2))))
    report.compare(here.prefix + "jaccard_dist", distances, here.array("jaccard_dist"))
    epsilon, gap = settings.number("eps"), settings.number("eps_gap")
    ours = jaccard_neighbours(features, k1=k1, k2=k2, largest=epsilon + gap)
    theirs = _sparse(here.array("jaccard_dist").astype(np.float64))
    for name, at in (("dbscan", 0.0), ("dbscan_tight", -gap), ("dbscan_loose", gap)):
        for neighbours in (ours, theirs):
            labels = dbscan(
                neighbours, epsilon=epsilon + at, min_samples=settings.count("min_samples")
            )
            report.compare(here.prefix + name, labels, here.array(name))


def _check_labels(here: Vectors, report: Report, threshold: float | None) -> float:
    clusters, tight, loose = (
        here.array(name) for name in ("dbscan", "dbscan_tight", "dbscan_loose")
    )
    found = self_paced_labels(clusters, tight, loose, threshold)
    report.compare(here.prefix + "R_comp", found.compactness, here.array("R_comp"))
    report.compare(here.prefix + "R_indep", found.independence, here.array("R_indep"))
    for name, value in (
        ("cluster_R_comp", found.cluster_compactness),
        ("cluster_R_indep", found.cluster_independence),
    ):
        report.compare(here.prefix + name, value, here.array(name))
    report.compare(here.prefix + "indep_thres", found.threshold, here.array("indep_thres"))
    report.compare(here.prefix + "pseudo_labels", found.labels, here.array("pseudo_labels"))
    return found.threshold


def _sparse(distances: np.ndarray) -> SparseRows:
    owners, columns = np.nonzero(distances < 1)
    start = np.searchsorted(owners, np.arange(len(distances) + 1))
    return SparseRows(start, columns, distances[owners, columns])
