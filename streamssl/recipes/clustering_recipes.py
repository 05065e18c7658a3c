"""DeepCluster-v2, SeLa-v2 and SpCL: as published, without an end, and for a CPU."""

from dataclasses import replace

from shards.crops import recipe as crops
from shards.stream.stream_config import StreamConfig
from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import ScheduleConfig
from streamssl.recipes import crop_recipes as views
from streamssl.recipes.common import IMAGENET_STEPS_4096, SMALL_NET
from streamssl.recipes.swav_recipes import swav, swav_large_batch, swav_small

# A window of the last 65,536 samples, and the steps between clusterings at a batch of 256: 22
# samples for each of 3,000 prototypes, all less than 257 steps old.
_WINDOW = 65_536
_WINDOW_STEPS = 256


def deepcluster_v2() -> RunConfig:
    """DeepCluster-v2 as published: batch 4096, clusters once an epoch, 800 epochs, 2x224 + 6x96.

    Paper: arXiv:2006.09882, appendix D; its authors ran it with the optimizer and the views of
    SwAV, in float32. The first epoch only fills the memory. For other data give `--method.memory`,
    the number of samples, and `--method.cluster-steps`, the steps of an epoch.
    Differs: pixels are divided by 0.229 theirs by 0.228; one more epoch, to fill the memory.
    Published: 75.2 % linear accuracy; 74.3 % after 400 epochs with 2x160 + 4x96 (their README).
    """
    return replace(
        swav_large_batch(),
        method=DeepClusterConfig(cluster_steps=IMAGENET_STEPS_4096),
        num_steps=801 * IMAGENET_STEPS_4096,
        precision="fp32",
    )


