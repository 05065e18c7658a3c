"""Crop job of a run: the settings that every reader needs."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from shards.crops.engine import Engine
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe
from shards.crops.sample_cropper import CropJob
from shards.stores.range_reader import SourceConfig

# Readers import this file to build their engine, and none of the libraries of the settings.
if TYPE_CHECKING:
    from streamssl.config.run_config import RunConfig
    from streamssl.runs.run_data import OpenedData

# Images in one call of DALI's graph; bounds its memory.
_DALI_BATCH = 32
# A GPU leaves the first part of a decode, which is serial, to this many cores.
_DALI_THREADS = 4


def crop_job(
    config: "RunConfig", data: "OpenedData", sources: SourceConfig | None = None
) -> CropJob:
    """Return the settings of the readers of a run."""
    return CropJob(
        recipe=config.crops,
        seed=config.seed,
        admission=config.admission,
        build_engine=build_engine(config),
        subset=data.subset,
        sources=sources or SourceConfig(),
        label=config.label,
        class_numbers=data.class_numbers,
    )


def build_engine(config: "RunConfig") -> Callable[[], Engine]:
    """Return a function, to be called once by each reader, that builds the engine of a run."""
    return functools.partial(_build_engine, config.engine, config.crops)


def _build_engine(name: str, recipe: CropRecipe) -> Engine:
    if name == "native":
        return NativeEngine(recipe)
    # Only a process that crops with DALI may need to have it.
    from shards.crops.dali import DaliEngine

    if name == "dali-cpu":
        return DaliEngine(recipe, _DALI_BATCH, num_threads=1)
    from shards.dataloader.torch_finisher import TorchFinisher

    return DaliEngine(recipe, _DALI_BATCH, _DALI_THREADS, TorchFinisher(recipe))
