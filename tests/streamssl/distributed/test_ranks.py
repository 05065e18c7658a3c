"""Two gloo processes and one process with the same global batch: the same mathematics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.distributed.collectives import (
    all_gather_rows,
    all_reduce_max,
    all_reduce_sum,
    rank,
    world_size,
)
from streamssl.methods.base import StepOutput
from streamssl.methods.deepcluster import label_spread
from streamssl.methods.swav import swap_assignments
from streamssl.modules.feature_queue import FeatureQueue
from streamssl.modules.prototypes import Prototypes
from streamssl.modules.sample_memory import NO_LABEL
from streamssl.modules.sinkhorn import sinkhorn
from streamssl.training.health import measure
from tests.golden_checks.ranks import run_ranks
from tests.streamssl.tiny import TinyBackbone, built, images
from tests.streamssl.tiny_methods import TINY, train_all

NUM_RANKS, NUM_SAMPLES, NUM_CROPS = 2, 8, 3


def everything(group: ProcessGroup | None) -> dict[str, Any]:
    """All that is compared, in one start of the processes."""
    return {
        "collectives": talk(group),
        "sinkhorn": assign(group),
        "swav": run_swav(group, capacity=16),
        "swav_uneven": run_swav(group, capacity=11),
        "moco": run_moco(group),
        "methods": train_all(group),
        "health": look(group),
    }


def part(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """This rank's rows of a global batch."""
    num_rows = len(rows) // world_size(group)
    return rows[rank(group) * num_rows : (rank(group) + 1) * num_rows]


def talk(group: ProcessGroup | None) -> dict[str, Tensor]:
    crops = images(4, 6, 0)
    own = torch.tensor([1.0, -1.0]) * (rank(group) + 1)
    return {
        "crops": all_gather_rows(part(crops, group), group),
        "sum": all_reduce_sum(own, group),
        "max": all_reduce_max(own, group),
        "own": own,
    }


def assign(group: ProcessGroup | None) -> Tensor:
    scores = torch.rand(NUM_SAMPLES, 5, generator=torch.Generator().manual_seed(0))
    codes = sinkhorn(part(scores, group), epsilon=0.05, num_iterations=3, group=group)
    return all_gather_rows(codes, group)


def look(group: ProcessGroup | None) -> dict[str, Tensor]:
    """What is read of features, loss and labels that the ranks share."""
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(32, 6, generator=generator), dim=1)
    mine = part(features, group)
    found = measure(StepOutput(mine[:, 0].mean(), features=mine, plateau=2.0), group)
    mean = all_reduce_sum(torch.as_tensor(found.pop("loss_over_plateau")), group)
    labels = part(torch.tensor([0, 0, 0, 0, 1, 2, NO_LABEL, 3]), group)
    readings = {
        **found,
        "loss_over_plateau": mean / world_size(group),
        "assignments_used": label_spread([labels, labels], [5, 4], group),
    }
    return {name: torch.as_tensor(value) for name, value in readings.items()}


def run_swav(group: ProcessGroup | None, capacity: int) -> dict[str, Any]:
    """Steps of SwAV after the head, prototypes moved by the gradient averaged over ranks."""
    generator = torch.Generator().manual_seed(0)
    config = SwAVConfig(num_prototypes=5, dim=6, queue=QueueConfig(capacity=capacity))
    prototypes, queues = Prototypes(5, 6), [FeatureQueue(capacity, 6) for _ in range(2)]
    prototypes.weight.data = torch.randn(5, 6, generator=generator)
    losses, readings = [], []
    for step in range(4):
        prototypes.normalise_()
        features = torch.randn(NUM_CROPS, NUM_SAMPLES, 6, generator=generator)
        mine = torch.cat([part(crop, group) for crop in features])
        swap = swap_assignments(
            mine, prototypes, queues, config, num_crops=NUM_CROPS, step=step, group=group
        )
        swap.loss.backward()
        gradient = prototypes.weight.grad
        assert gradient is not None
        prototypes.weight.data -= all_reduce_sum(gradient, group) / world_size(group)
        prototypes.weight.grad = None
        losses.append(all_reduce_sum(swap.loss.detach(), group) / world_size(group))
        readings.append(prototypes.count_use(torch.cat(list(swap.assignments.values())), group))
    return {
        "losses": torch.stack(losses),
        "prototypes": prototypes.weight.detach(),
        "queues": [queue.state_dict() for queue in queues],
        "used": swap.queue_used,
        "readings": readings,
        "unseen": prototypes.codes_since_chosen,
    }


def run_moco(group: ProcessGroup | None) -> dict[str, Any]:
    """Steps of MoCo whose keys pass batch norm; queries use their running statistics."""
    torch.manual_seed(0)
    config = MoCoConfig(dim=6, key_batch_norm_rows=2, queue=QueueConfig(capacity=16))
    backbone = TinyBackbone(norm=nn.BatchNorm2d(3))
    method = built(config, backbone, num_views=(1, 1), seed=5, group=group)
    backbone.eval()
    losses = []
    for step in range(3):
        query, key = (part(images(NUM_SAMPLES, 8, seed), group) for seed in (step, 50 + step))
        loss = method.loss([query, key], step=step).loss.detach()
        losses.append(all_reduce_sum(loss, group) / world_size(group))
    return {"losses": torch.stack(losses), "queue": method.queue.state_dict()}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """What each of two real processes found, and last what one process finds."""
    return [*run_ranks(everything, NUM_RANKS), everything(None)]


def test_gathered_rows_are_in_rank_order_and_pixels_in_place(found: list[dict[str, Any]]) -> None:
    """Channels-last images must not be scrambled on the way."""
    for each in found[:2]:
        assert torch.equal(each["collectives"]["crops"], images(4, 6, 0))


def test_reductions_leave_their_input_alone(found: list[dict[str, Any]]) -> None:
    """Sum and maximum over ranks, out of place."""
    for place, each in enumerate(found[:2]):
        assert each["collectives"]["sum"].tolist() == [3.0, -3.0]
        assert each["collectives"]["max"].tolist() == [2.0, -1.0]
        assert each["collectives"]["own"].tolist() == [place + 1.0, -place - 1.0]


@pytest.mark.parametrize("name", ["sinkhorn", "swav", "swav_uneven", "moco", "health"])
def test_two_processes_compute_what_one_computes(found: list[dict[str, Any]], name: str) -> None:
    """Codes, losses, prototypes, queues and readings, up to rounding."""
    for each in found[:2]:
        torch.testing.assert_close(each[name], found[2][name], rtol=1e-5, atol=1e-6)


def test_the_queue_took_part(found: list[dict[str, Any]]) -> None:
    """The comparison would prove little with an unused queue."""
    assert all(each["swav"]["used"] and each["swav_uneven"]["used"] for each in found)


@pytest.mark.parametrize("name", [*TINY, "classification"])
def test_a_method_learns_the_same_on_two_ranks(found: list[dict[str, Any]], name: str) -> None:
    """Losses, weights, momentum copies and queue in float64: gradients crossed the ranks."""
    for each in found[:2]:
        torch.testing.assert_close(
            each["methods"][name], found[2]["methods"][name], rtol=1e-9, atol=1e-9
        )
