"""SwAV, as published, without an end, and for a CPU."""

from dataclasses import replace

from shards.crops import recipe as crops
from shards.stream.stream_config import StreamConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import ScheduleConfig
from streamssl.recipes.common import IMAGENET_STEPS_256, IMAGENET_STEPS_4096, SMALL_NET


def swav() -> RunConfig:
    """SwAV for one or a few GPUs: batch 256, feature queue, ResNet-50, 2x224 + 6x96.

    Paper: arXiv:2006.09882, section 4.3. The authors ran it on one node for 200 and 400 epochs of
    ImageNet: the queue of 3,840 starts after 15 epochs, prototypes are frozen for one, LARC falls
    from 0.6 to 0.0006 by a cosine, no warm-up (their scripts/swav_200ep_bs256_pretrain.sh).
    Differs: pixels are divided by 0.229 theirs by 0.228.
    Published: 72.7 % linear accuracy after these 200 epochs, 74.3 % after 400 (their README).
    Command: `streamssl pretrain swav --data 's3://bucket/{0000..0999}.tar' --out runs/a`.
    """
    return RunConfig(
        method=SwAVConfig(
            freeze_steps=IMAGENET_STEPS_256,
            queue=QueueConfig(capacity=3840, start_step=15 * IMAGENET_STEPS_256),
        ),
        backbone=BackboneConfig(name="resnet50"),
        crops=crops.swav(),
        optim=OptimConfig(name="larc", base_lr=0.6, weight_decay=1e-6),
        schedule=ScheduleConfig(kind="swav", final_lr=0.0006),
        stream=StreamConfig(batch_size=256),
        num_steps=200 * IMAGENET_STEPS_256,
    )


def swav_large_batch() -> RunConfig:
    """SwAV as in its main result: batch 4096, no queue, 800 epochs of ImageNet, 2x224 + 6x96.

    Paper: arXiv:2006.09882, appendix A.2. The authors ran it on 64 GPUs: LARC at 4.8 after a
    warm-up of ten epochs from 0.3, prototypes frozen for the first epoch. The crops of such a
    batch are large: `--stream.max-bytes` is 16 GiB here.
    Differs: pixels are divided by 0.229 theirs by 0.228.
    Published: 75.3 % linear accuracy; 72.1, 73.9 and 74.6 % after 100, 200 and 400 epochs (their
    README).
    """
    return RunConfig(
        method=SwAVConfig(freeze_steps=IMAGENET_STEPS_4096),
        backbone=BackboneConfig(name="resnet50"),
        crops=crops.swav(),
        optim=OptimConfig(name="larc", base_lr=4.8, weight_decay=1e-6),
        schedule=ScheduleConfig(
            kind="swav", warmup_steps=10 * IMAGENET_STEPS_4096, start_lr=0.3, final_lr=0.0048
        ),
        stream=StreamConfig(batch_size=4096, max_bytes=16 << 30),
        num_steps=800 * IMAGENET_STEPS_4096,
    )


def swav_stream() -> RunConfig:
    """SwAV on a stream without an end: batch 256, the queue after 5,000 steps, a constant rate.

    Paper: arXiv:2006.09882, section 4.3; otherwise `swav`.
    Differs: warm-up of 1,000 steps, then a constant rate; queue and prototypes start after 5,000
    steps, since there are no epochs. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(
        swav(),
        method=SwAVConfig(freeze_steps=5000, queue=QueueConfig(capacity=3840, start_step=5000)),
        schedule=ScheduleConfig(kind="constant", warmup_steps=1000),
        num_steps=1_000_000,
    )


def swav_small() -> RunConfig:
    """SwAV on images of about 32 pixels, on a CPU: CIFAR-10 to 53 % k-NN in ten minutes.

    Paper: arXiv:2006.09882. Short runs on CIFAR-10 showed what matters on such a budget: an
    epsilon of 0.03 (sharper assignments), prototypes that learn from the start, a high rate, and a
    network that is fast enough for ten passes. On a CPU with bfloat16 units give `--precision
    bf16`. Results are in BENCHMARKS.md.
    """
    return RunConfig(
        method=SwAVConfig(num_prototypes=128, hidden_dim=512, epsilon=0.03, freeze_steps=0),
        backbone=SMALL_NET,
        crops=crops.cifar(),
        optim=OptimConfig(name="adamw", base_lr=5e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=20),
        stream=StreamConfig(batch_size=256),
        num_steps=2000,
        save_every=200,
        precision="fp32",
    )


def swav_demo() -> RunConfig:
    """SwAV on the images of `streamssl demo`: 32-pixel crops of 48-pixel images, two minutes.

    Colour changes are mild: with SwAV's own jitter two crops of such an image have so little in
    common that the loss stays at its plateau of ln 100 for longer than a demo can take.
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
