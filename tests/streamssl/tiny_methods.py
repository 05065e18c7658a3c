"""The methods of a backbone that costs nothing, trained for a few steps on one or several ranks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.config.methods.mochi_config import MoCHiConfig
from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.distributed.collectives import all_reduce_sum, rank, world_size
from streamssl.methods.base import SampleInfo
from streamssl.methods.fine_tuning import classification_loss
from tests.streamssl.tiny import TinyBackbone, built

NUM_SAMPLES, NUM_STEPS, SIDE = 8, 4, 8

PAIR, CROPS = (1, 1), (2, 2)
TINY: dict[str, tuple[Any, tuple[int, ...]]] = {
    "byol": (BYOLConfig(dim=6, hidden_dim=16, momentum=0.9), PAIR),
    "moco-v3": (MoCoV3Config(dim=6, hidden_dim=16, momentum=0.9, temperature=0.5), PAIR),
    "moco-v3-vit": (
        MoCoV3Config(head="vit", dim=6, hidden_dim=16, momentum=0.9, momentum_kind="constant"),
        PAIR,
    ),
    "simclr": (SimCLRConfig(dim=6, temperature=0.5), PAIR),
    "simclr-v2": (SimCLRConfig(dim=6, num_layers=3, temperature=0.5), CROPS),
    "supcon": (SupConConfig(dim=6, temperature=0.5), CROPS),
    "supcon-one": (SupConConfig(dim=6, temperature=0.5, anchors="one"), CROPS),
    "mochi": (
        MoCHiConfig(
            dim=6,
            momentum=0.9,
            queue=QueueConfig(capacity=4 * NUM_SAMPLES),
            num_hardest=6,
            num_mixed=5,
            num_mixed_with_query=3,
            start_step=2,
        ),
        PAIR,
    ),
}
"""By name: the configuration, and how many views each group has."""


def build(name: str, group: ProcessGroup | None = None, *, seed: int = 0) -> Any:
    """A method in float64 whose batch norms, those of momentum copies too, see no batch."""
    config, num_views = TINY[name]
    torch.manual_seed(seed)
    backbone = TinyBackbone(norm=nn.BatchNorm2d(3))
    method = built(
        config, backbone, num_views=num_views, num_steps=NUM_STEPS, seed=seed, group=group
    )
    for module in method.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = torch.zeros(module.num_features)
            module.running_var = torch.ones(module.num_features)
            module.track_running_stats = True
    return method.double().eval()


def views_of(name: str, step: int, group: ProcessGroup | None = None) -> list[Tensor]:
    """This rank's part of the global batch of a step: an image's crops are it and some noise."""
    generator = torch.Generator().manual_seed(step)
    shape = (NUM_SAMPLES, 3, SIDE, SIDE)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    views = []
    for num in TINY[name][1]:
        noise = torch.randn((num, *shape), generator=generator, dtype=torch.float64)
        views.append((images + 0.3 * noise)[:, _mine(group)].flatten(0, 1))
    return views


def samples_of(step: int, group: ProcessGroup | None = None) -> SampleInfo:
    """Who they are: half of them come again two steps later, three of them have no label."""
    number = torch.arange(NUM_SAMPLES) + (NUM_SAMPLES // 2) * step
    ids = torch.stack([torch.zeros_like(number), number], dim=1)
    labels = torch.tensor([0, 1, 0, -1, 2, -1, -1, 1])
    mine = _mine(group)
    return SampleInfo(ids[mine], torch.zeros_like(number)[mine], labels[mine])


def _mine(group: ProcessGroup | None) -> slice:
    num_rows = NUM_SAMPLES // world_size(group)
    return slice(rank(group) * num_rows, (rank(group) + 1) * num_rows)


def train(name: str, method: Any, steps: range, group: ProcessGroup | None = None) -> list[Tensor]:
    """Steps with gradients averaged over ranks, plainly descended; the losses, averaged too."""
    losses = []
    for step in steps:
        output = method.loss(
            views_of(name, step, group), step=step, samples=samples_of(step, group)
        )
        output.loss.backward()
        for parameter in method.parameters_to_optimise():
            parameter.grad = all_reduce_sum(parameter.grad, group) / world_size(group)
        method.after_backward(step)
        # No optimizer of torch: it would take each rank seconds to load what it is made of.
        with torch.no_grad():
            for parameter in method.parameters_to_optimise():
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
        method.after_step(step)
        losses.append(all_reduce_sum(output.loss.detach(), group) / world_size(group))
    return losses


def train_all(group: ProcessGroup | None) -> dict[str, dict[str, Any]]:
    """Losses and everything that a method remembers, of all of them."""
    found = {}
    for name in TINY:
        method = build(name, group)
        losses = train(name, method, range(NUM_STEPS), group)
        found[name] = {"losses": torch.stack(losses), "state": method.state_dict()}
    found["classification"] = classify(group)
    return found


def classify(group: ProcessGroup | None) -> dict[str, Tensor]:
    """A loss over samples of which the ranks have unequal numbers with a label."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(NUM_SAMPLES, 3, generator=generator, dtype=torch.float64)
    labels = samples_of(0, group).labels
    assert labels is not None
    loss = classification_loss(logits[_mine(group)], labels, group)
    return {"loss": all_reduce_sum(loss, group) / world_size(group)}
