"""Surveys: `verify` and `stats` say what a run would say, sample for sample."""

from functools import partial

import cv2
import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.opencv import OpenCVEngine
from shards.crops.recipe import cifar
from shards.crops.sample_cropper import CropJob
from shards.errors import ShardUnreadable
from shards.inspect.shard_scanner import ShardScanner
from shards.records import Chunk, Turn
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from tests.tars import make_tar


def encode(extension, height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()


def hidden_damage(data):
    """An image whose header is right and whose pixels are not."""
    return data[:200] + bytes(60) + data[260:]


@pytest.fixture
def mixed(tmp_path):
    """Two shards: 40 good images of three formats, and one of every sort of trouble."""
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
        ("b4.txt", b"no image at all"),
        ("b5.png", hidden_damage(encode(".png", 50, 50))),
    ]
    (tmp_path / "0.tar").write_bytes(make_tar(good[:20] + bad))
    (tmp_path / "1.tar").write_bytes(make_tar(good[20:])[: -(10240 + 700)])
    return tmp_path


def look(folder, reader=None, admission=None, **options):
    """A survey of a folder, with a report on every shard."""
    manifest = open_manifest(str(folder), RangeReader())
    surveyor = ShardScanner(
        manifest, reader or RangeReader(), admission or AdmissionConfig(), **options
    )
    return surveyor.scan_all()


def test_headers_are_counted_without_decoding(mixed):
    """`stats` has to be quick, and right."""
    told = []
    survey = look(mixed, depth="headers", progress=told.append)
    num_bytes = sum(path.stat().st_size for path in mixed.iterdir())
    assert (survey.num_shards, survey.num_bytes, sum(told)) == (2, num_bytes, num_bytes)
    found = survey.found
    assert found.num_samples == 46
    assert found.rejects == {
        "empty": 1,
        "not_an_image": 1,
        "truncated": 1,
        "too_small": 1,
        "no_image": 1,
        "truncated_tar": 1,
    }
    assert found.formats == {"jpeg": 13, "png": 14, "webp": 13}
    assert found.extensions == {"jpg": 16, "png": 15, "webp": 13, "txt": 1}
    assert found.num_images == 40 and found.num_pixels == 40 * sum(range(20, 59)) + 50 * 50
    assert found.shorter_sides.percentiles([1, 100]) == {"p1": 20, "p100": 50}
    assert found.longer_sides.percentiles([1, 100]) == {"p1": 40, "p100": 58}
    assert found.aspect_ratios.percentiles([1, 100]) == {"p1": 0.69, "p100": 2}
    assert found.examples["truncated_tar"].shard == 1 and found.examples["no_image"].key == "b4"
    assert found.num_decoded > 8 and found.decode_seconds > 0 and survey.read_seconds > 0


def test_pixels_find_what_headers_hide(mixed):
    """`verify` must count what a run would, or it verified nothing."""
    quick = look(mixed, depth="headers").found
    deep = look(mixed, depth="pixels").found
    assert deep.rejects == {**quick.rejects, "undecodable": 1}
    assert deep.examples["undecodable"].key == "b5"
    assert deep.formats.total() + deep.rejects.total() == deep.num_samples == 46


def test_every_shard_has_a_report_of_its_own(mixed):
    """Of a hundred thousand shards one has to know which are to be packed again."""
    survey = look(mixed)
    first, second = survey.shards
    assert [first.uri, second.uri] == [str(mixed / "0.tar"), str(mixed / "1.tar")]
    assert (first.num_samples, second.num_samples) == (26, 20)
    assert second.rejects == {"truncated_tar": 1}
    assert first.examples["empty"].key == "b0" and "empty" not in second.examples
    assert not first.is_good and not second.is_good and not survey.is_good


def test_a_look_at_some_chunks_reads_those_only(tmp_path):
    """A bucket of ten terabytes cannot be read to see what is in it."""
    for shard in range(4):
        members = [(f"{i:04d}.png", encode(".png", 60, 60, i)) for i in range(200)]
        (tmp_path / f"{shard}.tar").write_bytes(make_tar(members))
    manifest = open_manifest(str(tmp_path), RangeReader())
    told = []
    surveyor = ShardScanner(
        manifest, RangeReader(), AdmissionConfig(), depth="headers", progress=told.append
    )
    survey = surveyor.scan_some(3)
    assert survey.looked_chunks == 3 < survey.num_chunks and survey.shards == []
    assert survey.looked_bytes == sum(told) == 3 * survey.chunk_bytes
    assert 0 < survey.found.num_samples < 200 and survey.found.rejects == {}
    every = ShardScanner(manifest, RangeReader(), AdmissionConfig()).scan_some(10**6)
    assert every.looked_chunks == every.num_chunks and every.found.num_samples == 800


