"""Native engine: equal to the float64 reference and to Pillow, robust to bad images."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.crops.native import NativeEngine
from shards.crops.recipe import ORDERS, CropRecipe, Parameter, ViewGroup, byol, swav
from shards.images.decode import decode
from shards.images.image_header import read_image_header
from tests.pillow_crops import pillow_crop
from tests.reference_crops import reference_crop
from tests.shards.crops.made import drawn, encoded, made_pixels, shared_files

RECIPE = swav(sizes=(96, 48))
BOX = range(Parameter.FLIP)
NEUTRAL = {Parameter.BRIGHTNESS: 1, Parameter.CONTRAST: 1, Parameter.SATURATION: 1}


@pytest.fixture(autouse=True)
def one_thread():
    """Limit OpenCV to one core, as callers of the engine do."""
    cv2.setNumThreads(1)


@pytest.fixture(scope="module")
def images():
    """Six lossless images, so that only the crops are compared."""
    sizes = [(150, 200), (200, 150), (97, 131), (64, 64), (120, 400), (50, 60)]
    return [
        read_image_header(encoded(made_pixels(i, *size), "PNG")) for i, size in enumerate(sizes)
    ]


def smooth_pixels(seed, height, width):
    """Return pixels that lossy formats change little."""
    return cv2.GaussianBlur(made_pixels(seed, height, width), (0, 0), 3)


def views(cropped, row):
    """Return all views of one image."""
    return [view for group in cropped.crops for view in group[row]]


def differences(recipe, images, parameters, other):
    """Return differences in grey levels of the engine to `other(pixels, row, size)`."""
    cropped = NativeEngine(recipe).crop(images, parameters)
    assert cropped.ok.all()
    return np.concatenate(
        [
            np.abs(view.astype(float) - np.asarray(other(decode(image), row, len(view)))).ravel()
            for index, image in enumerate(images)
            for view, row in zip(views(cropped, index), parameters[index], strict=True)
        ]
    )


def only(parameters, columns):
    """Return the parameters with all columns except `columns` neutral."""
    parameters = parameters.copy()
    for column in set(range(Parameter.FLIP, len(Parameter))) - set(columns):
        parameters[..., column] = NEUTRAL.get(column, 0)
    return parameters


STEPS = [
    (),
    *((column,) for column in Parameter if column not in (Parameter.ORDER, *BOX)),
    tuple(range(Parameter.FLIP, len(Parameter))),
]


@pytest.mark.parametrize("columns", STEPS, ids=lambda found: f"{len(found)}-{found[:1]}")
def test_every_step_equals_the_reference(images, columns):
    """The crops would not be those of the parameters.

    Weights of the resize have 14 bits or more, so that a value whose fraction is near a half may
    round the other way; contrast then turns one level into two or three.
    """
    recipe = byol(size=64) if Parameter.SOLARISE in columns else RECIPE
    parameters = only(drawn(recipe, images), columns)
    found = differences(recipe, images, parameters, reference_crop)
    assert (found > 0).mean() < 0.007
    assert found.max() <= (1 if len(columns) == 0 else 4)


# Pillow blurs with boxes instead of a Gaussian and repeats the border, and has 255 steps of hue.
@pytest.mark.parametrize(
    ("columns", "mean", "p99"),
    [
        ((), 0.25, 1),
        ((Parameter.BRIGHTNESS, Parameter.CONTRAST, Parameter.SATURATION), 0.25, 2),
        ((Parameter.HUE,), 1.0, 7),
        ((Parameter.BLUR,), 0.5, 5),
        (tuple(range(Parameter.FLIP, len(Parameter))), 0.8, 7),
    ],
)
def test_crops_equal_torchvision_on_pillow(images, columns, mean, p99):
    """Augmentation would differ from that of published results."""
    parameters = only(drawn(RECIPE, images), columns)
    found = differences(RECIPE, images, parameters, pillow_crop)
    assert found.mean() < mean
    assert np.percentile(found, 99) <= p99


@pytest.mark.parametrize("order", range(0, len(ORDERS), 3))
def test_colour_operations_run_in_the_drawn_order(images, order):
    """Clamping makes the order matter."""
    parameters = only(drawn(RECIPE, images[:1]), ())
    parameters[..., Parameter.ORDER] = order
    parameters[..., Parameter.BRIGHTNESS] = 1.7
    parameters[..., Parameter.CONTRAST] = 1.6
    parameters[..., Parameter.SATURATION] = 0.4
    parameters[..., Parameter.HUE] = 0.15
    found = differences(RECIPE, images[:1], parameters, reference_crop)
    assert (found > 0).mean() < 0.02


@pytest.mark.parametrize("sigma", [0.1, 0.24, 0.26, 1.0, 5.0])
def test_blur_has_the_stated_deviation(images, sigma):
    """A wrong blur kernel is known to cost six points of accuracy."""
    parameters = only(drawn(RECIPE, images[:2]), ())
    parameters[..., Parameter.BLUR] = sigma
    found = differences(RECIPE, images[:2], parameters, reference_crop)
    assert (found > 0).mean() < 0.007
    assert found.max() <= 1


def test_a_crop_does_not_depend_on_its_batch(images):
    """A crop could not be made again alone."""
    engine = NativeEngine(RECIPE)
    parameters = drawn(RECIPE, images)
    whole = engine.crop(images, parameters)
    mixed = engine.crop(images[::-1], parameters[::-1])
    for group, other in zip(whole.crops, mixed.crops, strict=True):
        np.testing.assert_array_equal(group, other[::-1])
    alone = engine.crop(images[3:4], parameters[3:4])
    np.testing.assert_array_equal(alone.crops[0][0], whole.crops[0][3])


def test_a_reduced_decode_gives_the_same_crops():
    """Camera images would take twice as long, or crops would be shifted."""
    recipe = CropRecipe((ViewGroup(num_views=4, size=32, scale=(0.3, 1.0)),))
    smooth = smooth_pixels(3, 603, 805)
    exif = Image.Exif()
    for orientation in (1, 3, 6):
        exif[0x0112] = orientation
        image = read_image_header(encoded(smooth, quality=95, exif=exif))
        parameters = only(drawn(recipe, [image]), ())
        small = NativeEngine(recipe).crop([image], parameters).crops[0]
        whole = read_image_header(encoded(decode(image), "PNG"))
        full = NativeEngine(recipe).crop([whole], parameters).crops[0]
        found = np.abs(small.astype(int) - full)
        assert 0 < found.mean() < 0.7
        assert np.percentile(found, 99) <= 5
    assert decode(image, 4).shape == (202, 151, 3)


def test_a_bad_image_costs_only_itself(images):
    """One bad image would fail its batch or become a grey crop."""
    broken = bytearray(images[1].data)
    broken[60:-20] = bytes(len(broken) - 80)
    batch = [images[0], dataclasses.replace(images[1], data=bytes(broken)), images[2]]
    parameters = drawn(RECIPE, batch)
    cropped = NativeEngine(RECIPE).crop(batch, parameters)
    assert cropped.ok.tolist() == [True, False, True]
    assert [(failure.row, failure.reason) for failure in cropped.failures] == [(1, "undecodable")]
    alone = NativeEngine(RECIPE).crop([images[2]], parameters[2:])
    np.testing.assert_array_equal(cropped.crops[1][1], alone.crops[1][0])


def test_a_batch_of_bad_images_gives_empty_crops(images):
    """A chunk of rejects would crash."""
    batch = [dataclasses.replace(images[0], width=images[0].width + 1)]
    cropped = NativeEngine(RECIPE).crop(batch, drawn(RECIPE, batch))
    assert cropped.crops[0].shape == (0, 2, 96, 96, 3)
    assert "expected" in cropped.failures[0].detail


def test_real_images_equal_the_reference():
    """Made images could hide a difference."""
    files = shared_files("web-a.tar", 10)
    images = [read_image_header(data) for name, data in files.items() if name.endswith(".jpg")]
    found = differences(RECIPE, images, drawn(RECIPE, images), reference_crop)
    assert len(images) >= 5
    assert (found > 0).mean() < 0.007
    assert found.max() <= 4
