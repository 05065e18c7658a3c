"""Agreement of both engines: the same kept images, reject reasons and crops."""

import numpy as np
import pytest
from PIL import Image

from shards.crops.dali import DaliEngine
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe, byol, swav
from shards.images.image_header import ImageHeader
from shards.records import Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from tests.hostile import swapping_profile, valid
from tests.shards.crops.made import drawn, encoded, made_pixels
from tests.shards.images.test_decode import stored_pixels

# These three views have every kind of step.
RECIPE = CropRecipe(
    (*byol(size=32).groups, *swav(counts=(1,), sizes=(24,), scales=((0.1, 0.5),)).groups)
)


@pytest.fixture(scope="module")
def engines():
    return NativeEngine(RECIPE), DaliEngine(RECIPE, 16, 2)


def crops_of(engines, data, **policy):
    """Return the admitted images and the crops of both engines."""
    config = AdmissionConfig(**policy)
    admitted = [
        admit(Sample(0, 512 * row, "a", {"img": file}), config) for row, file in enumerate(data)
    ]
    images = [image for image in admitted if isinstance(image, ImageHeader)]
    parameters = drawn(RECIPE, images)
    return images, [engine.crop(images, parameters) for engine in engines]


def assert_agree(ours, theirs):
    """Check for the same rows and reasons, and crops within the tolerance."""
    np.testing.assert_array_equal(ours.ok, theirs.ok)
    assert sorted(ours.failures) == sorted(theirs.failures)
    for one, other in zip(ours.crops, theirs.crops, strict=True):
        found = np.abs(one.astype(int) - other)
        assert found.mean() < 0.8
        assert np.percentile(found, 99) <= 8
        # The mean of each image: a wrong turn, frame or background would differ by far more.
        assert found.mean(axis=(1, 2, 3, 4)).max() < 4


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"alpha": "black", "sixteen_bit": "stretch"},
        {"alpha": "drop", "sixteen_bit": "percentiles"},
        {"animated": "reject", "sixteen_bit": "reject"},
    ],
    ids=["defaults", "black", "drop", "reject"],
)
def test_engines_agree_on_every_format_under_every_policy(engines, policy):
    """The training data would depend on the engine."""
    images, (ours, theirs) = crops_of(engines, list(valid().values()), **policy)
    assert ours.ok.all() and len(images) > 40
    assert_agree(ours, theirs)


@pytest.mark.parametrize("orientation", ["apply", "ignore"])
def test_engines_agree_on_every_orientation(engines, orientation):
    """An engine that decodes JPEGs itself could turn them twice, or never."""
    pixels = made_pixels(3, 60, 84)
    files = []
    for format_ in ("JPEG", "PNG", "WEBP", "TIFF"):
        for number in (*range(1, 9), 42):
            exif = Image.Exif()
            exif[0x0112] = number
            stored = pixels if number == 42 else stored_pixels(pixels, number)
            files.append(encoded(stored, format_, exif=exif))
    images, (ours, theirs) = crops_of(engines, files, orientation=orientation)
    turned = sum((image.height, image.width) == (84, 60) for image in images)
    assert turned == (0 if orientation == "apply" else 16)
    assert_agree(ours, theirs)


def test_engines_agree_on_colour_profiles(engines):
    """One engine would ignore the profile."""
    pixels = made_pixels(2, 60, 80)
    files = [
        encoded(pixels, format_, icc_profile=swapping_profile()) for format_ in ("JPEG", "PNG")
    ]
    _, (ours, theirs) = crops_of(engines, files, icc_profile="srgb")
    _, (ignoring, _) = crops_of(engines, files)
    assert_agree(ours, theirs)
    assert np.abs(ours.crops[0].astype(int) - ignoring.crops[0]).mean() > 4


def test_engines_reject_the_same_broken_files(engines):
    """A broken image would be trained on by one engine and rejected by the other."""
    whole = valid()
    jpeg = encoded(made_pixels(4, 200, 160), quality=90)
    files = [data[: len(data) * 2 // 3] for data in whole.values()]
    files += [data[:-40] + bytes(20) + data[-20:] for data in whole.values()]
    files += [jpeg[: len(jpeg) * share // 10] + b"\xff\xd9" for share in range(2, 10)]
    _, (ours, theirs) = crops_of(engines, files)
    assert 10 < len(ours.failures) < len(ours.ok)
    np.testing.assert_array_equal(ours.ok, theirs.ok)
    assert sorted(ours.failures) == sorted(theirs.failures)


def test_a_batch_of_large_images_is_split(engines, monkeypatch):
    """A batch of the largest images would take tens of gigabytes."""
    monkeypatch.setattr("shards.crops.dali._MAX_PIXELS", 5000)
    files = [encoded(made_pixels(seed, 40 + 9 * seed, 50)) for seed in range(9)]
    _, (ours, theirs) = crops_of(engines, files)
    assert_agree(ours, theirs)
