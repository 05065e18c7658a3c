"""Surveys: `verify` and `stats` say what a run would say, sample for sample."""

from functools import partial

import cv2
import numpy as np
import pytest

from shards.admission import AdmissionConfig
from shards.chunks import ChunkCropper, CropJob
from shards.crops.opencv import OpenCVEngine
from shards.crops.recipe import cifar
from shards.errors import ShardUnreadable
from shards.manifest import open_manifest
from shards.records import Chunk, Turn
from shards.sources import RangeReader
from shards.survey import survey
from tests.tars import make_tar


def encode(extension, height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()


def hidden_damage(data):
    """A picture whose header is right and whose pixels are not."""
    return data[:200] + bytes(60) + data[260:]


@pytest.fixture
def mixed(tmp_path):
    """Two shards: 40 good pictures of three formats, and one of every sort of trouble."""
    good = [
        (f"{i:04d}{extension}", encode(extension, 20 + i, 40, i))
        for i in range(40)
        for extension in [(".jpg", ".png", ".webp")[i % 3]]
    ]
    bad = [
        ("b0.jpg", b""),
        ("b1.jpg", b"<html>gone</html>"),
        ("b2.jpg", encode(".jpg", 50, 50)[:-300]),
        ("b3.png", encode(".png", 4, 50)),
        ("b4.txt", b"no picture at all"),
        ("b5.png", hidden_damage(encode(".png", 50, 50))),
    ]
    (tmp_path / "0.tar").write_bytes(make_tar(good[:20] + bad))
    (tmp_path / "1.tar").write_bytes(make_tar(good[20:])[: -(10240 + 700)])
    return tmp_path


def test_headers_are_counted_without_decoding(mixed):
    """`stats` has to be quick, and right."""
    manifest = open_manifest(str(mixed), RangeReader())
    told = []
    found = survey(
        manifest, RangeReader(), AdmissionConfig(), depth="headers", progress=told.append
    )
    assert (found.num_shards, found.num_bytes) == (2, manifest.num_bytes)
    assert sum(told) == manifest.num_bytes
    assert found.num_samples == 46
    assert found.rejects == {
        "empty": 1,
        "not_a_picture": 1,
        "truncated": 1,
        "too_small": 1,
        "no_picture": 1,
        "truncated_tar": 1,
    }
    assert found.formats == {"jpeg": 13, "png": 14, "webp": 13}
    assert found.extensions == {"jpg": 16, "png": 15, "webp": 13, "txt": 1}
    assert len(found.sides) == 40 and max(found.sides) == 50 and min(found.sides) == 20
    assert found.num_pixels == 40 * sum(range(20, 59)) + 50 * 50
    assert found.examples["truncated_tar"].shard == 1 and found.examples["no_picture"].key == "b4"


def test_pixels_find_what_headers_hide(mixed):
    """`verify` must count what a run would, or it verified nothing."""
    manifest = open_manifest(str(mixed), RangeReader())
    quick = survey(manifest, RangeReader(), AdmissionConfig(), depth="headers")
    deep = survey(manifest, RangeReader(), AdmissionConfig(), depth="pixels")
    assert deep.rejects == {**quick.rejects, "undecodable": 1}
    assert deep.examples["undecodable"].key == "b5"
    assert sum(deep.formats.values()) + deep.rejects.total() == deep.num_samples == 46


def test_a_survey_rejects_exactly_what_a_run_rejects(mixed):
    """Two opinions on what is broken are one too many."""
    manifest = open_manifest(str(mixed), RangeReader())
    recipe = cifar(sizes=(8,))
    job = CropJob(
        recipe=recipe,
        seed=0,
        admission=AdmissionConfig(),
        build_engine=partial(OpenCVEngine, recipe),
    )
    cropper = ChunkCropper(job, RangeReader())
    reasons = []
    for index, shard in enumerate(manifest.shards):
        crops = cropper.crop(shard, Turn(Chunk(index, 0, shard.num_bytes), 0))
        reasons += [reject.reason for reject in crops.rejects]
    found = survey(manifest, RangeReader(), AdmissionConfig(), depth="pixels")
    assert sorted(reasons) == sorted(found.rejects.elements())


def test_what_is_admitted_is_the_users_choice(mixed):
    """The limits of a survey are those of the run it is for."""
    manifest = open_manifest(str(mixed), RangeReader())
    strict = AdmissionConfig(min_side=30, max_pixels=50 * 40)
    found = survey(manifest, RangeReader(), strict, depth="headers")
    # Sides of 20 to 29 are too small, 51 x 40 and more too large.
    assert found.rejects["too_small"] == 11 and found.rejects["too_large"] == 9


@pytest.mark.parametrize("num_threads", [1, 3])
def test_examples_are_the_first_of_their_reason(mixed, num_threads):
    """The same command must point at the same place again."""
    manifest = open_manifest(str(mixed), RangeReader())
    found = survey(
        manifest, RangeReader(), AdmissionConfig(min_side=25), depth="headers",
        num_threads=num_threads,
    )  # fmt: skip
    example = found.examples["too_small"]
    assert (example.key, example.shard, example.offset) == ("0000", 0, 0)


def test_a_shard_that_cannot_be_read_ends_the_survey(mixed):
    """A report on half of the data would look like one on all of it."""
    manifest = open_manifest(str(mixed), RangeReader())
    (mixed / "1.tar").unlink()
    with pytest.raises(ShardUnreadable, match=r"1\.tar is gone"):
        survey(manifest, RangeReader(), AdmissionConfig(), depth="headers")


def test_hostile_pictures_are_told_apart(shared_data):
    """Real troublemakers: none may be missing from the count, none may stop it."""
    manifest = open_manifest(str(shared_data / "nasty-a.tar"), RangeReader())
    found = survey(manifest, RangeReader(), AdmissionConfig(), depth="pixels")
    assert found.num_samples == 186
    assert sum(found.formats.values()) + found.rejects.total() == 186
    assert found.rejects.total() > 20 and len(found.rejects) >= 5
