"""Crops by torchvision on Pillow images, the usual augmentation of published results."""

import numpy as np
import torchvision.transforms.functional as transforms
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from shards.crops.recipe import ORDERS, Parameter, pixel_boxes

_ADJUST = {
    Parameter.BRIGHTNESS: transforms.adjust_brightness,
    Parameter.CONTRAST: transforms.adjust_contrast,
    Parameter.SATURATION: transforms.adjust_saturation,
    Parameter.HUE: transforms.adjust_hue,
}
_NEUTRAL = {Parameter.HUE: 0.0}


def pillow_crop(image: NDArray[np.uint8], row: NDArray[np.float32], size: int) -> Image.Image:
    """Return one crop of an image (H, W, 3) from one row of parameters (P,)."""
    y0, x0, y1, x1 = pixel_boxes(row[None, None], [image.shape[:2]])[0, 0].tolist()
    crop = transforms.resized_crop(
        Image.fromarray(image), y0, x0, y1 - y0, x1 - x0, [size, size], antialias=True
    )
    if row[Parameter.FLIP]:
        crop = transforms.hflip(crop)
    for operation in ORDERS[int(row[Parameter.ORDER])]:
        amount = float(row[operation])
        # torchvision skips operations that are not drawn; its hue would still round.
        if amount != _NEUTRAL.get(operation, 1.0):
            crop = _ADJUST[operation](crop, amount)
    if row[Parameter.GREY]:
        crop = transforms.to_grayscale(crop, num_output_channels=3)
    if row[Parameter.BLUR]:
        crop = crop.filter(ImageFilter.GaussianBlur(radius=float(row[Parameter.BLUR])))
    if row[Parameter.SOLARISE]:
        crop = transforms.solarize(crop, 128)
    return crop
