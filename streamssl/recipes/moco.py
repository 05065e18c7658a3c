"""MoCo, as published and for a CPU."""

from shards.crops import recipe as crops
from shards.stream import StreamConfig
from streamssl.backbones import BackboneConfig
from streamssl.config import RunConfig
from streamssl.feature_queue import QueueConfig
from streamssl.methods.moco import MoCoConfig
from streamssl.optim import OptimConfig
from streamssl.recipes.common import IMAGENET_STEPS_256, SMALL_NET
from streamssl.schedules import ScheduleConfig


def moco_v2() -> RunConfig:
    """MoCo v2: batch 256, queue of 65,536 keys, ResNet-50, two views of 224 pixels.

    Paper: arXiv:2003.04297; 200 epochs of ImageNet give 67.5 % linear accuracy. SGD at 0.03 with a
    cosine. Command: `streamssl pretrain moco-v2 --data 's3://bucket/{0000..0999}.tar' --out
    runs/b`.
    """
    return RunConfig(
        method=MoCoConfig(),
        backbone=BackboneConfig(name="resnet50"),
        crops=crops.moco_v2(),
        optim=OptimConfig(name="sgd", base_lr=0.03, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine"),
        stream=StreamConfig(batch_size=256),
        num_steps=200 * IMAGENET_STEPS_256,
    )


def moco_v2_small() -> RunConfig:
    """MoCo v2 on pictures of about 32 pixels, on a CPU: CIFAR-10 to 54 % k-NN in ten minutes.

    Queue, momentum and temperature are those of the authors' own CIFAR-10 demonstration; results
    are in BENCHMARKS.md.
    """
    return RunConfig(
        method=MoCoConfig(queue=QueueConfig(capacity=4096), momentum=0.99, temperature=0.1),
        backbone=SMALL_NET,
        crops=crops.cifar(),
        optim=OptimConfig(name="adamw", base_lr=3e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=20),
        stream=StreamConfig(batch_size=256),
        num_steps=2400,
        save_every=200,
        precision="fp32",
    )
