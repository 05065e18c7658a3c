"""The fused kernel of views alone: its bits, and images a second. Needs no DALI."""

import numpy as np
import torch

from shards.crops.recipe import CropRecipe
from shards.crops.view_finisher import NativeFinisher, ResizedViews
from shards.dataloader.torch_finisher import TorchFinisher
from tests.gpu_check.workload import crop_recipe, drawn, made_images, seconds_per_call


def measure(device: str, data: str | None) -> dict[str, object]:
    """Return images a second, and compare the crops with those of the kernel in C."""
    del data
    on_gpu = device == "cuda"
    recipe, num_images = crop_recipe(device), 128 if on_gpu else 1
    views = _views(recipe, num_images, device)
    finisher = TorchFinisher(recipe, device)
    found = finisher.allocate(num_images)
    seconds = seconds_per_call(lambda: finisher.finish(views, found), device, 20 if on_gpu else 1)
    native = NativeFinisher(recipe)
    expected = native.allocate(num_images)
    native.finish(_on_host(views), expected)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other.cpu().numpy())
    return {
        "images_per_second": round(num_images / seconds, 1),
        "launches_per_batch": 4 * len(recipe.groups),
        "same_bits_as_cpu": True,
    }


def _views(recipe: CropRecipe, num_images: int, device: str) -> ResizedViews:
    images = made_images(num_images, 64)
    generator = torch.Generator().manual_seed(0)
    groups = [
        torch.randint(
            256,
            (num_images, group.num_views, group.size, group.size, 3),
            generator=generator,
            dtype=torch.uint8,
        ).to(device)
        for group in recipe.groups
    ]
    return ResizedViews(
        groups=groups,
        parameters=drawn(recipe, images),
        orientations=[1 + image % 8 for image in range(num_images)],
        images=np.arange(num_images),
    )


def _on_host(views: ResizedViews) -> ResizedViews:
    return ResizedViews(
        groups=[group.cpu().numpy() for group in views.groups],
        parameters=views.parameters,
        orientations=views.orientations,
        images=views.images,
    )
