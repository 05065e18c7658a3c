"""MoCo v1, v2, v3 and MoCHi: as published, without an end, and for a CPU."""

from dataclasses import replace

from shards.crops import recipe as crops
from shards.stream.stream_config import StreamConfig
from streamssl.config.methods.mochi_config import MoCHiConfig
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import ScheduleConfig, linearly_scaled_lr
from streamssl.recipes import crop_recipes as views
from streamssl.recipes.common import IMAGENET_STEPS_256, IMAGENET_STEPS_4096, SMALL_NET


def moco_v1() -> RunConfig:
    """MoCo v1: linear head, temperature 0.07, rate divided by ten at 120 and 160 of 200 epochs.

    Paper: arXiv:1911.05722. The authors ran it on 8 GPUs at batch 256: views of at least 20 %
    of the area, colours always changed, no blur.
    Differs: keys share batch norm in shuffled groups of 32, for any number of GPUs.
    Published: 60.8 % linear accuracy on ImageNet, the mean of five runs (their README).
    """
    jitter = crops.ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
    view = replace(
        crops.moco_v2().groups[0], jitter=jitter, jitter_probability=1.0, blur_probability=0.0
    )
    return replace(
        moco_v2(),
        method=MoCoConfig(head="linear", temperature=0.07),
        crops=crops.CropRecipe((view,)),
        schedule=ScheduleConfig(kind="stepped", milestones=(0.6, 0.8)),
    )


def moco_v2() -> RunConfig:
    """MoCo v2: batch 256, queue of 65,536 keys, ResNet-50, two views of 224 pixels.

    Paper: arXiv:2003.04297. The authors ran it on 8 GPUs for 200 epochs of ImageNet: SGD at 0.03
    with a cosine, `--mlp --moco-t 0.2 --aug-plus --cos` of their code.
    Differs: keys share batch norm in shuffled groups of 32, for any number of GPUs.
    Published: 67.5 % linear accuracy, the mean of five runs; 71.1 % after 800 epochs (their
    README).
    Command: `streamssl pretrain moco-v2 --data 's3://bucket/{0000..0999}.tar' --out runs/b`.
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


def moco_v1_stream() -> RunConfig:
    """MoCo v1 on a stream without an end: a constant rate after warm-up.

    Paper: arXiv:1911.05722; otherwise `moco-v1`.
    Differs: warm-up of 5,000 steps, no decrease of the rate. No setting depends on `--num-steps`.
    Published: no such run; the paper's run on a billion images of Instagram is the most similar.
    """
    return replace(
        moco_v1(),
        schedule=ScheduleConfig(kind="constant", warmup_steps=5000),
        num_steps=1_000_000,
    )


def moco_v2_small() -> RunConfig:
    """MoCo v2 on images of about 32 pixels, on a CPU: CIFAR-10 to 54 % k-NN in ten minutes.

    Paper: arXiv:2003.04297. Queue, momentum and temperature are those of the authors' own CIFAR-10
    demonstration, which has ResNet-18 and 200 epochs; results are in BENCHMARKS.md.
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


