"""SwAV's Sinkhorn: one process, the ranks of a group, and one process with all their rows."""

import re

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from streamssl.modules.sinkhorn import sinkhorn
from tests.golden_checks.vectors import Report, Vectors

# The codes of a case that names none: the paper's settings.
EPSILON, NUM_ITERATIONS = 0.05, 3


def check_sinkhorn(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/scores"):
        here = vectors.under(case)
        for name in here.match(r"(codes.*)"):
            codes = _codes(here.tensor("scores"), name, None)
            _compare(report, f"{case}/{name}", codes, here.tensor(name))


def check_sinkhorn_rank(vectors: Vectors, report: Report, group: ProcessGroup) -> None:
    mine = vectors.under(f"rank{group.rank()}")
    for case in mine.match(r"([^/]+)/scores"):
        here = mine.under(case)
        for name in here.match(r"(codes.*)"):
            codes = _codes(here.tensor("scores"), name, group)
            _compare(report, f"{mine.prefix}{case}/{name}", codes, here.tensor(name))


def check_sinkhorn_joined(vectors: Vectors, report: Report) -> None:
    ranks = vectors.match(r"(rank\d+)/")
    for case in vectors.under(ranks[0]).match(r"([^/]+)/scores"):
        parts = [vectors.under(rank).under(case) for rank in ranks]
        scores = torch.cat([part.tensor("scores") for part in parts])
        for name in parts[0].match(r"(codes.*)"):
            expected = torch.cat([part.tensor(name) for part in parts])
            _compare(report, f"joined {case}/{name}", _codes(scores, name, None), expected)


def _codes(scores: Tensor, name: str, group: ProcessGroup | None) -> Tensor:
    epsilon, num_iterations = EPSILON, NUM_ITERATIONS
    if settings := re.match(r"codes_eps([\d.e-]+)_it(\d+)", name):
        epsilon, num_iterations = float(settings[1]), int(settings[2])
    return sinkhorn(scores, epsilon=epsilon, num_iterations=num_iterations, group=group)


def _compare(report: Report, name: str, codes: Tensor, expected: Tensor) -> None:
    """Check that our assignments are finite where the authors' code overflows to NaN."""
    report.compare(f"{name} row sums", codes.sum(dim=1), torch.ones(len(codes)))
    if expected.isfinite().all():
        report.compare(name, codes, expected)
