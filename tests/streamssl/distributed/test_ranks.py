"""Two and four ranks and one process with the same global batch: the same mathematics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.distributed.collectives import (
    all_gather_rows,
    all_reduce_max,
    all_reduce_sum,
    from_first_rank,
    rank,
    world_size,
)
from streamssl.methods.base import Method, StepOutput
from streamssl.methods.deepcluster import label_spread
from streamssl.methods.fine_tuning import classification_loss
from streamssl.methods.swav import swap_assignments
from streamssl.modules.batch_norm import enter_group, share_batch_norm
from streamssl.modules.feature_queue import FeatureQueue
from streamssl.modules.prototypes import Prototypes
from streamssl.modules.sample_memory import NO_LABEL
from streamssl.modules.sinkhorn import sinkhorn
from streamssl.training.health import measure
from tests.gloo_ranks import with_ranks
from tests.streamssl.epochs import coloured, in_epochs, run
from tests.streamssl.tiny import TinyBackbone, built, images
from tests.streamssl.tiny_methods import NUM_STEPS, TINY, build, views_of

NUM_SAMPLES, NUM_CROPS, STEPS = 8, 3, 7
SMALL: dict[str, Any] = {"num_prototypes": (4, 3), "dim": 6, "hidden_dim": 8}
STREAM: dict[str, Any] = {**SMALL, "mode": "stream", "memory": 20}
SHARP: dict[str, Any] = {"exponent": 3.0, "tolerance": 1.0}
SPCL: dict[str, Any] = {"k1": 6, "k2": 2, "cluster_steps": 2}
MIX: dict[str, Any] = {"patch_size": 4, "dim": 6, "hidden_dim": 8}
# Methods with a memory of samples, and PatchMix; `TINY` has the others.
METHODS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "deepcluster": (DeepClusterConfig(**SMALL, memory=16, cluster_steps=2), (2, 1)),
    "deepcluster stream": (DeepClusterConfig(**STREAM, cluster_steps=3), (2, 1)),
    "sela": (SeLaConfig(**SMALL, **SHARP, memory=16, label_steps=2), (2, 1)),
    "sela stream": (SeLaConfig(**STREAM, **SHARP, label_steps=3), (2, 1)),
    "spcl": (SpCLConfig(**SPCL, memory=16, fill_steps=2), (1,)),
    "spcl window": (SpCLConfig(**SPCL, memory=12, fill_steps=1), (2,)),
    "spcl domains": (SpCLConfig(**SPCL, memory=12, fill_steps=1, source_classes=4), (2,)),
    "patchmix": (PatchMixConfig(**MIX, num_mixed=3, momentum=0.9), (1, 1, 2)),
    "patchmix alone": (PatchMixConfig(**MIX, keys="own"), (2,)),
}


def build_methods() -> dict[str, Method]:
    """Build all methods; random weights come from a global generator, so not in threads."""
    methods = {}
    for name, (config, num_views) in METHODS.items():
        torch.manual_seed(0)
        method = built(config, TinyBackbone(), num_views=num_views, seed=3, num_steps=STEPS)
        share_batch_norm(method.double())
        methods[name] = method
    methods |= {name: build(name) for name in TINY}
    torch.manual_seed(0)
    config = MoCoConfig(dim=6, key_batch_norm_rows=2, queue=QueueConfig(capacity=16))
    methods["moco"] = built(config, TinyBackbone(norm=nn.BatchNorm2d(3)), num_views=(1, 1), seed=5)
    return methods


def results(group: ProcessGroup | None, methods: dict[str, Method]) -> dict[str, Any]:
    """Return all that is compared between ranks and one process."""
    return {
        "collectives": use_collectives(group),
        "sinkhorn": assign(group),
        "swav": run_swav(group, capacity=16),
        "swav uneven": run_swav(group, capacity=11),
        "moco": run_moco(group, methods["moco"]),
        "health": read_health(group),
        "classification": classify(group),
        **{name: train(group, methods[name], name) for name in METHODS},
        **{name: train_tiny(group, methods[name], name) for name in TINY},
    }


def part(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return this rank's rows of a global batch."""
    num_rows = len(rows) // world_size(group)
    return rows[rank(group) * num_rows : (rank(group) + 1) * num_rows]


