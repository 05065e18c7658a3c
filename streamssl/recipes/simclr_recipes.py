"""SimCLR with its stages, and SupCon: as published, without an end, and for a CPU."""

from dataclasses import replace

from shards.crops import recipe as crops
from shards.stream.stream_config import StreamConfig
from streamssl.config.methods.distillation_config import DistillationConfig
from streamssl.config.methods.fine_tuning_config import FineTuneConfig
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import (
    ScheduleConfig,
    linearly_scaled_lr,
    root_scaled_lr,
    simclr_num_steps,
    simclr_warmup_steps,
)
from streamssl.recipes import crop_recipes as views
from streamssl.recipes.common import IMAGENET_STEPS_4096, SMALL_NET

_IMAGENET, _CIFAR = 1_281_167, 50_000


def simclr() -> RunConfig:
    """SimCLR: batch 4096, ResNet-50, 100 epochs of ImageNet.

    Paper: arXiv:2002.05709, as in its authors' README: LARS at 0.075 times the root of the
    batch, 0.3 per 256 here, with the rate inside its momentum, decay 1e-4, warm-up of ten
    epochs, cosine; six hours on 32 TPU v3.
    Differs: brightness is a factor, as in SimCLR v2; the width of the blur follows its sigma.
    Published: about 64.5 % linear accuracy (their README); their published ResNet-50 has 69.1 %
    after a longer run.
    """
    return RunConfig(
        method=SimCLRConfig(),
        backbone=BackboneConfig(name="resnet50"),
        crops=views.simclr(),
        optim=OptimConfig(
            name="lars",
            base_lr=linearly_scaled_lr(0.3, 4096),
            weight_decay=1e-4,
            momentum_form="classic",
        ),
        schedule=ScheduleConfig(
            kind="warmup_cosine",
            warmup_steps=simclr_warmup_steps(_IMAGENET, epochs=10, global_batch=4096),
        ),
        stream=StreamConfig(batch_size=4096, max_bytes=16 << 30),
        num_steps=simclr_num_steps(_IMAGENET, epochs=100, global_batch=4096),
    )


def simclr_v2() -> RunConfig:
    """SimCLR v2: three layers in the head, 800 epochs, ResNet-50 with selective kernels.

    Paper: arXiv:2006.10029. LARS at 0.1 times the root of the batch. Larger networks are
    `--backbone.name resnet152`, and `--backbone.options.channels 128 256 512 1024`.
    Differs: as `simclr`.
    Published: 74.6 % linear accuracy, 71.7 % without the kernels, 79.8 % with ResNet-152 and three
    times the width (table 1, and the authors' README).
    """
    return replace(
        simclr(),
        method=SimCLRConfig(num_layers=3),
        backbone=BackboneConfig(
            name="resnet50",
            options={"stem_type": "deep", "stem_width": 32, "avg_down": True},
            selective_kernels=0.0625,
        ),
        optim=OptimConfig(
            name="lars",
            base_lr=root_scaled_lr(0.1, 4096),
            weight_decay=1e-4,
            momentum_form="classic",
        ),
        num_steps=simclr_num_steps(_IMAGENET, epochs=800, global_batch=4096),
    )


