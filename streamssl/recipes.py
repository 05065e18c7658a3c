"""Runs as functions. Each docstring is the run's lab note: paper, command, cost, what to expect.

To see what a run does, read its function; to change it, write another, or override on the command
line (`--optim.base-lr 0.3`). `RECIPES` is what the command line offers.
"""

from collections.abc import Callable
from dataclasses import replace

from shards.crops import recipe as crops
from shards.stream import StreamConfig
from streamssl.backbones import BackboneConfig
from streamssl.config import RunConfig
from streamssl.feature_queue import QueueConfig
from streamssl.methods.moco import MoCoConfig
from streamssl.methods.swav import SwAVConfig
from streamssl.optim import OptimConfig
from streamssl.schedules import ScheduleConfig

# Optimizer steps of one pass over ImageNet-1k, in which the papers count.
_IMAGENET_STEPS_256 = 5005
_IMAGENET_STEPS_4096 = 313


def swav() -> RunConfig:
    """SwAV for one or a few GPUs: batch 256, feature queue, ResNet-50, 2x224 + 6x96.

    Paper: arXiv:2006.09882, section 4.3, as its authors ran it for 200 epochs of ImageNet: the
    queue of 3,840 starts after 15 epochs, prototypes are frozen for one, LARC at 0.6 falls to
    0.0006 by a cosine. Command: `streamssl pretrain swav --data 's3://bucket/{0000..0999}.tar'
    --out runs/a`. They report 74 % linear accuracy after 400 epochs on ImageNet.
    """
    return RunConfig(
        method=SwAVConfig(
            freeze_steps=_IMAGENET_STEPS_256,
            queue=QueueConfig(capacity=3840, start_step=15 * _IMAGENET_STEPS_256),
        ),
        backbone=BackboneConfig(name="resnet50"),
        crops=crops.swav(),
        optim=OptimConfig(name="larc", base_lr=0.6, weight_decay=1e-6),
        schedule=ScheduleConfig(kind="swav", final_lr=0.0006),
        stream=StreamConfig(batch_size=256),
        num_steps=200 * _IMAGENET_STEPS_256,
    )


def swav_large_batch() -> RunConfig:
    """SwAV as in its main result: batch 4096, no queue, 800 epochs of ImageNet.

    Paper: arXiv:2006.09882, appendix A.2: 75.3 % linear accuracy with ResNet-50 on 64 GPUs. A block
    of crops for such a batch is large: give `--stream.max-bytes` 16 GB or more.
    """
    return RunConfig(
        method=SwAVConfig(freeze_steps=_IMAGENET_STEPS_4096),
        backbone=BackboneConfig(name="resnet50"),
        crops=crops.swav(),
        optim=OptimConfig(name="larc", base_lr=4.8, weight_decay=1e-6),
        schedule=ScheduleConfig(
            kind="swav", warmup_steps=10 * _IMAGENET_STEPS_4096, start_lr=0.3, final_lr=0.0048
        ),
        stream=StreamConfig(batch_size=4096, max_bytes=16 << 30),
        num_steps=800 * _IMAGENET_STEPS_4096,
    )


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
        num_steps=200 * _IMAGENET_STEPS_256,
    )


# A residual net with one block a stage that begins at half size: 600 pictures/s a core in bf16.
# Blocks count from the first step: where each began as the identity, four would be no net at all.
_SMALL_NET = BackboneConfig(
    name="resnet18",
    options={"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "zero_init_last": False},
    stem="half",
)


def swav_small() -> RunConfig:
    """SwAV on pictures of about 32 pixels, on a CPU: CIFAR-10 to 53 % k-NN in ten minutes.

    What matters on such a budget, found by short runs on CIFAR-10: an epsilon of 0.03 (sharper
    codes), prototypes that learn from the start, a high rate, and a net that is cheap enough to
    see each picture ten times. On a CPU with bfloat16 units give `--precision bf16`. Results are
    in BENCHMARKS.md.
    """
    return RunConfig(
        method=SwAVConfig(num_prototypes=128, hidden_dim=512, epsilon=0.03, freeze_steps=0),
        backbone=_SMALL_NET,
        crops=crops.cifar(),
        optim=OptimConfig(name="adamw", base_lr=5e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=20),
        stream=StreamConfig(batch_size=256),
        num_steps=2000,
        save_every=200,
        precision="fp32",
    )


def moco_v2_small() -> RunConfig:
    """MoCo v2 on pictures of about 32 pixels, on a CPU: CIFAR-10 to 54 % k-NN in ten minutes.

    Queue, momentum and temperature are those of the authors' own CIFAR-10 demonstration; results
    are in BENCHMARKS.md.
    """
    return RunConfig(
        method=MoCoConfig(queue=QueueConfig(capacity=4096), momentum=0.99, temperature=0.1),
        backbone=_SMALL_NET,
        crops=crops.cifar(),
        optim=OptimConfig(name="adamw", base_lr=3e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=20),
        stream=StreamConfig(batch_size=256),
        num_steps=2400,
        save_every=200,
        precision="fp32",
    )


def swav_demo() -> RunConfig:
    """SwAV on the pictures of `streamssl demo`: 32-pixel crops of 48-pixel pictures, two minutes.

    Mild colour changes on purpose: with SwAV's own jitter two crops of such a picture share so
    little at first that the loss stays at its plateau of ln 100 for longer than a demo may take.
    """
    view = replace(crops.cifar().groups[0], scale=(0.3, 1.0), grey_probability=0.1)
    return replace(
        swav_small(),
        method=SwAVConfig(num_prototypes=100, hidden_dim=512, epsilon=0.03, freeze_steps=0),
        crops=crops.CropRecipe((view,)),
        optim=OptimConfig(name="adamw", base_lr=3e-3, weight_decay=1e-4),
        num_steps=240,
        save_every=120,
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "swav": swav,
    "swav-large-batch": swav_large_batch,
    "swav-small": swav_small,
    "moco-v2": moco_v2,
    "moco-v2-small": moco_v2_small,
}
