"""BYOL, as published, without an end, and for a CPU."""

from dataclasses import replace

from shards.crops import recipe as crops
from shards.stream.stream_config import StreamConfig
from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import ScheduleConfig, linearly_scaled_lr
from streamssl.recipes import crop_recipes as views
from streamssl.recipes.common import IMAGENET_STEPS_4096, SMALL_NET


def byol() -> RunConfig:
    """BYOL as in its main result: batch 4096, ResNet-50, 1,000 epochs of ImageNet.

    Paper: arXiv:2006.07733. The authors ran it on 512 TPU cores: LARS at 0.2 per 256, warm-up of
    ten epochs, cosine. Their shorter runs: 300 epochs `--optim.base-lr 4.8 --optim.weight-decay
    1e-6 --method.momentum 0.99`, 100 epochs the same at 7.2.
    Differs: the width of the blur follows sigma, theirs is 23 pixels; the target starts as a copy
    of the online network, theirs with its own random weights.
    Published: 74.3 % linear accuracy (the paper's abstract).
    """
    return RunConfig(
        method=BYOLConfig(),
        backbone=BackboneConfig(name="resnet50"),
        crops=crops.byol(),
        optim=OptimConfig(name="lars", base_lr=linearly_scaled_lr(0.2, 4096), weight_decay=1.5e-6),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=10 * IMAGENET_STEPS_4096),
        stream=StreamConfig(batch_size=4096, max_bytes=16 << 30),
        num_steps=1000 * IMAGENET_STEPS_4096,
    )


def byol_stream() -> RunConfig:
    """BYOL on a stream without an end: batch 512, constant rate and momentum after warm-up.

    Paper: arXiv:2006.07733; rate and momentum of its runs of 300 epochs.
    Differs: warm-up of 5,000 steps, no cosine of the rate or the momentum. No setting depends on
    `--num-steps`, so a run can end and be resumed at any step.
    Published: no such run.
    """
    return replace(
        byol(),
        method=BYOLConfig(momentum=0.99, momentum_kind="constant"),
        optim=OptimConfig(name="lars", base_lr=linearly_scaled_lr(0.3, 512), weight_decay=1e-6),
        schedule=ScheduleConfig(kind="constant", warmup_steps=5000),
        stream=StreamConfig(batch_size=512, max_bytes=4 << 30),
        num_steps=1_000_000,
    )


def byol_small() -> RunConfig:
    """BYOL on images of about 32 pixels, on a CPU.

    Paper: arXiv:2006.07733. Views without blur, narrower heads, AdamW. A run of a few hundred steps
    needs a fast target: after 231 steps on CIFAR-10 momentum 0.9 gives 36.4 % k-NN,
    0.99 gives 34.9 % and the untrained encoder 33.5 %.
    """
    return RunConfig(
        method=BYOLConfig(dim=128, hidden_dim=512, momentum=0.9),
        backbone=SMALL_NET,
        crops=views.byol_small(),
        optim=OptimConfig(name="adamw", base_lr=3e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=20),
        stream=StreamConfig(batch_size=256),
        num_steps=2000,
        save_every=200,
        precision="fp32",
    )
