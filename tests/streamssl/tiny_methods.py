"""Every method on a backbone that costs no time."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.mochi_config import MoCHiConfig
from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.methods.base import SampleInfo
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
"""Methods without sample ids, by name: settings, and the number of views of each group."""

_SMALL: dict[str, Any] = {"num_prototypes": (6, 4), "dim": 8, "hidden_dim": 16, "memory": 32}
_SPCL: dict[str, Any] = {"k1": 8, "k2": 3, "cluster_steps": 2, "fill_steps": 1}
WITH_MEMORY: dict[str, Any] = {
    "deepcluster": DeepClusterConfig(**_SMALL, cluster_steps=2),
    "deepcluster stream": DeepClusterConfig(**_SMALL, mode="stream", cluster_steps=2),
    "sela": SeLaConfig(**_SMALL, label_steps=2),
    "sela stream": SeLaConfig(**_SMALL, mode="stream", label_steps=2),
    "spcl": SpCLConfig(memory=32, **_SPCL),
    "spcl window": SpCLConfig(memory=20, **_SPCL),
    "patchmix": PatchMixConfig(patch_size=8, dim=8, hidden_dim=16),
    "patchmix alone": PatchMixConfig(patch_size=8, dim=8, hidden_dim=16, keys="own"),
}
"""Methods with a memory of samples, and PatchMix, for a batch of 16."""


def build(name: str, *, seed: int = 0) -> Any:
    """Build a method in float64 whose batch norms, also of momentum copies, are fixed."""
    config, num_views = TINY[name]
    torch.manual_seed(seed)
    backbone = TinyBackbone(norm=nn.BatchNorm2d(3))
    method = built(config, backbone, num_views=num_views, num_steps=NUM_STEPS, seed=seed)
    for module in method.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = torch.zeros(module.num_features)
            module.running_var = torch.ones(module.num_features)
            module.track_running_stats = True
    return method.double().eval()


def views_of(name: str, step: int) -> list[Tensor]:
    """Return the batch of a step: the crops of an image are the image and some noise."""
    generator = torch.Generator().manual_seed(step)
    shape = (NUM_SAMPLES, 3, SIDE, SIDE)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    views = []
    for num in TINY[name][1]:
        noise = torch.randn((num, *shape), generator=generator, dtype=torch.float64)
        views.append((images + 0.3 * noise).flatten(0, 1))
    return views


def samples_of(step: int) -> SampleInfo:
    """Return the samples of a step: half of them return two steps later, three have no label."""
    number = torch.arange(NUM_SAMPLES) + (NUM_SAMPLES // 2) * step
    ids = torch.stack([torch.zeros_like(number), number], dim=1)
    labels = torch.tensor([0, 1, 0, -1, 2, -1, -1, 1])
    return SampleInfo(ids, torch.zeros_like(number), labels)


def train(name: str, method: Any, steps: range) -> None:
    """Train by plain gradient descent."""
    for step in steps:
        output = method.loss(views_of(name, step), step=step, samples=samples_of(step))
        output.loss.backward()
        method.after_backward(step)
        with torch.no_grad():
            for parameter in method.parameters_to_optimise():
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
        method.after_step(step)