def deepcluster_v2_stream() -> RunConfig:
    """DeepCluster-v2 on a stream without an end: clusters of a window of 65,536 samples.

    Paper: arXiv:2006.09882, appendix D, for the clusters.
    Differs: the label of a crop is the present cluster of another crop, centroids follow every
    batch, and clusters have equal weights. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(
        swav(),
        method=DeepClusterConfig(mode="stream", memory=_WINDOW, cluster_steps=_WINDOW_STEPS),
        schedule=ScheduleConfig(kind="constant", warmup_steps=1000),
        num_steps=1_000_000,
    )


def deepcluster_v2_small() -> RunConfig:
    """DeepCluster-v2 on images of about 32 pixels, on a CPU, on a stream.

    Paper: arXiv:2006.09882, appendix D. A window of 4,096 samples, clustered every 16 steps. The
    warm-up ends after the first clustering: at a rate of 0.003 from there on one cluster had all
    samples eight steps later. The network is that of `swav-small`.
    """
    return replace(
        swav_small(),
        method=DeepClusterConfig(
            mode="stream",
            num_prototypes=(128, 128),
            hidden_dim=512,
            memory=4096,
            cluster_steps=16,
        ),
        optim=OptimConfig(name="adamw", base_lr=1e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=48),
    )


def sela_v2() -> RunConfig:
    """SeLa-v2 as published: batch 4096, labels once an epoch, 400 epochs, 2x160 + 4x96.

    Paper: arXiv:2006.09882, appendix D. Its code was not published. The first epoch only fills the
    memory; for other data give `--method.memory` and `--method.label-steps`.
    Differs: the sharpness of its transport was not published, so `exponent` and `tolerance` are
    those of SeLa (arXiv:1911.05371); one more epoch, to fill the memory.
    Published: 71.8 % linear accuracy, 67.2 % with 2x224 alone (the authors' README).
    """
    return replace(
        swav_large_batch(),
        method=SeLaConfig(label_steps=IMAGENET_STEPS_4096),
        crops=crops.swav(counts=(2, 4), sizes=(160, 96)),
        num_steps=401 * IMAGENET_STEPS_4096,
    )


def sela_v2_stream() -> RunConfig:
    """SeLa-v2 on a stream without an end: labels from a window of 65,536 samples.

    Paper: arXiv:2006.09882, appendix D, for the labels.
    Differs: potentials follow every batch, and the label of a crop is the present one of another
    crop. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(
        deepcluster_v2_stream(),
        method=SeLaConfig(mode="stream", memory=_WINDOW, label_steps=_WINDOW_STEPS),
    )


def sela_v2_small() -> RunConfig:
    """SeLa-v2 on images of about 32 pixels, on a CPU, on a stream.

    Paper: arXiv:2006.09882, appendix D. A window of 4,096 samples, solved every 32 steps; the
    network is that of `swav-small`. An exponent of 10, the authors' value for CIFAR-10, at the rate
    of `deepcluster-v2-small` changed labels too fast: the loss moved between 3.0 and 5.7, and 276
    steps on CIFAR-10 did not improve k-NN.
    """
    return replace(
        deepcluster_v2_small(),
        method=SeLaConfig(
            mode="stream",
            num_prototypes=(128, 128),
            hidden_dim=512,
            exponent=4.0,
            memory=4096,
            label_steps=32,
        ),
        optim=OptimConfig(name="adamw", base_lr=2e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=20),
    )


def spcl() -> RunConfig:
    """SpCL as published for the 12,936 images of Market-1501: batch 64, 50 epochs of 400 steps.

    Paper: arXiv:2006.02713, section 4.2. The authors ran it on 4 GPUs from a network trained on
    ImageNet: give `--backbone.options.pretrained true`. For other data give `--method.memory`, the
    number of samples, and `--method.fill-steps`, the steps of one pass.
    Differs: see docs/methods.md; batches come in the order of the stream, views are square.
    Published: no number that could be checked; 16.7 points of mAP over earlier methods without
    labels on Market-1501 (the paper's abstract).
    """
    return RunConfig(
        method=SpCLConfig(),
        backbone=BackboneConfig(name="resnet50", stem="imagenet"),
        crops=views.nearly_whole(size=224),
        optim=OptimConfig(name="adamw", base_lr=3.5e-4, weight_decay=5e-4),
        schedule=ScheduleConfig(kind="stepped", milestones=(0.4, 0.8)),
        stream=StreamConfig(batch_size=64),
        num_steps=203 + 50 * 400,
        precision="fp32",
    )


def spcl_domains() -> RunConfig:
    """SpCL from a labelled domain to one without labels, as published for re-identification.

    Paper: arXiv:2006.02713, section 3.1. Give the two as a mixture in equal shares, `--data
    market duke --weights 0.5 0.5 --label pid`, where only samples of the first have the label, and
    `--method.source-classes`, the number of labels (751 in Market-1501). A batch has 64 samples of
    each domain, as theirs.
    Differs: a class starts as the first of its features, theirs as their mean over the domain;
    the domains share batch norm, theirs have one each.
    Published: no number that could be checked.
    """
    return replace(
        spcl(),
        method=SpCLConfig(memory=16_522, source_classes=751, fill_steps=259),
        label="pid",
        stream=StreamConfig(batch_size=128),
        num_steps=259 + 50 * 400,
    )


def spcl_stream() -> RunConfig:
    """SpCL on a stream without an end: memory and neighbourhoods of the last 16,384 samples.

    Paper: arXiv:2006.02713.
    Differs: the memory is a window, and a new sample joins the cluster within which it lies. Two
    views of each image, since most images do not return. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(
        spcl(),
        method=SpCLConfig(memory=16_384, cluster_steps=200, fill_steps=64),
        crops=crops.moco_v2(),
        schedule=ScheduleConfig(kind="constant", warmup_steps=1000),
        stream=StreamConfig(batch_size=256),
        num_steps=1_000_000,
    )


def spcl_small() -> RunConfig:
    """SpCL on images of about 32 pixels, on a CPU, with a window of 4,096 samples.

    Paper: arXiv:2006.02713. Otherwise `spcl-stream`, clustered every 50 steps.
    """
    return replace(
        spcl_stream(),
        method=SpCLConfig(memory=4096, cluster_steps=50, fill_steps=16),
        backbone=SMALL_NET,
        crops=crops.cifar(),
        optim=OptimConfig(name="adamw", base_lr=1e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=20),
        num_steps=1500,
        save_every=200,
    )


def spcl_reid_small() -> RunConfig:
    """SpCL on some hundred images of vehicles by two cameras, from scratch, on a CPU.

    Paper: arXiv:2006.02713. Two views of 64 pixels, since the network is not pretrained;
    clusters of two, since a vehicle has one image of each camera. `--method.memory` is the number
    of images and `--method.fill-steps` the steps of one pass. Score it with `streamssl evaluate
    retrieval`: from 28 to 51 % mean average precision in three minutes, see BENCHMARKS.md.
    """
    view = replace(crops.cifar().groups[0], size=64, scale=(0.4, 1.0))
    return replace(
        spcl_small(),
        method=SpCLConfig(
            memory=810, min_samples=2, k1=8, k2=3, epsilon=0.5, cluster_steps=26, fill_steps=13
        ),
        crops=crops.CropRecipe((view,)),
        stream=StreamConfig(batch_size=64),
        num_steps=400,
    )
