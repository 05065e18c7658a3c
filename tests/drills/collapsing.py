"""Every method on tiny images, with good settings and with settings known to collapse.

Images have 4 x 4 pixels and are of 16 kinds. Blue shows the kind; red and green are noise of each
crop. A step of a two-layer backbone takes a few milliseconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.mochi_config import MoCHiConfig
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.methods.base import SampleInfo
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.optimizers import build_optimizer
from streamssl.training import health
from streamssl.training.health import HealthWatch
from tests.streamssl.tiny import built
from tests.tinyrun import tiny_swav

NUM_STEPS = 300
_KINDS, _IMAGES, _BATCH, _SIDE = 16, 256, 64, 4


def images() -> Tensor:
    """Return the blue of all images, (256, 1, 4, 4)."""
    generator = torch.Generator().manual_seed(7)
    kinds = torch.randn(_KINDS, 1, _SIDE, _SIDE, generator=generator)
    own = torch.randn(_IMAGES, 1, _SIDE, _SIDE, generator=generator)
    return kinds.repeat(_IMAGES // _KINDS, 1, 1, 1) + 0.3 * own


def batch(step: int, *, related: bool = True) -> tuple[Tensor, SampleInfo]:
    """Return two crops of the images of a step, (128, 3, 4, 4), and their samples.

    Crops that are not related show nothing of their image.
    """
    generator = torch.Generator().manual_seed(step)
    rows = torch.randperm(_IMAGES, generator=generator)[:_BATCH]
    crops = torch.randn(2, _BATCH, 3, _SIDE, _SIDE, generator=generator)
    if related:
        crops[:, :, 2:] = images()[rows] + 0.3 * crops[:, :, 2:]
    ids = torch.stack([torch.zeros_like(rows), rows], dim=1)
    return crops.flatten(0, 1), SampleInfo(ids, torch.zeros_like(rows), rows % _KINDS)


class Backbone(nn.Module):
    """Two layers."""

    num_features, image_size = 32, _SIDE

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * _SIDE**2, 64), nn.ReLU(), nn.Linear(64, self.num_features)
        )

    def forward(self, crops: Tensor) -> Tensor:
        out: Tensor = self.layers(crops)
        return out


ADAMW = OptimConfig(name="adamw", base_lr=5e-3, weight_decay=1e-4)


@dataclass(frozen=True)
class Case:
    """A method with good settings, and the change that makes it collapse: settings, optimizer,
    crops, or a change of its network."""

    config: Any
    broken: dict[str, Any] = field(default_factory=dict)
    broken_optim: OptimConfig = ADAMW
    related: bool = True
    spoil: Callable[[nn.Module], None] | None = None


def train(case: Case, *, broken: bool) -> list[tuple[int, dict[str, float], tuple[str, ...]]]:
    """Return step, readings and crossed limits for every health check of a run."""
    torch.manual_seed(0)
    config = replace(case.config, **case.broken) if broken else case.config
    method = built(config, Backbone(), num_views=(2,), seed=0, num_steps=NUM_STEPS)
    if broken and case.spoil is not None:
        case.spoil(method)
    optim = case.broken_optim if broken else ADAMW
    optimizer = build_optimizer(optim, method.parameters_to_optimise())
    watch, looks = HealthWatch(tiny_swav(num_steps=NUM_STEPS)), []
    for step in range(NUM_STEPS):
        crops, samples = batch(step, related=case.related or not broken)
        optimizer.zero_grad()
        output = method.loss([crops], step=step, samples=samples)
        output.loss.backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
        if (step + 1) % health.EVERY == 0:
            found = {**output.readings, **health.measure(output, None)}
            readings = {name: float(value) for name, value in found.items()}
            looks.append((step + 1, readings, watch.check(step + 1, readings).crossed))
    return looks


def without_predictor(method: nn.Module) -> None:
    """Remove BYOL's predictor: the online network must then equal its target."""
    method.predictor = nn.Identity()


# A rate so high that the weights do not converge.
_WILD = OptimConfig(name="sgd", base_lr=1000.0, weight_decay=1e-4)
_SIZES = {"dim": 16, "hidden_dim": 32}
_QUEUE = {"dim": 16, "queue": QueueConfig(capacity=512), "momentum": 0.9}
_MIXED = {"num_hardest": 32, "num_mixed": 16, "num_mixed_with_query": 8, "start_step": 20}
_LABELS = {**_SIZES, "mode": "stream", "num_prototypes": (16, 16), "memory": 512}
_SELA = SeLaConfig(**_LABELS, exponent=10.0, tolerance=1.0, label_steps=8)
_SPCL = SpCLConfig(memory=256, cluster_steps=10, fill_steps=4, k1=15, k2=4)
_PATCHMIX = PatchMixConfig(**_SIZES, patch_size=2, keys="own", identity_smoothing=0.0)

CASES = {
    # Uniform assignments: "lower epsilon" is the authors' advice for a loss that stays at ln K.
    "swav": Case(SwAVConfig(**_SIZES, num_prototypes=16, freeze_steps=0), {"epsilon": 1.0}),
    # Keys of the query encoder itself: "m = 0 fails to converge" (arXiv:1911.05722, table 3).
    "moco": Case(MoCoConfig(**_QUEUE), {"momentum": 0.0}),
    "mochi": Case(MoCHiConfig(**_QUEUE, **_MIXED), {"momentum": 0.0}),
    # Either the predictor or the slow target can be removed, not both (arXiv:2006.07733, table 5).
    "byol": Case(BYOLConfig(**_SIZES, momentum=0.9), {"momentum": 0.0}, spoil=without_predictor),
    # Crops too small or too much changed to show their image.
    "simclr": Case(SimCLRConfig(dim=16, temperature=0.5), related=False),
    "supcon": Case(SupConConfig(dim=16), broken_optim=_WILD),
    "moco-v3": Case(MoCoV3Config(**_SIZES, temperature=0.2, momentum=0.9), broken_optim=_WILD),
    "patchmix": Case(_PATCHMIX, broken_optim=_WILD),
    "deepcluster-v2": Case(DeepClusterConfig(**_LABELS, cluster_steps=8), broken_optim=_WILD),
    "sela-v2": Case(_SELA, broken_optim=_WILD),
    # All images are neighbours: one cluster has all of them.
    "spcl": Case(_SPCL, {"epsilon": 0.95}),
}
"""Cases by method."""
NOTICED_BY = 150
