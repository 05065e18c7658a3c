"""Reference of both engines: executes a row of parameters in float64.

It is slow, and uses no kernels of libraries, on purpose. `shards.crops.recipe` has the definition
in words. Values are on the scale 0..255, and whole where the definition requires whole levels. The
colour operations are exact: each is a whole number, divided once.
"""

import math

import numpy as np
from numpy.typing import NDArray

from shards.crops.recipe import FACTOR_STEPS, HUE_STEPS, ORDERS, Parameter, pixel_boxes

Pixels = NDArray[np.float64]
LUMA = np.array([299, 587, 114])  # thousandths


def reference_crop(image: NDArray[np.uint8], row: NDArray[np.float32], size: int) -> Pixels:
    """Return one crop (size, size, 3) of an image (H, W, 3) from one row of parameters (P,)."""
    y0, x0, y1, x1 = pixel_boxes(row[None, None], [image.shape[:2]])[0, 0]
    crop = resize(image[y0:y1, x0:x1].astype(np.float64), size)
    if row[Parameter.FLIP]:
        crop = crop[:, ::-1]
    crop = jitter(crop, row)
    if row[Parameter.GREY]:
        crop = np.repeat(grey(crop)[..., None], 3, axis=-1)
    crop = blur(crop, float(row[Parameter.BLUR]))
    if row[Parameter.SOLARISE]:
        crop = np.where(crop >= 128, 255 - crop, crop)
    return crop


def resize(pixels: Pixels, size: int) -> Pixels:
    """Resize to (size, size, 3), bilinear and antialiased."""
    rows = triangle_weights(pixels.shape[0], size)
    columns = triangle_weights(pixels.shape[1], size)
    return np.floor(np.einsum("yh,hwc,xw->yxc", rows, pixels, columns, optimize=True) + 0.5)


def triangle_weights(num_in: int, num_out: int) -> Pixels:
    """Return weights (num_out, num_in) of a triangle filter as wide as the reduction."""
    step = num_in / num_out
    support = max(step, 1.0)
    centres = (np.arange(num_out) + 0.5) * step
    distances = np.abs(np.arange(num_in) + 0.5 - centres[:, None]) / support
    weights = np.maximum(0.0, 1.0 - distances)
    return weights / weights.sum(axis=1, keepdims=True)


def jitter(crop: Pixels, row: NDArray[np.float32]) -> Pixels:
    """Apply the four colour operations in the drawn order."""
    for operation in ORDERS[int(row[Parameter.ORDER])]:
        amount = float(row[operation])
        if operation == Parameter.BRIGHTNESS:
            crop = scaled(crop, 0, amount)
        elif operation == Parameter.CONTRAST:
            levels = grey(crop)
            mean = (2 * levels.sum() + levels.size) // (2 * levels.size)
            crop = scaled(crop, mean, amount)
        elif operation == Parameter.SATURATION:
            base = grey(crop)[..., None]
            crop = scaled(crop, base, amount)
        else:
            crop = turn_hue(crop, amount)
    return crop


def scaled(crop: Pixels, base: Pixels | float, factor: float) -> Pixels:
    """Scale the distance from `base`, drop the fraction, clamp."""
    steps = round(factor * FACTOR_STEPS)
    return np.clip(base + np.floor((crop - base) * steps / FACTOR_STEPS), 0, 255)


def grey(crop: Pixels) -> Pixels:
    """Return rounded ITU-R 601 grey (H, W)."""
    return np.floor((crop @ LUMA + 500) / 1000)


def turn_hue(crop: Pixels, turns: float) -> Pixels:
    """Turn the hue of the HSV hexcone, and round; value and saturation stay."""
    red, green, blue = np.moveaxis(crop, -1, 0)
    value = crop.max(axis=-1)
    chroma = value - crop.min(axis=-1)
    # The hue times the chroma, in steps: `step` is one sector of the hexcone times the chroma.
    step = chroma * (HUE_STEPS // 6)
    hue = (HUE_STEPS // 6) * np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue = hue + chroma * round(turns * HUE_STEPS)
    channels = []
    for offset in (5, 3, 1):
        place = np.mod(offset * step + hue, np.maximum(6 * step, 1))
        less = np.clip(np.minimum(place, 4 * step - place), 0, step) / (HUE_STEPS // 6)
        channels.append(np.floor(value - less + 0.5))
    return np.stack(channels, axis=-1)


def blur(crop: Pixels, sigma: float) -> Pixels:
    """Apply a separable Gaussian over 2 ceil(3 sigma) + 1 pixels, with mirrored borders."""
    if sigma <= 0:
        return crop
    radius = math.ceil(3 * sigma)
    distance = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    weights /= weights.sum()
    size = len(crop)
    # This mirror index is also right if the window is wider than the crop.
    period = max(2 * (size - 1), 1)
    places = np.abs((np.arange(size)[:, None] + distance + period // 2) % period - period // 2)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), np.broadcast_to(weights, places.shape))
    return np.floor(np.einsum("yh,hwc,xw->yxc", matrix, crop, matrix, optimize=True) + 0.5)
