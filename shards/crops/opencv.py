"""The fast engine for any CPU: one decode per image, then all its crops.

A call runs on one thread and spends nearly all its time outside the interpreter lock, so a caller
may run several in threads. OpenCV must then be limited to one core with `engine.use_one_core`.

Kernels were chosen by measuring against a float64 reference. The uint8 resize of torch equals
Pillow's antialiased one at a third of the time. `sepFilter2D` blurs exactly in half the time of
`GaussianBlur`. Saturation by a 3 x 4 `transform` would be faster but is off by one level.
"""

import math
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from shards.crops.engine import CropFailure, CroppedImages
from shards.crops.recipe import ORDERS, CropRecipe, Parameter, pixel_boxes
from shards.images.decode import (
    JPEG_REDUCTIONS,
    Pixels,
    can_reduce,
    decode_stored,
    orient_pixels,
    stored_box,
)
from shards.images.image_header import ImageError, ImageHeader

# A JPEG is decoded at 1/r of its size if every box keeps at least this many pixels for each pixel
# of its crop. On web images, 3 gives a mean difference of 0.6 grey levels to the full decode and a
# 99th percentile of 4, like Pillow's rounding of hue; 2 gives 0.9 and at least 6. A large camera
# image then takes less than half the time.
_PIXELS_TO_SPARE = 3.0


class OpenCVEngine:
    """Executes the parameters of a recipe on a CPU. Create it in the thread that crops."""

    def __init__(self, recipe: CropRecipe) -> None:
        self.recipe = recipe
        torch.set_num_threads(1)  # of the calling thread; the parallelism is over images

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:
        """Return crops of N images from parameters (N, V, P); a bad image gives a failure."""
        ok = np.zeros(len(images), np.bool_)
        crops = tuple(
            np.empty((len(images), group.num_views, group.size, group.size, 3), np.uint8)
            for group in self.recipe.groups
        )
        failures: list[CropFailure] = []
        row = 0
        for index, (image, rows) in enumerate(zip(images, parameters, strict=True)):
            try:
                self._crop_one(image, rows, [array[row] for array in crops])
            except ImageError as error:
                failures.append(CropFailure(index, error.reason, error.detail))
            else:
                ok[index] = True
                row += 1
        return CroppedImages(tuple(array[:row] for array in crops), ok, failures)

    def _crop_one(
        self, image: ImageHeader, rows: NDArray[np.float32], outputs: Sequence[Pixels]
    ) -> None:
        """Write every view of one image, from rows (V, P), into arrays (V, S, S, 3)."""
        boxes = pixel_boxes(rows[None], [[image.height, image.width]])[0]
        reduction = self._reduction(image, boxes)
        stored = decode_stored(image, reduction)
        views = iter(zip(boxes.tolist(), rows.tolist(), strict=True))
        for group, output in zip(self.recipe.groups, outputs, strict=True):
            for crop, (box, row) in zip(output, views, strict=False):
                box = stored_box(box, image)
                if reduction == 1:
                    pixels = _resize(stored, box, group.size)
                else:
                    pixels = _resize_reduced(stored, box, group.size, reduction)
                pixels = orient_pixels(pixels, image.orientation, mirror=row[Parameter.FLIP] > 0)
                crop[:] = _colour(pixels, row)

    def _reduction(self, image: ImageHeader, boxes: NDArray[np.int64]) -> int:
        """Return the largest reduction of a JPEG that all its boxes (V, 4) allow."""
        if not can_reduce(image):
            return 1
        sizes = np.repeat(
            [group.size for group in self.recipe.groups],
            [group.num_views for group in self.recipe.groups],
        )
        shortest = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
        spare = float((shortest / sizes).min()) / _PIXELS_TO_SPARE
        return max((factor for factor in JPEG_REDUCTIONS if factor <= spare), default=1)


