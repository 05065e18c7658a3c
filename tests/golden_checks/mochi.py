"""MoCHi: the hardest keys, their mixtures by recorded draws, the loss, the queue."""

import torch
from torch import Tensor
from torch.nn import functional as F

from streamssl.methods.mochi import find_hardest, mix, mixed_info_nce
from streamssl.methods.moco import enqueue
from streamssl.modules.feature_queue import FeatureQueue
from tests.golden_checks.vectors import Report, Vectors


def check_mochi(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/q_raw$"):
        _check_case(vectors.under(case), report)


def _check_case(here: Vectors, report: Report) -> None:
    q_raw = here.tensor("q_raw").requires_grad_()
    q = F.normalize(q_raw, dim=1)
    q.retain_grad()
    k, rows = here.tensor("k"), here.tensor("queue")
    excluded = None
    if "file_idxs" in here:
        excluded = here.tensor("file_idxs")[:, None] == here.tensor("queue_file").view(1, -1)
    report.compare(here.prefix + "q", q, here.array("q"))
    hardest = find_hardest(q.detach() @ rows.T, here.count("n_hard"), excluded)
    expected = here.tensor("hard_idx").sort(dim=1).values
    report.compare(here.prefix + "hard_idx", hardest.sort(dim=1).values, expected)
    mixed = _mixtures(here, q.detach(), rows, report)
    loss, logits = mixed_info_nce(q, k, rows, mixed, here.number("T"), excluded)
    loss.backward()
    _compare_logits(here, logits, report)
    report.compare(here.prefix + "loss", loss, here.array("loss"))
    report.compare_gradient(here.prefix + "grad_q_raw", q_raw.grad, here.array("grad_q_raw"))
    report.compare_gradient(here.prefix + "grad_q", q.grad, here.array("grad_q"))
    _check_queue(here, rows, k, report)


def _mixtures(here: Vectors, q: Tensor, rows: Tensor, report: Report) -> Tensor:
    parts = []
    if "alpha" in here:
        first, second = (rows[here.tensor(f"queue_idx_{name}")] for name in ("i", "j"))
        parts.append(mix(first, second, here.tensor("alpha").squeeze(2)))
        report.compare(here.prefix + "synth1", parts[-1], here.array("synth1"))
    if "beta" in here:
        keys = rows[here.tensor("queue_idx_2")]
        queries = q[:, None].expand_as(keys)
        parts.append(mix(queries, keys, here.tensor("beta").squeeze(2)))
        report.compare(here.prefix + "synth2", parts[-1], here.array("synth2"))
    return torch.cat(parts, dim=1)


def _compare_logits(here: Vectors, logits: Tensor, report: Report) -> None:
    """Compare logits; excluded ones are -inf in both."""
    expected = here.tensor("logits")
    report.compare(here.prefix + "left out", logits.isinf().long(), expected.isinf().long())
    kept = expected.isfinite()
    report.compare(here.prefix + "logits", logits[kept], expected[kept])


def _check_queue(here: Vectors, rows: Tensor, k: Tensor, report: Report) -> None:
    """Compare the queue: only keys enter, at the position of the file."""
    after = here.tensor("queue_after")
    start = int((after != rows).any(dim=1).long().argmax())
    queue = FeatureQueue(*rows.shape)
    queue.load_state_dict(
        {
            "rows": rows,
            "steps": torch.full((len(rows),), -1),
            "position": torch.tensor(start),
            "num_filled": torch.tensor(len(rows)),
        }
    )
    enqueue(k, queue, 0, None)
    report.compare(here.prefix + "queue_after", queue.rows, after)
