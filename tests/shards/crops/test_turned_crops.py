"""Crops of turned JPEGs that are decoded at a reduced size: those of the whole image."""

import numpy as np
import pytest
from PIL import Image

from shards.crops.native import NativeEngine
from shards.crops.recipe import NUM_PARAMETERS, CropRecipe, Parameter, ViewGroup
from shards.images.decode import decode
from shards.images.image_header import read_image_header
from tests.shards.crops.made import encoded

# No multiples of 8: the decoder rounds the reduced size up, at another end of a turned image.
HEIGHT, WIDTH = 315, 405


def slopes():
    """Return grey levels that rise along both sides: a shift by a pixel shows everywhere."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, (x + y) * 255 / (WIDTH + HEIGHT)], axis=-1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("size", "reduction"), [(36, 2), (18, 4), (9, 8)])
def test_a_reduced_decode_moves_no_box(orientation, size, reduction):
    """Crops of camera images would be shifted by up to seven pixels, by orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(slopes().astype(np.uint8), quality=98, subsampling=0, exif=exif)
    image = read_image_header(data)
    whole = read_image_header(encoded(np.ascontiguousarray(decode(image)), "PNG"))
    recipe = CropRecipe((ViewGroup(num_views=3, size=size, scale=(0.3, 1.0)),))
    rows = np.zeros((1, 3, NUM_PARAMETERS), np.float32)
    rows[..., Parameter.BRIGHTNESS : Parameter.HUE] = 1
    rows[0, :, : Parameter.FLIP] = [(0, 0, 1, 1), (0, 0, 0.7, 0.7), (0.3, 0.3, 1, 1)]
    engine = NativeEngine(recipe)
    reduced, full = (engine.crop([one], rows).crops[0].astype(int) for one in (image, whole))
    assert (reduced != full).any()
    # A pixel is 0.6 levels along x and 0.8 along y. Decoding itself differs by 0.1 on average.
    shift = np.abs((reduced - full).mean(axis=(0, 2, 3)))
    assert shift.max() < 0.3, shift