def simclr_v2_fine_tune() -> RunConfig:
    """SimCLR v2's second stage: 1 % of ImageNet's labels, from the head's first layer.

    Paper: arXiv:2006.10029. LARS at 0.005 times the root of the batch of 1,024, 60 epochs, no
    decay; only crops and mirrors. Command: `streamssl pretrain simclr-v2-fine-tune --method.start
    runs/a --data labelled/ --out runs/b`, with the backbone of runs/a and your own
    `--method.num-classes`.
    Published: 64.5 % accuracy with 1 % of the labels (table 1, and the authors' README).
    """
    return replace(
        simclr_v2(),
        method=FineTuneConfig(),
        crops=views.plain(),
        optim=OptimConfig(
            name="lars",
            base_lr=root_scaled_lr(0.005, 1024),
            weight_decay=0.0,
            momentum_form="classic",
        ),
        schedule=ScheduleConfig(kind="warmup_cosine"),
        stream=StreamConfig(batch_size=1024),
        num_steps=60 * (_IMAGENET // 100) // 1024,
        label="cls",
    )


def simclr_v2_distill() -> RunConfig:
    """SimCLR v2's third stage: a fine-tuned network teaches another, or its equal, on all images.

    Paper: arXiv:2006.10029, section 2. The authors' notebook has the loss, not the length: here
    400 epochs of ImageNet at batch 4096. Command: `streamssl pretrain
    simclr-v2-distill --method.teacher runs/b --data 's3://bucket/{0000..0999}.tar' --out runs/c`,
    and any smaller `--backbone`.
    Published: not quoted; it depends on the teacher.
    """
    return replace(
        simclr_v2(),
        method=DistillationConfig(),
        crops=views.plain(),
        num_steps=simclr_num_steps(_IMAGENET, epochs=400, global_batch=4096),
    )


def simclr_multi_crop() -> RunConfig:
    """SimCLR with SwAV's multi-crop, 2x160 + 4x96: 200 epochs of ImageNet.

    Paper: arXiv:2006.09882, section 4.3 and appendix A.8: the denominator
    excludes other crops of the same image.
    Differs: as `simclr`.
    Published: not quoted, since no text was available to check it.
    """
    return replace(
        simclr(),
        crops=views.simclr_multi_crop(),
        num_steps=200 * IMAGENET_STEPS_4096,
    )


def simclr_stream() -> RunConfig:
    """SimCLR on a stream without an end: batch 1024, a constant rate after warm-up.

    Paper: arXiv:2002.05709, appendix B.1: 0.075 times the root of the batch, better for small
    batches.
    Differs: warm-up of 5,000 steps, no cosine. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(
        simclr(),
        optim=OptimConfig(
            name="lars",
            base_lr=root_scaled_lr(0.075, 1024),
            weight_decay=1e-4,
            momentum_form="classic",
        ),
        schedule=ScheduleConfig(kind="constant", warmup_steps=5000),
        stream=StreamConfig(batch_size=1024, max_bytes=8 << 30),
        num_steps=1_000_000,
    )


def simclr_v2_stream() -> RunConfig:
    """SimCLR v2 on a stream without an end: batch 1024, a constant rate after warm-up.

    Paper: arXiv:2006.10029; otherwise `simclr-v2`, at 0.1 times the root of the batch.
    Differs: warm-up of 5,000 steps, no cosine. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(
        simclr_stream(),
        method=SimCLRConfig(num_layers=3),
        backbone=simclr_v2().backbone,
        optim=OptimConfig(
            name="lars",
            base_lr=root_scaled_lr(0.1, 1024),
            weight_decay=1e-4,
            momentum_form="classic",
        ),
    )


def simclr_small() -> RunConfig:
    """SimCLR on images of about 32 pixels, on a CPU; temperature 0.5, as the authors for CIFAR.

    Paper: arXiv:2002.05709. A batch of 512, since its other images are the only negatives.
    """
    return RunConfig(
        method=SimCLRConfig(temperature=0.5),
        backbone=SMALL_NET,
        crops=crops.cifar(),
        optim=OptimConfig(name="adamw", base_lr=3e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=20),
        stream=StreamConfig(batch_size=512),
        num_steps=1000,
        save_every=200,
        precision="fp32",
    )


def supcon() -> RunConfig:
    """SupCon on CIFAR-10: batch 1024, ResNet-50 for small images, 1,000 epochs, labels `cls`.

    Paper: arXiv:2004.11362, as in its authors' README: SGD at 0.5 with a warm-up of ten epochs
    and a cosine to 0.0005, no blur.
    Differs: batch norm over all ranks.
    Published: 96.0 % linear accuracy; cross entropy has 95.0, SimCLR 93.6 (their README).
    """
    steps = _CIFAR // 1024
    return RunConfig(
        method=SupConConfig(),
        backbone=BackboneConfig(name="resnet50"),
        crops=crops.cifar(),
        optim=OptimConfig(name="sgd", base_lr=0.5, weight_decay=1e-4),
        schedule=ScheduleConfig(
            kind="swav", warmup_steps=10 * steps, start_lr=0.01, final_lr=0.0005
        ),
        stream=StreamConfig(batch_size=1024),
        num_steps=1000 * steps,
        label="cls",
    )


def supcon_stream() -> RunConfig:
    """SupCon on a stream of web images without an end: hashtags, or any field, as labels.

    Paper: arXiv:2004.11362. The label is `hashtags` of a sample's JSON (`--label NAME` for
    another); of a list one entry is drawn each epoch. Samples without one are used as in SimCLR.
    Differs: optimizer and batch of `simclr-stream`, views with blur. No setting depends on
    `--num-steps`.
    Published: no such run.
    """
    return replace(
        simclr_stream(),
        method=SupConConfig(),
        crops=crops.moco_v2(),
        label="hashtags",
    )


def supcon_small() -> RunConfig:
    """SupCon on labelled images of about 32 pixels, on a CPU; labels are `cls`.

    Paper: arXiv:2004.11362. Otherwise `simclr-small`.
    """
    return replace(simclr_small(), method=SupConConfig(), label="cls")
