"""Jobs of the native engine."""

from functools import partial
from typing import Any

from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe
from shards.crops.sample_cropper import CropJob
from shards.samples.admission_config import AdmissionConfig


def crop_job(recipe: CropRecipe, seed: int = 0, **options: Any) -> CropJob:
    """Return a job that admits with the default settings."""
    fields = {"admission": AdmissionConfig(), "build_engine": partial(NativeEngine, recipe)}
    return CropJob(recipe=recipe, seed=seed, **(fields | options))