def test_processes_of_their_own_find_what_threads_find(mixed):
    """The command that looks for images that kill must survive them, and count alike."""
    inside, outside = (look(mixed, isolated=isolated, num_threads=1) for isolated in (False, True))
    assert outside.found.rejects == inside.found.rejects
    assert outside.found.formats == inside.found.formats
    assert outside.found.num_decoded == 0, "an image was decoded in this process"


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
    found = look(mixed).found
    assert sorted(reasons) == sorted(found.rejects.elements())


def test_what_is_admitted_is_the_users_choice(mixed):
    """The limits of a survey are those of the run it is for."""
    strict = AdmissionConfig(min_side=30, max_pixels=50 * 40)
    found = look(mixed, admission=strict, depth="headers").found
    # Sides of 20 to 29 are too small, 51 x 40 and more too large.
    assert found.rejects["too_small"] == 11 and found.rejects["too_large"] == 9


@pytest.mark.parametrize("num_threads", [1, 3])
def test_examples_are_the_first_of_their_reason(mixed, num_threads):
    """The same command must point at the same place again."""
    strict = AdmissionConfig(min_side=25)
    found = look(mixed, admission=strict, depth="headers", num_threads=num_threads).found
    example = found.examples["too_small"]
    assert (example.key, example.shard, example.offset) == ("0000", 0, 0)


def test_a_shard_that_cannot_be_read_is_in_the_report_and_not_the_end(mixed):
    """One lost object among a hundred thousand: the others want to be verified, too."""
    manifest = open_manifest(str(mixed), RangeReader())
    (mixed / "0.tar").unlink()
    survey = ShardScanner(manifest, RangeReader(), AdmissionConfig(), depth="headers").scan_all()
    first, second = survey.shards
    assert "0.tar is gone" in first.unreadable and second.unreadable is None
    assert not survey.is_good and second.num_samples == 20


def test_a_store_that_gives_nothing_ends_the_survey(tmp_path):
    """A hundred thousand shards, each tried five times, would be tried for a week."""
    for shard in range(9):
        (tmp_path / f"{shard}.tar").write_bytes(make_tar([("0.png", encode(".png", 30, 30))]))
    manifest = open_manifest(str(tmp_path), RangeReader())
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ShardUnreadable, match=r"the first 8 shards: .*0\.tar is gone"):
        ShardScanner(manifest, RangeReader(), AdmissionConfig()).scan_all()


def test_what_lies_beside_the_shards_of_img2dataset_does_not_disturb(tmp_path):
    """Folders are as the downloader left them: images, captions, tables, statistics."""
    rng = np.random.default_rng(0)
    extensions = [".jpg", ".jpeg", ".png", ".webp"]
    for shard in range(3):
        members = []
        for index in rng.permutation(30):
            key = f"{shard:05d}{index:04d}"
            extension = extensions[index % 4]
            image = encode(".png" if index % 7 == 0 else extension, 30 + index, 40, int(index))
            entry = [(key + extension, image), (key + ".txt", b"a caption"),
                     (key + ".json", b'{"uid": "0", "status": "success"}')]  # fmt: skip
            members += [entry[i] for i in rng.permutation(3)]
        (tmp_path / f"{shard:05d}.tar").write_bytes(make_tar(members))
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    survey = look(tmp_path)
    assert survey.is_good and survey.num_shards == 3 and survey.found.num_images == 90
    assert survey.found.extensions["json"] == survey.found.extensions["txt"] == 90


def test_hostile_images_are_told_apart(shared_data):
    """Real troublemakers: none may be missing from the count, none may stop it."""
    found = look(shared_data / "nasty-a.tar").found
    assert found.num_samples == 186
    assert found.formats.total() + found.rejects.total() == 186
    assert found.rejects.total() > 20 and len(found.rejects) >= 5
