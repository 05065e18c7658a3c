"""Scans: `verify` and `stats` report what a run would report, sample for sample."""

import gzip
from pathlib import Path

import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.recipe import cifar
from shards.errors import ShardUnreadable
from shards.inspect.shard_scanner import ShardScanner
from shards.records import Chunk, Turn
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from tests.noise import noise
from tests.shards.jobs import crop_job
from tests.tars import make_tar


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two shards: 40 good images of three formats, and one sample for every fault. Read only."""
    folder = tmp_path_factory.mktemp("mixed")
    good = [
        (f"{i:04d}{extension}", noise(20 + i, 40, extension, i))
        for i in range(40)
        for extension in [(".jpg", ".png", ".webp")[i % 3]]
    ]
    png = noise(50, 50, ".png")
    bad = [
        ("b0.jpg", b""),
        ("b1.jpg", b"<html>gone</html>"),
        ("b2.jpg", noise(50, 50, ".jpg")[:-300]),
        ("b3.png", noise(4, 50, ".png")),
        ("b4.txt", b"no image at all"),
        ("b5.png", png[:200] + bytes(60) + png[260:]),  # the header is right, the pixels are not
    ]
    (folder / "0.tar").write_bytes(make_tar(good[:20] + bad))
    (folder / "1.tar").write_bytes(make_tar(good[20:])[: -(10240 + 700)])
    return folder


def scanner(folder, admission=None, **options):
    manifest = open_manifest(str(folder), RangeReader())
    return ShardScanner(manifest, RangeReader(), admission or AdmissionConfig(), **options)


def test_headers_are_counted_without_decoding(mixed):
    """`stats` would show other counts or sizes than the shards have."""
    progress = []
    result = scanner(mixed, depth="headers", progress=progress.append).scan_all()
    num_bytes = sum(path.stat().st_size for path in mixed.iterdir())
    assert (result.num_shards, result.num_bytes, sum(progress)) == (2, num_bytes, num_bytes)
    stats = result.stats
    assert stats.num_samples == 46
    assert stats.rejects == {
        "empty": 1,
        "not_an_image": 1,
        "truncated": 1,
        "too_small": 1,
        "no_image": 1,
        "truncated_tar": 1,
    }
    assert stats.formats == {"jpeg": 13, "png": 14, "webp": 13}
    assert stats.extensions == {"jpg": 16, "png": 15, "webp": 13, "txt": 1}
    assert stats.num_images == 40 and stats.num_pixels == 40 * sum(range(20, 59)) + 50 * 50
    assert stats.shorter_sides.percentiles([1, 100]) == {"p1": 20, "p100": 50}
    assert stats.longer_sides.percentiles([1, 100]) == {"p1": 40, "p100": 58}
    assert stats.aspect_ratios.percentiles([1, 100]) == {"p1": 0.69, "p100": 2}
    assert stats.examples["truncated_tar"].shard == 1 and stats.examples["no_image"].key == "b4"
    assert stats.num_decoded > 8 and stats.decode_seconds > 0 and result.read_seconds > 0


def test_pixels_show_the_rejects_of_a_run_in_a_report_per_shard(mixed):
    """`verify` would pass shards whose samples a run rejects, or blame the wrong shard."""
    result = scanner(mixed, depth="pixels").scan_all()
    stats = result.stats
    assert stats.examples["undecodable"].key == "b5"
    assert stats.formats.total() + stats.rejects.total() == stats.num_samples == 46
    first, second = result.shards
    assert [first.uri, second.uri] == [str(mixed / "0.tar"), str(mixed / "1.tar")]
    assert (first.num_samples, second.num_samples) == (26, 20)
    assert second.rejects == {"truncated_tar": 1}
    assert first.examples["empty"].key == "b0" and "empty" not in second.examples
    assert not first.is_good and not second.is_good and not result.is_good

    cropper, reasons = ChunkCropper(crop_job(cifar(sizes=(8,))), RangeReader()), []
    for index, shard in enumerate(open_manifest(str(mixed), RangeReader()).shards):
        crops = cropper.crop(shard, Turn(Chunk(index, 0, shard.num_bytes), 0))
        reasons += [reject.reason for reject in crops.rejects]
    assert sorted(reasons) == sorted(stats.rejects.elements())

    isolated = scanner(mixed, isolated=True, num_threads=1).scan_all().stats
    assert isolated.rejects == stats.rejects and isolated.formats == stats.formats
    assert isolated.num_decoded == 0, "an image was decoded in this process"


def test_a_scan_of_some_chunks_reads_only_these(tmp_path):
    """`stats --sample` on ten terabytes would read more than the sample."""
    for shard in range(4):
        members = [(f"{i:04d}.png", noise(60, 60, seed=i)) for i in range(200)]
        (tmp_path / f"{shard}.tar").write_bytes(make_tar(members))
    progress = []
    some = scanner(tmp_path, depth="headers", progress=progress.append).scan_some(3)
    assert some.scanned_chunks == 3 < some.num_chunks and some.shards == []
    assert some.scanned_bytes == sum(progress) == 3 * some.chunk_bytes
    assert 0 < some.stats.num_samples < 200 and some.stats.rejects == {}
    every = scanner(tmp_path, depth="headers").scan_some(10**6)
    assert every.scanned_chunks == every.num_chunks and every.stats.num_samples == 800


@pytest.mark.parametrize("num_threads", [1, 3])
def test_admission_is_configurable_and_examples_come_first(mixed, num_threads):
    """A scan would judge by other limits than the run, or name another example each time."""
    strict = AdmissionConfig(min_side=30, max_pixels=50 * 40)
    stats = scanner(mixed, strict, depth="headers", num_threads=num_threads).scan_all().stats
    # Sides of 20 to 29 are too small, 51 x 40 and more too large.
    assert stats.rejects["too_small"] == 11 and stats.rejects["too_large"] == 9
    example = stats.examples["too_small"]
    assert (example.key, example.shard, example.offset) == ("0000", 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, "is gone; it was there when the shards were listed"),
        (lambda path: path.write_bytes(b""), "was written to since"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "was written to since"),
        (lambda path: (path.unlink(), path.mkdir()), "0.tar"),
    ],
)
@pytest.mark.parametrize("extension", ["tar", pytest.param("tar.gz", marks=pytest.mark.slow)])
def test_a_shard_that_vanishes_is_reported_and_the_scan_continues(
    tmp_path, change, message, extension
):
    """One lost object would end the scan of a hundred thousand shards."""
    data = make_tar([("0.png", noise(30, 30, ".png"))])
    bad = tmp_path / f"0.{extension}"
    bad.write_bytes(gzip.compress(data) if extension == "tar.gz" else data)
    (tmp_path / "1.tar").write_bytes(data)
    scan = scanner(tmp_path, depth="headers")
    change(bad)
    result = scan.scan_all()
    first, second = result.shards
    assert message in first.unreadable and second.unreadable is None
    assert not result.is_good and second.num_samples == 1


def test_a_store_without_any_readable_shard_ends_the_scan(tmp_path):
    """Each of a hundred thousand shards would be retried five times, for a week."""
    for shard in range(9):
        (tmp_path / f"{shard}.tar").write_bytes(make_tar([("0.png", noise(30, 30, ".png"))]))
    scan = scanner(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ShardUnreadable, match=r"the first 8 shards: .*0\.tar is gone"):
        scan.scan_all()


def test_every_hostile_image_is_counted_once(shared_data):
    """A malformed image from the web would stop the scan or be missing from the counts."""
    stats = scanner(shared_data / "nasty-a.tar").scan_all().stats
    assert stats.num_samples == 186
    assert stats.formats.total() + stats.rejects.total() == 186
