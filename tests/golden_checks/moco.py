"""MoCo from encoder outputs to the queue, and the momentum update, as in training."""

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from streamssl.distributed.collectives import rank
from streamssl.methods.moco import contrast_with_queue
from streamssl.modules.feature_queue import FeatureQueue
from streamssl.modules.heads import linear_head, mlp_head
from streamssl.modules.momentum import MomentumCopy
from tests.golden_checks.vectors import Report, Vectors


def check_moco(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/step0/"):
        settings = vectors.under(case)
        _replay_queue(settings, report, None)
        for _, here in settings.steps():
            _check_encoders(here, settings.number("m"), report)


def check_moco_rank(vectors: Vectors, report: Report, group: ProcessGroup) -> None:
    _replay_queue(vectors.under(f"rank{rank(group)}"), report, group)


def check_moco_joined(vectors: Vectors, report: Report) -> None:
    """Compare one process with the global batch: same logits and queue, the average loss."""
    ranks = [vectors.under(name) for name in vectors.match(r"(rank\d+)/")]
    queue = _queue_before(ranks[0])
    for step, here in ranks[0].steps():
        parts = [part.under(f"step{step}") for part in ranks]
        q, k = (torch.cat([part.tensor(name) for part in parts]) for name in ("q_raw", "k_raw"))
        contrast = contrast_with_queue(
            q, k, queue, temperature=ranks[0].number("T"), step=step, group=None
        )
        logits = torch.cat([part.tensor("logits") for part in parts])
        loss = torch.stack([part.tensor("loss") for part in parts]).mean()
        report.compare(f"joined step{step}/logits", contrast.logits, logits)
        report.compare(f"joined step{step}/loss", contrast.loss, loss)
        report.compare(f"joined step{step}/queue", queue.rows.T, here.array("queue_after"))


def _replay_queue(settings: Vectors, report: Report, group: ProcessGroup | None) -> None:
    queue = _queue_before(settings)
    for step, here in settings.steps():
        report.compare(here.prefix + "queue_before", queue.rows.T, here.array("queue_before"))
        report.compare(here.prefix + "ptr_before", queue.position, here.array("ptr_before"))
        q_raw = here.tensor("q_raw").requires_grad_()
        contrast = contrast_with_queue(
            q_raw,
            here.tensor("k_raw"),
            queue,
            temperature=settings.number("T"),
            step=step,
            group=group,
        )
        contrast.q.retain_grad()
        contrast.loss.backward()
        for name in ("q", "k", "logits", "loss"):
            report.compare(here.prefix + name, getattr(contrast, name), here.array(name))
        report.compare_gradient(here.prefix + "grad_q_raw", q_raw.grad, here.array("grad_q_raw"))
        report.compare_gradient(here.prefix + "grad_q", contrast.q.grad, here.array("grad_q"))
        report.compare(here.prefix + "queue_after", queue.rows.T, here.array("queue_after"))
        report.compare(here.prefix + "ptr_after", queue.position, here.array("ptr_after"))


def _queue_before(settings: Vectors) -> FeatureQueue:
    first = settings.under("step0")
    rows = first.tensor("queue_before").T.contiguous()
    queue = FeatureQueue(*rows.shape)
    steps = torch.full((len(rows),), -1)
    position, num_filled = first.tensor("ptr_before"), torch.tensor(len(rows))
    queue.load_state_dict(
        {"rows": rows, "steps": steps, "position": position, "num_filled": num_filled}
    )
    return queue


def _check_encoders(here: Vectors, momentum: float, report: Report) -> None:
    """Compare queries, momentum update and keys, with the heads of v1 and v2 as encoders."""
    numbers = here.match(r"param_q(\d+)")
    if not numbers:
        return
    query = _head([here.tensor(f"param_q{number}") for number in numbers])
    copy = MomentumCopy(_head([here.tensor(f"param_k{number}_before") for number in numbers]))
    report.compare(here.prefix + "q_raw", query(here.tensor("xq")), here.array("q_raw"))
    copy.update(query, momentum)
    for number, parameter in zip(numbers, copy.parameters(), strict=True):
        name = f"param_k{number}_after"
        report.compare(here.prefix + name, parameter, here.array(name))
    report.compare(here.prefix + "k_raw", copy(here.tensor("xk")), here.array("k_raw"))


def _head(parameters: list[Tensor]) -> nn.Module:
    first, last = parameters[0], parameters[-2]
    if len(parameters) == 2:
        head: nn.Module = linear_head(first.shape[1], first.shape[0])
    else:
        head = mlp_head(first.shape[1], first.shape[0], last.shape[0])
    for own, recorded in zip(head.parameters(), parameters, strict=True):
        own.data.copy_(recorded)
    return head
