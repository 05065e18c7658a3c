"""DALI engine: equal to the reference, independent of the batch, robust to bad files."""

import dataclasses

import numpy as np
import pytest

from shards.crops import dali
from shards.crops.dali import DaliEngine
from shards.crops.recipe import CropRecipe, byol, swav
from shards.crops.view_finisher import NativeFinisher
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
    pytest.importorskip("nvidia.dali", reason="DALI exists for Linux on x86-64 only")
    return DaliEngine(RECIPE, 8, 1)


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
    assert_same(whole, DaliEngine(RECIPE, 3, 1).crop(images, parameters))
    assert_same(whole, DaliEngine(RECIPE, 64, 2).crop(images, parameters))


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
    with pytest.raises(ConfigError, match="use the native engine, or install"):
        DaliEngine(RECIPE, 8, 1)


def test_a_broken_file_costs_no_crop_of_the_parts_under_way(images):
    """Parts that are decoded ahead would be lost, or would come back as those of other images."""
    engine = DaliEngine(RECIPE, 2, 1)
    batch = [image for _ in range(4) for image in jpegs(images)]
    parameters = drawn(RECIPE, batch)
    whole = engine.crop(batch, parameters)
    broken = bytearray(batch[5].data)
    broken[60:-20] = bytes(len(broken) - 80)
    batch[5] = dataclasses.replace(batch[5], data=bytes(broken))
    for _ in range(2):
        cropped = engine.crop(batch, parameters)
        assert np.flatnonzero(~cropped.ok).tolist() == [5]
        for group, other in zip(whole.crops, cropped.crops, strict=True):
            np.testing.assert_array_equal(np.delete(group, 5, axis=0), other)


def test_an_interrupted_batch_leaves_nothing_to_the_next(images, monkeypatch):
    """The next batch would get the crops that the interrupted one had begun."""
    engine = DaliEngine(RECIPE, 2, 1)
    batch = jpegs(images)
    parameters = drawn(RECIPE, batch)
    expected = engine.crop(batch, parameters)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NativeFinisher, "finish", interrupt)
        engine.crop(batch[::-1], parameters[::-1])
    assert_same(expected, engine.crop(batch, parameters))


def interrupt(*_):
    raise KeyboardInterrupt


def jpegs(images):
    """Return the same pixels as JPEGs, which DALI decodes."""
    return [read_image_header(encoded(decode(image), quality=95)) for image in images]


@pytest.fixture
def on_gpu():
    """Return a function that builds the engine of trainers, with batches of this size."""
    pytest.importorskip("nvidia.dali", reason="DALI exists for Linux on x86-64 only")
    from shards.dataloader.torch_finisher import TorchFinisher  # needs Triton

    return lambda size: DaliEngine(RECIPE, size, 2, TorchFinisher(RECIPE))


@pytest.mark.gpu
def test_gpu_and_cpu_give_the_same_crops(engine, images, on_gpu):
    """The graph would differ on the device that it is made for."""
    images = [*images, *jpegs(images)]
    parameters = drawn(RECIPE, images)
    here, there = (one.crop(images, parameters) for one in (engine, on_gpu(8)))
    np.testing.assert_array_equal(here.ok, there.ok)
    for one, other in zip(here.crops, there.on_host(), strict=True):
        found = np.abs(one.astype(int) - other)
        assert found.mean() < 0.5
        assert np.percentile(found, 99) <= 4


@pytest.mark.gpu
def test_gpu_crops_do_not_depend_on_the_batch(images, on_gpu):
    """A crop could not be made again from its id."""
    images = [*images, *jpegs(images)]
    parameters = drawn(RECIPE, images)
    engine = on_gpu(8)
    whole, reverse = engine.crop(images, parameters), engine.crop(images[::-1], parameters[::-1])
    small = on_gpu(1).crop(images, parameters)
    for group, other, alone in zip(
        whole.on_host(), reverse.on_host(), small.on_host(), strict=True
    ):
        np.testing.assert_array_equal(group, other[::-1])
        np.testing.assert_array_equal(group, alone)