def use_collectives(group: ProcessGroup | None) -> dict[str, Tensor]:
    own = torch.tensor([1.0, -1.0]) * (rank(group) + 1)
    return {
        "crops": all_gather_rows(part(images(4, 6, 0), group), group),
        "sum": all_reduce_sum(own, group),
        "max": all_reduce_max(own, group),
        "first": from_first_rank(own, group),
        "first of none": from_first_rank(own[:0], group),
        "own": own,
    }


def assign(group: ProcessGroup | None) -> Tensor:
    scores = torch.rand(NUM_SAMPLES, 5, generator=torch.Generator().manual_seed(0))
    found = sinkhorn(part(scores, group), epsilon=0.05, num_iterations=3, group=group)
    return all_gather_rows(found, group)


def classify(group: ProcessGroup | None) -> Tensor:
    """Return the loss of samples of which the ranks have unequal numbers with a label."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(NUM_SAMPLES, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, -1, 2, -1, -1, -1])
    loss = classification_loss(part(logits, group), part(labels, group), group)
    return all_reduce_sum(loss, group) / world_size(group)


def read_health(group: ProcessGroup | None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(32, 6, generator=generator), dim=1)
    own = part(features, group)
    found = measure(StepOutput(own[:, 0].mean(), features=own, plateau=2.0), group)
    mean = all_reduce_sum(torch.as_tensor(found.pop("loss_over_plateau")), group)
    labels = part(torch.tensor([0, 0, 0, 0, 1, 2, NO_LABEL, 3]), group)
    readings = {
        **found,
        "loss_over_plateau": mean / world_size(group),
        "assignments_used": label_spread([labels, labels], [5, 4], group),
    }
    return {name: torch.as_tensor(value) for name, value in readings.items()}


def run_swav(group: ProcessGroup | None, capacity: int) -> dict[str, Any]:
    """Run SwAV after the head; the mean gradient over ranks moves the prototypes."""
    generator = torch.Generator().manual_seed(0)
    config = SwAVConfig(num_prototypes=5, dim=6, queue=QueueConfig(capacity=capacity))
    prototypes, queues = Prototypes(5, 6), [FeatureQueue(capacity, 6) for _ in range(2)]
    prototypes.weight.data = torch.randn(5, 6, generator=generator)
    losses, readings = [], []
    for step in range(4):
        prototypes.normalise_()
        features = torch.randn(NUM_CROPS, NUM_SAMPLES, 6, generator=generator)
        own = torch.cat([part(crop, group) for crop in features])
        swap = swap_assignments(
            own, prototypes, queues, config, num_crops=NUM_CROPS, step=step, group=group
        )
        swap.loss.backward()
        gradient = prototypes.weight.grad
        assert gradient is not None
        prototypes.weight.data -= all_reduce_sum(gradient, group) / world_size(group)
        prototypes.weight.grad = None
        losses.append(all_reduce_sum(swap.loss.detach(), group) / world_size(group))
        readings.append(prototypes.count_use(torch.cat(list(swap.assignments.values())), group))
    assert swap.queue_used
    return {
        "losses": torch.stack(losses),
        "prototypes": prototypes.weight.detach(),
        "queues": [queue.state_dict() for queue in queues],
        "readings": readings,
        "unseen": prototypes.codes_since_chosen,
    }


def run_moco(group: ProcessGroup | None, method: Method) -> dict[str, Any]:
    """Run MoCo with shuffled batch norm of keys; queries use running statistics."""
    method.group = group
    method.backbone.eval()
    losses = []
    for step in range(3):
        query, key = (part(images(NUM_SAMPLES, 8, seed), group) for seed in (step, 50 + step))
        loss = method.loss([query, key], step=step).loss.detach()
        losses.append(all_reduce_sum(loss, group) / world_size(group))
    return {"losses": torch.stack(losses), "queue": method.queue.state_dict()}  # type: ignore[operator]


def in_source(number: int) -> int:
    """Six of sixteen samples have one of three labels; ranks have different shares of them."""
    return number % 3 if number < 6 else -1


def train(group: ProcessGroup | None, method: Method, name: str) -> dict[str, Any]:
    """Return the losses and the whole state of a method after some steps."""
    enter_group(method, group)
    method.group = group
    num_views = METHODS[name][1]

    def views(numbers: list[int], step: int) -> list[Tensor]:
        return [
            coloured(numbers, num, 8 if place < 2 else 4, 10 * step + place).double()
            for place, num in enumerate(num_views)
        ]

    label = in_source if name == "spcl domains" else None
    numbers = in_epochs(16, NUM_SAMPLES)
    losses = run(method, range(STEPS), views=views, numbers=numbers, lr=0.02, label=label)
    return {"losses": losses, **method.state_dict()}


def train_tiny(group: ProcessGroup | None, method: Method, name: str) -> dict[str, Any]:
    """Return the losses and the whole state of a method; half of the samples return."""
    method.group = group
    losses = run(
        method,
        range(NUM_STEPS),
        views=lambda _, step: views_of(name, step),
        numbers=lambda step: [number + NUM_SAMPLES // 2 * step for number in range(NUM_SAMPLES)],
        label=lambda number: (0, 1, 0, -1, 2, -1, -1, 1)[number % NUM_SAMPLES],
    )
    return {"losses": losses, **method.state_dict()}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Return the results of one process."""
    return results(None, build_methods())


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Return the results of each of two ranks; the drills compare four, too."""
    num = request.param
    return with_ranks(results, num, [build_methods() for _ in range(num)])


def test_collectives_keep_rank_order_and_their_input(found: list[dict[str, Any]]) -> None:
    """Channels-last images must not be scrambled, and no input changed."""
    for place, each in enumerate(found):
        collectives = each["collectives"]
        assert torch.equal(collectives["crops"], images(4, 6, 0))
        num = len(found)
        assert collectives["sum"].tolist() == [num * (num + 1) / 2, -num * (num + 1) / 2]
        assert collectives["max"].tolist() == [num, -1.0]
        assert collectives["first"].tolist() == [1.0, -1.0]
        assert collectives["first of none"].tolist() == []
        assert collectives["own"].tolist() == [place + 1.0, -place - 1.0]


def test_collectives_of_one_process_return_their_input() -> None:
    """One process needs no copy and no process group."""
    x = torch.randn(3, 2)
    assert world_size(None) == 1 and rank(None) == 0
    for collective in (all_reduce_sum, all_reduce_max, all_gather_rows, from_first_rank):
        assert collective(x, None) is x


FLOAT32 = ["sinkhorn", "swav", "swav uneven", "moco", "health"]


@pytest.mark.parametrize("name", [*FLOAT32, "classification", *METHODS, *TINY])
def test_ranks_compute_what_one_process_computes(
    alone: dict[str, Any], found: list[dict[str, Any]], name: str
) -> None:
    """Otherwise the number of GPUs would change what is learned."""
    rtol, atol = (1e-5, 1e-6) if name in FLOAT32 else (1e-9, 1e-11)
    for each in found:
        torch.testing.assert_close(each[name], alone[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["deepcluster", "deepcluster stream", "sela", "sela stream"])
def test_the_compared_steps_learned_from_labels(alone: dict[str, Any], name: str) -> None:
    """The comparison would prove little if every label were missing."""
    losses = alone[name]["losses"]
    assert losses[0] == 0.0 and min(losses[-4:]) > 0.02
