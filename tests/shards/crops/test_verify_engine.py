"""VerifyingEngine: the verdicts of cropping engines."""

import dataclasses
from functools import partial

import numpy as np

from shards.crops.isolated_process import IsolatedProcess
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe, swav
from shards.crops.sample_cropper import SampleCropper, no_crops
from shards.crops.verify_engine import VerifyingEngine
from shards.images.image_header import ImageHeader
from shards.records import Reject, Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from tests.hostile import valid
from tests.shards.crops.made import drawn, encoded, made_pixels
from tests.shards.jobs import crop_job

RECIPE = CropRecipe(swav(counts=(1, 1), sizes=(24, 16)).groups)


def admitted(files):
    found = [admit(Sample(0, 0, "a", {"img": file}), AdmissionConfig()) for file in files]
    return [image for image in found if isinstance(image, ImageHeader)]


def test_verdicts_equal_those_of_a_cropping_engine():
    """Batches would depend on where images are cropped."""
    whole = list(valid().values())
    files = [*whole, *(data[: len(data) * 2 // 3] for data in whole)]
    files += [data[:-40] + bytes(20) + data[-20:] for data in whole]
    images = admitted(files)
    parameters = drawn(RECIPE, images)
    ours = VerifyingEngine(RECIPE).crop(images, parameters)
    theirs = NativeEngine(RECIPE).crop(images, parameters)
    np.testing.assert_array_equal(ours.ok, theirs.ok)
    assert ours.failures == theirs.failures and len(ours.failures) > 10
    (rows,) = ours.crops
    assert rows.tolist() == [image for image, ok in zip(images, ours.ok, strict=True) if ok]


def test_an_isolated_process_gives_the_same_verdicts():
    """A chunk that crashed readers would have other rejects."""
    # An engine without torch, which the child process would import for seconds.
    verify = partial(VerifyingEngine, RECIPE)
    job = crop_job(RECIPE, only_verify=True, build_engine=verify)
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
    job = crop_job(RECIPE)
    assert [group.shape for group in no_crops(job)] == [(0, 1, 24, 24, 3), (0, 1, 16, 16, 3)]
    (rows,) = no_crops(dataclasses.replace(job, only_verify=True))
    assert rows.dtype == object and rows.shape == (0,)
