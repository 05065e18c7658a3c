"""The engine that only verifies: the verdict of the others, without their work."""

import dataclasses
import random

import numpy as np
import pytest

from shards.crops.isolated_process import IsolatedProcess
from shards.crops.opencv import OpenCVEngine
from shards.crops.recipe import CropRecipe, swav
from shards.crops.sample_cropper import CropJob, SampleCropper, no_crops
from shards.crops.verify_engine import VerifyingEngine
from shards.images.decode import decode_stored
from shards.images.image_header import ImageError, ImageHeader
from shards.records import Reject, Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from tests.hostile import mutate, valid
from tests.shards.crops.made import drawn, encoded, made_pixels

RECIPE = CropRecipe(swav(counts=(1, 1), sizes=(24, 16)).groups)


def build() -> OpenCVEngine:
    return OpenCVEngine(RECIPE)


def admitted(files):
    found = [admit(Sample(0, 0, "a", {"img": file}), AdmissionConfig()) for file in files]
    return [image for image in found if isinstance(image, ImageHeader)]


def verdict(image, reduction):
    try:
        decode_stored(image, reduction)
    except ImageError as error:
        return error.reason
    return "ok"


def test_it_keeps_and_refuses_what_an_engine_that_crops_does():
    """Batches would depend on where images are cropped."""
    whole = list(valid().values())
    files = [*whole, *(data[: len(data) * 2 // 3] for data in whole)]
    files += [data[:-40] + bytes(20) + data[-20:] for data in whole]
    images = admitted(files)
    parameters = drawn(RECIPE, images)
    ours = VerifyingEngine(RECIPE).crop(images, parameters)
    theirs = OpenCVEngine(RECIPE).crop(images, parameters)
    np.testing.assert_array_equal(ours.ok, theirs.ok)
    assert ours.failures == theirs.failures and len(ours.failures) > 10
    (rows,) = ours.crops
    assert rows.tolist() == [image for image, ok in zip(images, ours.ok, strict=True) if ok]


def test_the_smallest_decode_judges_as_the_whole_one_does():
    """A reader looks at an eighth of a JPEG, the trainer behind it may need every pixel."""
    rng = random.Random(0)
    kinds = [
        encoded(made_pixels(seed, 150 + 7 * seed, 211), quality=80, progressive=seed % 2 == 1)
        for seed in range(6)
    ]
    files = [mutate(rng, kinds[number % len(kinds)]) for number in range(400)]
    files += [
        data[: len(data) * share // 20] + b"\xff\xd9" for data in kinds for share in range(20)
    ]
    images = admitted(files)
    found = [(verdict(image, 8), verdict(image, 1)) for image in images]
    assert [pair for pair in found if pair[0] != pair[1]] == []
    assert len({ours for ours, _ in found}) > 1


@pytest.mark.timeout(120)
def test_in_isolation_it_gives_the_same():
    """A chunk that killed readers is verified image by image, in another process."""
    job = CropJob(
        recipe=RECIPE, seed=0, admission=AdmissionConfig(), build_engine=build, only_verify=True
    )
    files = [encoded(made_pixels(seed, 40, 50)) for seed in range(2)]
    files.append(files[0][:300] + b"\xff\xd9")
    samples = [Sample(0, 512 * row, str(row), {"jpg": file}) for row, file in enumerate(files)]
    plain = SampleCropper(job).crop(samples, 0)
    with IsolatedProcess(job) as isolation:
        alone = isolation.crop(samples, 0)
    assert alone.crops[0].tolist() == plain.crops[0].tolist() and len(plain.crops[0]) == 2
    assert alone.rejects == plain.rejects and isinstance(plain.rejects[0], Reject)


def test_what_it_gives_for_nothing_is_of_its_kind():
    """Rows of a chunk of rejects are put beside those of others."""
    job = CropJob(recipe=RECIPE, seed=0, admission=AdmissionConfig(), build_engine=build)
    assert [group.shape for group in no_crops(job)] == [(0, 1, 24, 24, 3), (0, 1, 16, 16, 3)]
    (rows,) = no_crops(dataclasses.replace(job, only_verify=True))
    assert rows.dtype == object and rows.shape == (0,)
