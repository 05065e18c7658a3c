"""DALI: images a second of decoding, with crops, and of the whole recipe; and stable bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.crops.dali import DaliEngine
from shards.crops.recipe import CropRecipe
from shards.crops.view_finisher import NativeFinisher, ResizedViews, ViewFinisher
from shards.dataloader.torch_finisher import TorchFinisher
from shards.images.image_header import ImageHeader
from tests.gpu_check.workload import (
    SIDE,
    TINY_SIDE,
    crop_recipe,
    drawn,
    made_images,
    seconds_per_call,
)

_BATCH, _THREADS = 128, 8


class Unfinished:
    """A finisher that leaves views as they were resized, to measure what comes before."""

    def __init__(self, finisher: ViewFinisher) -> None:
        self._finisher = finisher
        self.device, self.stream = finisher.device, finisher.stream
        self.allocate, self.place = finisher.allocate, finisher.place
        self.select = finisher.select

    def finish(self, views: ResizedViews, out: Sequence[Any]) -> None:
        """Do nothing."""


def measure(device: str, data: str | None) -> dict[str, object]:
    """Return images a second of each stage, and whether crops depend on their batch."""
    del data
    on_gpu = device == "cuda"
    recipe = crop_recipe(device)
    images = made_images(512 if on_gpu else 8, SIDE if on_gpu else TINY_SIDE)
    finisher: ViewFinisher = TorchFinisher(recipe) if on_gpu else NativeFinisher(recipe)
    rates = {}
    for load in (0.0, 1.0) if on_gpu else (0.0,):
        decoder = _Decoder(device, load)
        seconds = seconds_per_call(lambda: decoder.decode(images), device, 3)  # noqa: B023
        rates[f"decode_hardware_{load:.0f}"] = round(len(images) / seconds, 1)
        rates[f"decode_hardware_{load:.0f}_stable"] = decoder.is_stable(images[:16])
    parameters = drawn(recipe, images)
    for name, used, size in (
        ("decode_and_crops", Unfinished(finisher), _BATCH),
        ("recipe", finisher, _BATCH),
        ("recipe_in_smaller_batches", finisher, _BATCH // 4),
    ):
        engine = DaliEngine(recipe, size, _THREADS, used)
        seconds = seconds_per_call(lambda: engine.crop(images, parameters), device, 3)  # noqa: B023
        rates[name] = round(len(images) / seconds, 1)
    stable = _is_stable(recipe, finisher, images[:40])
    assert stable, "crops depend on their batch"
    return {"images_per_second": rates, "stable": stable}


def _is_stable(recipe: CropRecipe, finisher: ViewFinisher, images: list[ImageHeader]) -> bool:
    """Return True if other batches of the same images give the same crops."""
    parameters = drawn(recipe, images)
    whole = _crops(DaliEngine(recipe, _BATCH, _THREADS, finisher), images, parameters)
    reverse = _crops(DaliEngine(recipe, 7, 1, finisher), images[::-1], parameters[::-1])
    alone = _crops(DaliEngine(recipe, 1, 1, finisher), images[:3], parameters[:3])
    return all(
        np.array_equal(one, other[::-1]) and np.array_equal(one[:3], single)
        for one, other, single in zip(whole, reverse, alone, strict=True)
    )


def _crops(
    engine: DaliEngine, images: list[ImageHeader], parameters: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], ...]:
    return engine.crop(images, parameters).on_host()


class _Decoder:
    """Decodes and does nothing else. `load` is the share of the hardware decoder."""

    def __init__(self, device: str, load: float) -> None:
        from nvidia.dali import Pipeline, fn, types

        on_gpu = device == "cuda"
        self._pipeline = Pipeline(
            batch_size=_BATCH,
            num_threads=_THREADS,
            device_id=0 if on_gpu else None,
            prefetch_queue_depth=1,
        )
        with self._pipeline:
            encoded = fn.external_source(name="source", dtype=types.UINT8, ndim=1)
            image = fn.decoders.image(
                encoded,
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                hw_decoder_load=load,
                jpeg_fancy_upsampling=True,
                adjust_orientation=False,
            )
            self._pipeline.set_outputs(image)
        self._pipeline.build()

    def decode(self, images: list[ImageHeader]) -> Any:
        """Decode in batches; return the last one."""
        for first in range(0, len(images), _BATCH):
            batch = images[first : first + _BATCH]
            self._pipeline.feed_input("source", [np.frombuffer(i.data, np.uint8) for i in batch])
            (output,) = self._pipeline.run()
        return output

    def is_stable(self, images: list[ImageHeader]) -> bool:
        """Return True if images alone are decoded as in a batch."""
        together = self.decode(images).as_cpu()
        pixels = [np.array(together.at(index)) for index in range(len(images))]
        return all(
            np.array_equal(one, self.decode([image]).as_cpu().at(0))
            for image, one in zip(images, pixels, strict=True)
        )
