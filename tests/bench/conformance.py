"""Differences of the engines to the definition, to torchvision on Pillow, and to each other.

    python -m tests.bench.conformance --images 64 --shards ../shared/data/web-a.tar --json

Every step of the definition in `shards.crops.recipe` is measured alone, then all together. A
difference is in grey levels of 255, over all pixels of all views of SwAV's recipe. Images are
decoded first and stored without loss, so decoders do not matter; the row "decode" compares them.
Without --shards the images are made by formula.
"""

import argparse
import itertools
import json
import sys
import tarfile
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from shards.crops.dali import DaliEngine
from shards.crops.engine import Engine
from shards.crops.native import NativeEngine
from shards.crops.recipe import Parameter, draw, swav
from shards.images.decode import decode
from shards.images.image_header import ImageError, ImageHeader, read_image_header
from tests.pillow_crops import pillow_crop
from tests.reference_crops import reference_crop
from tests.shards.crops.made import encoded, made_pixels

RECIPE = swav()
SIZES = [group.size for group in RECIPE.groups for _ in range(group.num_views)]
NEUTRAL = {Parameter.BRIGHTNESS: 1, Parameter.CONTRAST: 1, Parameter.SATURATION: 1}
EVERYTHING = tuple(range(Parameter.FLIP, Parameter.SOLARISE))
STAGES: dict[str, tuple[int, ...]] = {
    "resize": (),
    "brightness": (Parameter.BRIGHTNESS,),
    "contrast": (Parameter.CONTRAST,),
    "saturation": (Parameter.SATURATION,),
    "hue": (Parameter.HUE,),
    "grey": (Parameter.GREY,),
    "blur": (Parameter.BLUR,),
    "whole recipe": EVERYTHING,
}
Crops = list[NDArray[np.float32]]  # every view of every image, image by image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--shards", help="a tar of images; default: made by formula")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    source = read_tar(arguments.shards) if arguments.shards else make()
    images = list(itertools.islice(source, arguments.images))
    rows = [{"stage": "decode", **compare_decoders(images)}]
    rows += compare_stages(images)
    if arguments.json:
        json.dump(rows, sys.stdout, indent=1)
        print()
    else:
        print_table(rows, len(images))


def read_tar(path: str) -> Iterator[ImageHeader]:
    """Yield every 16th image of a tar with less than 4 megapixels."""
    with tarfile.open(path) as archive:
        names = (member for member in archive if member.isfile() and member.size > 4096)
        for member in itertools.islice(names, 0, None, 16):
            try:
                file = archive.extractfile(member)
                assert file is not None
                image = read_image_header(file.read())
            except ImageError:
                continue
            if image.height * image.width < 4_000_000:
                yield image


def make() -> Iterator[ImageHeader]:
    for seed in itertools.count():
        yield read_image_header(encoded(made_pixels(seed, 180 + 37 * (seed % 5), 300), quality=92))


def compare_decoders(images: list[ImageHeader]) -> dict[str, dict[str, float]]:
    """Compare the JPEG decoders of OpenCV and DALI, on crops with neutral parameters."""
    parameters = only(draw_for(images), ())
    engines: list[Engine] = [NativeEngine(RECIPE), dali()]
    ours, theirs = (crops(engine, images, parameters) for engine in engines)
    return {"native - dali": measure(ours, theirs)}


def compare_stages(images: list[ImageHeader]) -> list[dict[str, object]]:
    pixels = [decode(image) for image in images]
    lossless = [read_image_header(encoded(array, "PNG", compress_level=1)) for array in pixels]
    engines: dict[str, Engine] = {"native": NativeEngine(RECIPE), "dali": dali()}
    drawn = draw_for(images)
    table: list[dict[str, object]] = []
    for stage, columns in STAGES.items():
        parameters = only(drawn, columns)
        results = {name: crops(engine, lossless, parameters) for name, engine in engines.items()}
        results["reference"] = executed(reference_crop, pixels, parameters)
        results["pillow"] = executed(pillow_crop, pixels, parameters)
        pairs = ("native reference", "dali reference", "native dali", "native pillow")
        pairs += ("dali pillow", "pillow reference")
        row: dict[str, object] = {"stage": stage}
        for pair in pairs:
            one, other = pair.split()
            row[f"{one} - {other}"] = measure(results[one], results[other])
        table.append(row)
    return table


def dali() -> Engine:
    return DaliEngine(RECIPE, 16, 1)


def draw_for(images: list[ImageHeader]) -> NDArray[np.float32]:
    ids = np.stack([np.zeros(len(images), int), 512 * np.arange(len(images))], axis=1)
    sizes = [(image.height, image.width) for image in images]
    return draw(RECIPE, 0, np.zeros(len(images)), ids, sizes)


def only(parameters: NDArray[np.float32], columns: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the parameters with all columns except `columns` neutral."""
    parameters = parameters.copy()
    for column in set(range(Parameter.FLIP, len(Parameter))) - set(columns):
        parameters[..., column] = NEUTRAL.get(Parameter(column), 0)
    return parameters


def crops(engine: Engine, images: list[ImageHeader], parameters: NDArray[np.float32]) -> Crops:
    cropped = engine.crop(images, parameters)
    assert cropped.ok.all(), cropped.failures
    return [
        view.astype(np.float32)
        for row in range(len(images))
        for group in cropped.crops
        for view in group[row]
    ]


def executed(
    crop: Callable[..., object], pixels: list[NDArray[np.uint8]], parameters: NDArray[np.float32]
) -> Crops:
    return [
        np.asarray(crop(array, row, size), np.float32)
        for array, rows in zip(pixels, parameters, strict=True)
        for row, size in zip(rows, SIZES, strict=True)
    ]


def measure(ours: Crops, theirs: Crops) -> dict[str, float]:
    """Return mean, 99th percentile and maximum difference, from a histogram of levels."""
    counts = np.zeros(256, np.int64)
    for one, other in zip(ours, theirs, strict=True):
        levels = np.abs(one - other).astype(np.int64).ravel()
        counts += np.bincount(levels, minlength=256)
    share = np.cumsum(counts) / counts.sum()
    return {
        "mean": round(float(counts @ np.arange(256) / counts.sum()), 3),
        "p99": int(np.searchsorted(share, 0.99)),
        "max": int(np.flatnonzero(counts)[-1]),
    }


def print_table(rows: list[dict[str, object]], num_images: int) -> None:
    print(f"{num_images} images; mean / p99 / max difference in grey levels of 255")
    pairs = [name for name in rows[-1] if name != "stage"]
    print(f"{'':14}" + "".join(f"{pair:>20}" for pair in pairs))
    for row in rows:
        cells = []
        for pair in pairs:
            found = row.get(pair)
            text = "{mean:.2f} / {p99} / {max}".format(**found) if isinstance(found, dict) else ""
            cells.append(f"{text:>20}")
        print(f"{row['stage']:14}" + "".join(cells))


if __name__ == "__main__":
    main()
