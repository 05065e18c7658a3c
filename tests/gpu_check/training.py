"""Learners of the check and batches for them; importing this takes the packages of `streamssl`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from cluster.protocol.learner import StopVote
from shards.crops.recipe import CropRecipe
from shards.records import CropBatch, Cursor
from shards.stream.stream_config import StreamConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.recipes import RECIPES
from streamssl.recipes.common import SMALL_NET
from streamssl.training.learner import PretrainLearner
from tests.gpu_check.workload import crop_recipe, tiny_crops

BATCH, TINY_BATCH = 256, 8
_NO_CURSOR: Final = Cursor(manifest="", order="")


def swav_config(device: str) -> RunConfig:
    """Return SwAV with ResNet-50 and 2x224 + 6x96, without a queue; a tiny one on a CPU.

    The optimizer is one that torch has, too, so that plain PyTorch can do the same.
    """
    on_gpu = device == "cuda"
    return replace(
        RECIPES["swav"](),
        method=SwAVConfig(queue=None, freeze_steps=0, num_prototypes=3000 if on_gpu else 8),
        backbone=BackboneConfig(name="resnet50") if on_gpu else SMALL_NET,
        crops=crop_recipe(device),
        optim=OptimConfig(name="sgd", base_lr=0.1, weight_decay=1e-6),
        stream=StreamConfig(batch_size=BATCH if on_gpu else TINY_BATCH),
        precision="bf16" if on_gpu else "fp32",  # CPUs without its units are slow
    )


def vit_config(device: str) -> RunConfig:
    """Return MoCo v3 with ViT-S/16, in batches of 256; a tiny one on a CPU."""
    config = RECIPES["moco-v3-vit"]()
    if device == "cuda":
        return replace(config, stream=StreamConfig(batch_size=BATCH))
    small = RECIPES["moco-v3-small"]()
    return replace(small, crops=tiny_crops(), stream=StreamConfig(batch_size=TINY_BATCH))


def made_batch(recipe: CropRecipe, num_images: int, device: str) -> CropBatch:
    """Return noise as crops, in the memory of the host or of the GPU."""
    generator = torch.Generator().manual_seed(0)
    crops = tuple(
        torch.randint(
            256,
            (num_images, group.num_views, group.size, group.size, 3),
            generator=generator,
            dtype=torch.uint8,
        )
        for group in recipe.groups
    )
    ids = np.stack([np.zeros(num_images, np.int64), 512 * np.arange(num_images)], axis=1)
    there = [group.cuda() if device == "cuda" else group.numpy() for group in crops]
    return CropBatch(tuple(there), ids, np.zeros(num_images, np.int64), _NO_CURSOR)


def build_learner(config: RunConfig, device: str) -> PretrainLearner:
    """Return a learner with fresh weights."""
    return PretrainLearner(config, torch.device(device))


def run_steps(learner: PretrainLearner, batches: Iterator[CropBatch], num_steps: int) -> int:
    """Train for `num_steps`; return the number of images."""
    num_images = 0
    for _ in range(num_steps):
        batch = next(batches)
        learner.train_step(batch, StopVote.CONTINUE)
        num_images += len(batch)
    return num_images
