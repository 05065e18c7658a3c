"""DALI engine: equal to the reference, independent of the batch, robust to bad files."""

import dataclasses

import numpy as np
import pytest

from shards.crops import dali
from shards.crops.dali import DaliEngine
from shards.crops.recipe import CropRecipe, byol, swav
from shards.errors import ConfigError
from shards.images.decode import decode
from shards.images.image_header import read_image_header
from tests.reference_crops import reference_crop
from tests.shards.crops.made import drawn, encoded, made_pixels

# These four views have every kind of step: blur, solarise, small crops.
RECIPE = CropRecipe(
    (*byol(size=64).groups, *swav(counts=(2,), sizes=(32,), scales=((0.05, 0.3),)).groups)
)


@pytest.fixture(scope="module")
def images():
    sizes = [(150, 200), (200, 150), (97, 131), (64, 64), (120, 400), (50, 9)]
    return [
        read_image_header(encoded(made_pixels(i, *size), "PNG")) for i, size in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def engine():
    return DaliEngine(RECIPE, 8, "cpu", 1)


def assert_same(one, other):
    for ours, theirs in zip(one.crops, other.crops, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_crops_equal_the_reference(engine, images):
    """DALI is the referee of the native engine, and must be right itself."""
    parameters = drawn(RECIPE, images)
    cropped = engine.crop(images, parameters)
    assert cropped.ok.all()
    found = []
    for index, image in enumerate(images):
        views = [view for group in cropped.crops for view in group[index]]
        for view, row in zip(views, parameters[index], strict=True):
            found.append(np.abs(view - reference_crop(decode(image), row, len(view))).ravel())
    found = np.concatenate(found)
    assert found.mean() < 0.3
    assert np.percentile(found, 99) <= 3


@pytest.mark.slow
def test_crops_do_not_depend_on_order_batch_size_or_threads(engine, images):
    """A crop could not be made again from its id."""
    parameters = drawn(RECIPE, images)
    whole = engine.crop(images, parameters)
    reverse = engine.crop(images[::-1], parameters[::-1])
    for group, other in zip(whole.crops, reverse.crops, strict=True):
        np.testing.assert_array_equal(group, other[::-1])
    assert_same(whole, DaliEngine(RECIPE, 3, "cpu", 1).crop(images, parameters))
    assert_same(whole, DaliEngine(RECIPE, 64, "cpu", 2).crop(images, parameters))


def test_bad_images_cost_only_themselves(engine, images):
    """One bad image would fail its batch, or break the engine."""
    parameters = drawn(RECIPE, images)
    broken = bytearray(images[1].data)
    broken[60:-20] = bytes(len(broken) - 80)
    batch = list(images)
    batch[1] = dataclasses.replace(batch[1], data=bytes(broken))
    batch[4] = dataclasses.replace(batch[4], data=b"no image at all")
    cropped = engine.crop(batch, parameters)
    assert [(failure.row, failure.reason) for failure in cropped.failures] == [
        (1, "undecodable"),
        (4, "undecodable"),
    ]
    assert cropped.ok.tolist() == [True, False, True, True, False, True]
    whole = engine.crop(images, parameters)
    for group, other in zip(whole.crops, cropped.crops, strict=True):
        np.testing.assert_array_equal(group[cropped.ok], other)


def test_an_empty_batch_gives_empty_crops(engine):
    """A chunk of rejects would crash."""
    cropped = engine.crop([], drawn(RECIPE, []))
    assert [len(group) for group in cropped.crops] == [0, 0, 0]


def test_a_missing_dali_is_reported_with_the_remedy(monkeypatch):
    """The user would see an import error."""
    monkeypatch.setattr(dali, "Pipeline", None)
    with pytest.raises(ConfigError, match="use the opencv engine, or install"):
        DaliEngine(RECIPE, 8, "cpu", 1)


@pytest.mark.gpu
def test_gpu_and_cpu_give_the_same_crops(engine, images):
    """The graph would differ on the device that it is made for."""
    images = [*images, read_image_header(encoded(made_pixels(9, 180, 120), quality=95))]
    parameters = drawn(RECIPE, images)
    here, there = (
        one.crop(images, parameters) for one in (engine, DaliEngine(RECIPE, 8, "gpu", 2))
    )
    np.testing.assert_array_equal(here.ok, there.ok)
    for one, other in zip(here.crops, there.crops, strict=True):
        found = np.abs(one.astype(int) - other)
        assert found.mean() < 0.5
        assert np.percentile(found, 99) <= 4


@pytest.mark.gpu
def test_gpu_crops_do_not_depend_on_the_batch(images):
    """A crop could not be made again from its id."""
    parameters = drawn(RECIPE, images)
    engine = DaliEngine(RECIPE, 8, "gpu", 2)
    whole, reverse = (engine.crop(images, parameters), engine.crop(images[::-1], parameters[::-1]))
    for group, other in zip(whole.crops, reverse.crops, strict=True):
        np.testing.assert_array_equal(group, other[::-1])
