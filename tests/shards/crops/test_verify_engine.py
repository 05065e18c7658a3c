"""VerifyingEngine: the verdicts of cropping engines."""

import dataclasses
import random

import numpy as np

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


def test_verdicts_equal_those_of_a_cropping_engine():
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


def test_a_reduced_decode_has_the_verdict_of_a_full_one():
    """A reader verifies an eighth of a JPEG, and a trainer may need every pixel."""
    rng = random.Random(0)
    kinds = [
        encoded(made_pixels(seed, 150 + 7 * seed, 211), quality=80, progressive=seed % 2 == 1)
        for seed in range(6)
    ]
    files = [mutate(rng, kinds[number % len(kinds)]) for number in range(150)]
    files += [
        data[: len(data) * share // 20] + b"\xff\xd9" for data in kinds for share in range(20)
    ]
    images = admitted(files)
    found = [(verdict(image, 8), verdict(image, 1)) for image in images]
    assert [pair for pair in found if pair[0] != pair[1]] == []
    assert len({ours for ours, _ in found}) > 1


def test_an_isolated_process_gives_the_same_verdicts():
    """A chunk that crashed readers would have other rejects."""
    job = CropJob(
        recipe=RECIPE, seed=0, admission=AdmissionConfig(), build_engine=build, only_verify=True
    )
    files = [encoded(made_pixels(seed, 40, 50)) for seed in range(2)]
    files.append(files[0][:300] + b"\xff\xd9")
    samples = [Sample(0, 512 * row, str(row), {"jpg": file}) for row, file in enumerate(files)]
    plain = SampleCropper(job).crop(samples, 0)
    with IsolatedProcess(job) as process:
        alone = process.crop(samples, 0)
    assert alone.crops[0].tolist() == plain.crops[0].tolist() and len(plain.crops[0]) == 2
    assert alone.rejects == plain.rejects and isinstance(plain.rejects[0], Reject)


def test_empty_results_have_the_right_shape():
    """Results of chunks without samples are concatenated with others."""
    job = CropJob(recipe=RECIPE, seed=0, admission=AdmissionConfig(), build_engine=build)
    assert [group.shape for group in no_crops(job)] == [(0, 1, 24, 24, 3), (0, 1, 16, 16, 3)]
    (rows,) = no_crops(dataclasses.replace(job, only_verify=True))
    assert rows.dtype == object and rows.shape == (0,)
