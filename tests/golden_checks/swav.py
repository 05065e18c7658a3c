"""SwAV from head outputs to the updated prototypes, through the function that training calls."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.distributed.collectives import all_reduce_sum, rank, world_size
from streamssl.methods.swav import swap_assignments
from streamssl.modules.feature_queue import FeatureQueue
from streamssl.modules.prototypes import Prototypes
from streamssl.optim.optimizers import LARC
from tests.golden_checks.vectors import Report, Vectors


class Run:
    """Prototypes, queues and optimizer of one recorded run; `step` replays a step."""

    def __init__(self, settings: Vectors, group: ProcessGroup | None, num_joined: int = 1) -> None:
        first = settings.under("step0")
        num_prototypes, dim = first.array("W").shape
        assigned = [int(crop) for crop in first.match(r"codes_(\d+)")]
        if "crops_for_assign" in settings:
            assigned = [int(crop) for crop in settings.array("crops_for_assign")]
        capacity = settings.count("queue_length", 0) * world_size(group) * num_joined
        self.config = SwAVConfig(
            num_prototypes=num_prototypes,
            dim=dim,
            temperature=settings.number("temperature"),
            epsilon=settings.number("epsilon"),
            sinkhorn_iterations=settings.count("iterations"),
            crops_for_assign=tuple(assigned),
            freeze_steps=settings.count("freeze_prototypes_niters", 0),
            queue=QueueConfig(capacity=capacity) if capacity else None,
        )
        self.num_crops = int(settings.array("nmb_crops").sum())
        self.group = group
        self.prototypes = Prototypes(num_prototypes, dim)
        self.queues = [FeatureQueue(capacity, dim) for _ in assigned] if capacity else []
        self.optimizer = LARC(self.prototypes.parameters(), 0.0, momentum=0.9, weight_decay=1e-6)

    def step(
        self, step: int, lr: float, start: Tensor, features: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return values and gradients by the names of the file; the gradient of W is averaged."""
        self.optimizer.zero_grad()
        self.prototypes.weight.data.copy_(start)
        self.prototypes.normalise_()
        used = self.prototypes.weight.detach().clone()
        features = features.requires_grad_()
        swap = swap_assignments(
            features,
            self.prototypes,
            self.queues,
            self.config,
            num_crops=self.num_crops,
            step=step,
            group=self.group,
        )
        swap.scores.retain_grad()
        swap.loss.backward()
        weight = self.prototypes.weight
        weight.grad = all_reduce_sum(weight.grad, self.group) / world_size(self.group)
        gradients = {"W": weight.grad, "feats": features.grad, "scores": swap.scores.grad}
        if step < self.config.freeze_steps:
            self.prototypes.drop_gradient()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        values = {
            "W": used,
            "emb": swap.embeddings,
            "scores": swap.scores,
            "queue_used": torch.tensor(int(swap.queue_used)),
            "loss": swap.loss,
            "W_after": weight.detach().clone(),
        }
        for crop, codes in swap.assignments.items():
            values |= {f"codes_{crop}": codes, f"sinkhorn_in_{crop}": swap.sinkhorn_in[crop]}
        if self.queues:
            num_rows = len(features) // self.num_crops
            values["queue_after"] = self._queue_rows(num_rows)
        return values, gradients

    def _queue_rows(self, num_rows: int) -> Tensor:
        """Return this rank's rows (queues, rows, D), newest first; zeros in empty slots."""
        full = self.queues[0].capacity // world_size(self.group)
        rows = torch.stack([queue.share(num_rows, self.group) for queue in self.queues])
        empty = rows.new_zeros(len(rows), full - rows.shape[1], rows.shape[2])
        return torch.cat([rows, empty], dim=1)


def check_swav(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/step0/"):
        _replay(vectors.under(case), report, None)


def check_swav_rank(vectors: Vectors, report: Report, group: ProcessGroup) -> None:
    _replay(vectors.under(f"rank{rank(group)}"), report, group)


def _replay(settings: Vectors, report: Report, group: ProcessGroup | None) -> None:
    run, rates = Run(settings, group), settings.array("lr")
    for step, here in settings.steps():
        values, gradients = run.step(
            step, float(rates[step]), here.tensor("W_before"), here.tensor("feats")
        )
        for name, value in values.items():
            report.compare(here.prefix + name, value, here.array(name))
        for name, value in gradients.items():
            recorded = "grad_W_ddp" if name == "W" and "grad_W_ddp" in here else f"grad_{name}"
            report.compare_gradient(here.prefix + recorded, value, here.array(recorded))


def check_swav_joined(vectors: Vectors, report: Report) -> None:
    """Compare one process with the global batch: same results, average gradients."""
    ranks = [vectors.under(name) for name in vectors.match(r"(rank\d+)/")]
    settings, num_ranks = ranks[0], len(ranks)
    run, rates = Run(settings, None, num_ranks), settings.array("lr")
    for step, here in settings.steps():
        parts = [part.under(f"step{step}") for part in ranks]

        def joined(name: str, parts: list[Vectors] = parts) -> Tensor:
            return _interleave([part.tensor(name) for part in parts], run.num_crops)

        values, gradients = run.step(
            step, float(rates[step]), here.tensor("W_before"), joined("feats")
        )
        _compare_joined(report, step, parts, values, joined)
        for name in ("feats", "scores"):
            report.compare_gradient(
                f"joined step{step}/grad_{name}",
                gradients[name] * num_ranks,
                joined(f"grad_{name}"),
            )
        report.compare_gradient(
            f"joined step{step}/grad_W", gradients["W"], here.array("grad_W_ddp")
        )


def _compare_joined(
    report: Report,
    step: int,
    parts: list[Vectors],
    values: dict[str, Tensor],
    joined: Callable[[str], Tensor],
) -> None:
    for name in values:
        if name.startswith("codes_"):
            expected = torch.cat([part.tensor(name) for part in parts])
        elif name in ("emb", "scores"):
            expected = joined(name)
        elif name == "loss":
            expected = torch.stack([part.tensor(name) for part in parts]).mean()
        elif name in ("W", "W_after", "queue_used"):
            expected = parts[0].tensor(name)
        else:
            continue
        report.compare(f"joined step{step}/{name}", values[name], expected)


def _interleave(parts: list[Tensor], num_crops: int) -> Tensor:
    """Return crop-major rows of the global batch from those of ranks."""
    by_crop = [part.view(num_crops, -1, part.shape[1]) for part in parts]
    return torch.cat(by_crop, dim=1).flatten(0, 1)