def _resize(pixels: Pixels, box: tuple[int, int, int, int], size: int) -> Pixels:
    y0, x0, y1, x1 = box
    # Copying the box first is faster than a gather by torch.
    crop = torch.from_numpy(np.ascontiguousarray(pixels[y0:y1, x0:x1])).permute(2, 0, 1)[None]
    resized = interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
    # torch returns three planes; OpenCV interleaves them ten times as fast as torch.
    return cv2.merge(list(resized[0].numpy()))


def _resize_reduced(
    pixels: Pixels, box: tuple[int, int, int, int], size: int, reduction: int
) -> Pixels:
    """Resize a box of an image decoded at 1 / `reduction`, where the box ends between pixels.

    Only Pillow resizes such a box. Rounding would shift the crop by up to a quarter of its pixels.
    """
    y0, x0 = box[0] // reduction, box[1] // reduction
    y1, x1 = -(-box[2] // reduction), -(-box[3] // reduction)
    region = Image.fromarray(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
    exact = (
        box[1] / reduction - x0,
        box[0] / reduction - y0,
        min(box[3] / reduction, x1) - x0,
        min(box[2] / reduction, y1) - y0,
    )
    return np.array(region.resize((size, size), Image.Resampling.BILINEAR, box=exact))


def _colour(pixels: Pixels, row: Sequence[float]) -> Pixels:
    """Apply steps 4 to 7 of the definition in `recipe` to one crop (S, S, 3), with one row (P,)."""
    for operation in ORDERS[int(row[Parameter.ORDER])]:
        amount = row[operation]
        if operation == Parameter.HUE:
            pixels = _turn_hue(pixels, amount)
        elif amount != 1.0:
            pixels = _LINEAR[operation](pixels, amount)
    if row[Parameter.GREY]:
        pixels = _grey(pixels)
    if row[Parameter.BLUR] > _MIN_SIGMA:
        pixels = _blur(pixels, row[Parameter.BLUR])
    if row[Parameter.SOLARISE]:
        pixels = np.where(pixels >= 128, 255 - pixels, pixels)
    return pixels


_LEVELS = np.arange(256, dtype=np.float64)


def _brightness(pixels: Pixels, factor: float) -> Pixels:
    return _look_up(pixels, _LEVELS * factor)


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    mean = math.floor(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _look_up(pixels, mean + factor * (_LEVELS - mean))


def _look_up(pixels: Pixels, levels: NDArray[np.float64]) -> Pixels:
    # The tolerance keeps levels that are whole except for rounding errors.
    table = np.clip(levels + 1e-6, 0.0, 255.0).astype(np.uint8)
    return cv2.LUT(pixels, table)


def _saturation(pixels: Pixels, factor: float) -> Pixels:
    # OpenCV rounds; subtracting almost half a level makes it drop the fraction.
    return cv2.addWeighted(pixels, factor, _grey(pixels), 1.0 - factor, -0.499)


def _grey(pixels: Pixels) -> Pixels:
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


_LINEAR: Final = {
    Parameter.BRIGHTNESS: _brightness,
    Parameter.CONTRAST: _contrast,
    Parameter.SATURATION: _saturation,
}


def _turn_hue(pixels: Pixels, turns: float) -> Pixels:
    """Turn the hue in steps of 1/256, slightly finer than Pillow's."""
    steps = round(turns * 256) % 256
    if steps == 0:
        return pixels
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    # One row of (steps, 0, 0, steps, 0, 0, ...): adding whole rows is fast and wraps as hue does;
    # adding to every third byte would be slow.
    shift = np.zeros((hsv.shape[1], 3), np.uint8)
    shift[:, 0] = steps
    flat = hsv.reshape(len(hsv), -1)
    flat += shift.reshape(-1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


# A blur with a smaller deviation changes no pixel by half a level.
_MIN_SIGMA = 0.25


def _blur(pixels: Pixels, sigma: float) -> Pixels:
    kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