def moco_v2_stream() -> RunConfig:
    """MoCo v2 on a stream without an end: a constant rate after warm-up.

    Paper: arXiv:2003.04297; otherwise `moco-v2`.
    Differs: warm-up of 5,000 steps, no cosine. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(
        moco_v2(),
        schedule=ScheduleConfig(kind="constant", warmup_steps=5000),
        num_steps=1_000_000,
    )


def moco_v3() -> RunConfig:
    """MoCo v3 with a ResNet-50: batch 4096, 100 epochs of ImageNet.

    Paper: arXiv:2104.02057. The authors ran it on 16 GPUs: LARS at 0.6 per 256, warm-up of ten
    epochs, momentum from 0.99 to 1, views of at least 20 % of the area. For 1,000 epochs they have,
    in our units, `--optim.base-lr 4.8 --optim.weight-decay 1.5e-6 --method.momentum 0.996`.
    Differs: the width of the blur follows its sigma, on uint8.
    Published: 68.9 % linear accuracy after 100 epochs, 74.6 % after 1,000 (their README).
    """
    return RunConfig(
        method=MoCoV3Config(),
        backbone=BackboneConfig(name="resnet50"),
        crops=crops.byol(scale=(0.2, 1.0)),
        optim=OptimConfig(name="lars", base_lr=linearly_scaled_lr(0.6, 4096), weight_decay=1e-6),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=10 * IMAGENET_STEPS_4096),
        stream=StreamConfig(batch_size=4096, max_bytes=16 << 30),
        num_steps=100 * IMAGENET_STEPS_4096,
    )


def moco_v3_vit() -> RunConfig:
    """MoCo v3 with a ViT-S of 12 heads: batch 4096, 300 epochs of ImageNet.

    Paper: arXiv:2104.02057. AdamW at 1.5e-4 per 256, warm-up of 40 epochs. The first layer stays
    random, which makes the training of large transformers stable (section 4); positions are sines
    and cosines.
    Differs: the width of the blur follows its sigma, on uint8.
    Published: 73.2 % linear accuracy (the authors' README).
    """
    return replace(
        moco_v3(),
        method=MoCoV3Config(head="vit", temperature=0.2),
        backbone=BackboneConfig(
            name="vit_small_patch16_224",
            options={"num_heads": 12, "weight_init": "moco"},
            patches="moco-v3",
        ),
        crops=crops.byol(),
        optim=OptimConfig(name="adamw", base_lr=linearly_scaled_lr(1.5e-4, 4096), weight_decay=0.1),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=40 * IMAGENET_STEPS_4096),
        num_steps=300 * IMAGENET_STEPS_4096,
    )


def moco_v3_stream() -> RunConfig:
    """MoCo v3 on a stream without an end: batch 1024, constant rate and momentum after warm-up.

    Paper: arXiv:2104.02057; otherwise `moco-v3`.
    Differs: warm-up of 5,000 steps, then constant rate and momentum. No setting depends on
    `--num-steps`.
    Published: no such run.
    """
    return replace(
        moco_v3(),
        method=MoCoV3Config(momentum_kind="constant"),
        optim=OptimConfig(name="lars", base_lr=linearly_scaled_lr(0.6, 1024), weight_decay=1e-6),
        schedule=ScheduleConfig(kind="constant", warmup_steps=5000),
        stream=StreamConfig(batch_size=1024, max_bytes=8 << 30),
        num_steps=1_000_000,
    )


def moco_v3_small() -> RunConfig:
    """MoCo v3 on images of about 32 pixels, on a CPU.

    Paper: arXiv:2104.02057. Views without blur, the temperature of its transformers.
    """
    return replace(
        moco_v2_small(),
        method=MoCoV3Config(dim=128, hidden_dim=512, temperature=0.2),
        crops=views.byol_small(),
        num_steps=2000,
    )


def mochi() -> RunConfig:
    """MoCHi: MoCo v2 with 1,024 + 128 mixed negatives of the 1,024 hardest, from epoch 15 on.

    Paper: arXiv:2010.01028. Its authors published no code; two implementations by others agree
    with this one. `--method.num-hardest`, `--method.num-mixed`, `--method.num-mixed-with-query`
    and `--method.start-step` set the mixtures and their start.
    Differs: keys of the image itself are no negatives; otherwise as `moco-v2`.
    Published: not quoted, since no text was available to check it; it gains less on ImageNet
    itself than in transfer.
    """
    return replace(moco_v2(), method=MoCHiConfig())


def mochi_stream() -> RunConfig:
    """MoCHi on a stream without an end; images that return are no negatives of themselves.

    Paper: arXiv:2010.01028; otherwise `moco-v2-stream`.
    Differs: mixing starts with step 10,000, since there are no epochs: after the warm-up, and after
    the queue was filled 39 times. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(moco_v2_stream(), method=MoCHiConfig(start_step=10_000))


def mochi_small() -> RunConfig:
    """MoCHi on images of about 32 pixels, on a CPU: `moco-v2-small` with 64 + 16 mixtures.

    Paper: arXiv:2010.01028. Of the 128 hardest of 4,096 keys, from step 400 on.
    """
    return replace(
        moco_v2_small(),
        method=MoCHiConfig(
            queue=QueueConfig(capacity=4096),
            momentum=0.99,
            temperature=0.1,
            num_hardest=128,
            num_mixed=64,
            num_mixed_with_query=16,
            start_step=400,
        ),
    )
