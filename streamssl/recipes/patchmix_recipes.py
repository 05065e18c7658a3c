"""PatchMix: as published, without an end, and for a CPU."""

from dataclasses import replace

from shards.stream.stream_config import StreamConfig
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import ScheduleConfig, linearly_scaled_lr
from streamssl.recipes import crop_recipes as views

# Optimizer steps of one pass over ImageNet-1k and over CIFAR, in batches of 1,024 and 512.
_IMAGENET_STEPS_1024 = 1251
_CIFAR_STEPS_512 = 97


def patchmix() -> RunConfig:
    """PatchMix as published for ViT-S on ImageNet: batch 1024, 300 epochs, 2x224 + 8x96.

    Paper: arXiv:2306.12243. Weight decay rises from 0.04 to 0.4; drop path of 0.1 in the queries'
    encoder only. For ViT-B the authors have 7.5e-4 per 256.
    Differs: the momentum changes at each step, theirs at each epoch. As in their code, plain
    targets are smoothed by 0.1, though their settings have 0.
    Published: 82.8 % fine-tuned, 77.4 % linear, 73.3 % k-NN accuracy (their README).
    """
    return RunConfig(
        method=PatchMixConfig(),
        backbone=BackboneConfig(
            name="vit_small_patch16_224", options={"num_heads": 12, "drop_path_rate": 0.1}
        ),
        crops=views.patchmix(),
        optim=OptimConfig(
            name="adamw",
            base_lr=linearly_scaled_lr(5e-4, 1024),
            weight_decay=0.04,
            final_weight_decay=0.4,
        ),
        schedule=ScheduleConfig(kind="swav", warmup_steps=10 * _IMAGENET_STEPS_1024, final_lr=1e-6),
        stream=StreamConfig(batch_size=1024, max_bytes=16 << 30),
        num_steps=300 * _IMAGENET_STEPS_1024,
    )


def patchmix_cifar() -> RunConfig:
    """PatchMix as published for ViT-T on CIFAR-10: patches of 2 pixels, no momentum encoder.

    Paper: arXiv:2306.12243. The authors ran 800 epochs at a batch of 512. Both views as in
    `patchmix`: the first one is always blurred, which is much for 32 pixels.
    Differs: as `patchmix`.
    Published: 97.5 % fine-tuned, 94.4 % linear, 92.9 % k-NN accuracy (their README).
    """
    return RunConfig(
        method=PatchMixConfig(patch_size=2, keys="own"),
        backbone=BackboneConfig(
            name="vit_tiny_patch16_224", options={"patch_size": 2, "drop_path_rate": 0.1}
        ),
        crops=views.patchmix_pair(size=32, scale=(0.1, 1.0)),
        optim=OptimConfig(
            name="adamw",
            base_lr=linearly_scaled_lr(2e-3, 512),
            weight_decay=0.02,
            final_weight_decay=0.2,
        ),
        schedule=ScheduleConfig(kind="swav", warmup_steps=100 * _CIFAR_STEPS_512, final_lr=1e-6),
        stream=StreamConfig(batch_size=512),
        num_steps=800 * _CIFAR_STEPS_512,
    )


def patchmix_stream() -> RunConfig:
    """PatchMix on a stream without an end: constant rate, momentum and weight decay.

    Paper: arXiv:2306.12243; otherwise `patchmix`.
    Differs: warm-up of 10,000 steps, decay 0.1, and no smoothing of plain targets, which its
    authors did not intend. No setting depends on `--num-steps`.
    Published: no such run.
    """
    return replace(
        patchmix(),
        method=PatchMixConfig(momentum_kind="constant", identity_smoothing=0.0),
        optim=OptimConfig(name="adamw", base_lr=linearly_scaled_lr(5e-4, 1024), weight_decay=0.1),
        schedule=ScheduleConfig(kind="constant", warmup_steps=10_000),
        num_steps=1_000_000,
    )


def patchmix_small() -> RunConfig:
    """PatchMix on images of about 32 pixels, on a CPU: four narrow blocks, patches of 4 pixels.

    Paper: arXiv:2306.12243. Without a momentum encoder, as the authors' smallest network, and
    without blur. A step passes the encoder five times: with a width of 192 and a batch of 256 it
    took 4 s of a core.
    """
    return replace(
        patchmix_cifar(),
        method=PatchMixConfig(
            patch_size=4, keys="own", hidden_dim=512, dim=128, identity_smoothing=0.0
        ),
        backbone=BackboneConfig(
            name="vit_tiny_patch16_224",
            options={"depth": 4, "embed_dim": 96, "patch_size": 4},
        ),
        crops=views.byol_small(),
        optim=OptimConfig(name="adamw", base_lr=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=40),
        stream=StreamConfig(batch_size=128),
        num_steps=1600,
        save_every=200,
        precision="fp32",
    )
