"""A pack that is stopped anywhere: what is finished stays, and the end is byte by byte the same."""

import multiprocessing
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from shards.errors import ManifestError, PackFailed, UserError
from shards.pack.entry_plan import ImageEntry
from shards.pack.image_entries import entries_from_folder, entries_from_synthetic
from shards.pack.pack import ImagesSource, PackConfig, PackProgress, pack
from shards.stores.shard_listing import list_shards
from tests.shards.pack.helpers import Stop, StopAfter, kill_yourself
from tests.shards.pack.test_pack import jpeg, make_folder, shard_bytes

CONFIG = PackConfig(samples_per_shard=5)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 23 images. Not to be written to."""
    files = {f"{'ab'[i % 2]}/{i}.jpg": jpeg(i) for i in range(23)}
    return make_folder(tmp_path_factory.mktemp("data") / "images", files)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """What an undisturbed pack of them writes, by name."""
    out = tmp_path_factory.mktemp("whole") / "out"
    pack(entries_from_folder(images), out, CONFIG)
    return contents(out)


def contents(out: Path):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("moment", range(0, 24, 3))
def test_a_pack_that_was_stopped_goes_on_with_what_is_missing(images, whole, tmp_path, moment):
    """Starting over would cost days; taking half a shard for a whole one would cost the data."""
    source, out = entries_from_folder(images), tmp_path / "out"
    if moment < 23:
        with pytest.raises(Stop):
            pack(source, out, CONFIG, progress=StopAfter(moment))
    finished = shard_bytes(out) if out.exists() else {}
    assert len(finished) == (moment // 5 if moment < 23 else 0)
    assert finished.items() <= whole.items()
    times = {name: (out / name).stat().st_mtime_ns for name in finished}
    report = pack(source, out, CONFIG)
    assert report.num_found == len(finished) and not report.reused
    assert contents(out) == whole
    assert times == {name: (out / name).stat().st_mtime_ns for name in finished}


def test_an_unfinished_pack_is_not_taken_for_data(images, tmp_path):
    """A run on half of the shards is noticed weeks later, if at all."""
    source, out = entries_from_folder(images), tmp_path / "out"
    with pytest.raises(Stop):
        pack(source, out, CONFIG, progress=StopAfter(12))
    assert (out / "shard-000000.tar").exists()
    for pattern in (str(out), f"{out}/*.tar", str(tmp_path), f"{tmp_path}/*/shard-*.tar"):
        with pytest.raises(ManifestError, match=r"out holds an unfinished pack; .*goes on where"):
            list_shards(pattern)
    pack(source, out, CONFIG)
    for pattern in (str(out), f"{out}/*.tar"):
        assert len(list_shards(pattern)) == 5


def test_an_unfinished_pack_of_other_images_is_refused(images, tmp_path):
    """Two data sets would be mixed, half of each."""
    source, out = entries_from_folder(images), tmp_path / "out"
    with pytest.raises(Stop):
        pack(source, out, CONFIG, progress=StopAfter(12))
    before = contents(out)
    for other, config in ((entries_from_synthetic(9), CONFIG), (source, PackConfig(seed=1))):
        with pytest.raises(UserError, match=r"not a complete pack.*nor an unfinished one.*name"):
            pack(other, out, config)
    assert contents(out) == before


def test_damage_to_what_was_finished_is_made_good(images, whole, tmp_path):
    """A disk that was full, or somebody's hand, between two starts."""
    source, out = entries_from_folder(images), tmp_path / "out"
    with pytest.raises(Stop):
        pack(source, out, CONFIG, progress=StopAfter(21))
    with (out / "shard-000000.tar").open("ab") as file:
        file.write(b"more")
    (out / "shard-000001.json").write_text("{")
    (out / "shard-000002.tar").unlink()
    report = pack(source, out, CONFIG)
    assert report.num_found == 1 and contents(out) == whole


def test_what_killed_packs_left_behind_is_removed(images, whole, tmp_path):
    """Drafts of hundreds of megabytes would pile up, and be listed by nobody."""
    out = tmp_path / "out"
    out.mkdir()
    for name in (".shard-000001.tar.part-4711", ".pack.json.part-4711"):
        (out / name).write_bytes(b"half")
    pack(entries_from_folder(images), out, CONFIG)
    assert contents(out) == whole


def test_a_pack_killed_before_its_last_step_is_finished(images, whole, tmp_path):
    """Between the report and the removal of the mark nobody may take it for complete."""
    source, out = entries_from_folder(images), tmp_path / "out"
    with pytest.raises(Stop):
        pack(source, out, CONFIG, progress=StopAfter(12))
    mark = (out / "pack.unfinished.json").read_bytes()
    pack(source, out, CONFIG)
    (out / "pack.unfinished.json").write_bytes(mark)
    with pytest.raises(ManifestError, match="unfinished"):
        list_shards(str(out))
    assert pack(source, out, CONFIG).num_found == 5
    assert contents(out) == whole


def test_the_slower_of_two_packs_waits_and_reuses_the_faster(images, whole, tmp_path):
    """Two jobs that start together must not fail, nor write into one another."""
    source, out, reports = entries_from_folder(images), tmp_path / "out", []
    handlers = [StopAfter(99), StopAfter(99)]
    threads = [
        threading.Thread(target=lambda w=w: reports.append(pack(source, out, CONFIG, progress=w)))
        for w in handlers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(report.reused for report in reports) == [False, True]
    assert contents(out) == whole


def test_whoever_waits_is_told_for_what(images, tmp_path):
    """A command that seems to hang is killed."""
    source, out, inner = entries_from_folder(images), tmp_path / "out", StopAfter(99)
    other = threading.Thread(target=pack, args=(source, out, CONFIG), kwargs={"progress": inner})

    class StartTheOther(PackProgress):
        def advance(self, num_units):  # noqa: ARG002
            if not other.ident:
                other.start()
                while not inner.messages:
                    pass

    pack(source, out, CONFIG, progress=StartTheOther())
    other.join()
    assert inner.messages == [f"another process packs into {out} at this moment; waiting for it"]


def test_a_place_that_came_to_nothing_is_made_anew(tmp_path, images):
    """The one who waited would otherwise write into a folder that is no longer there."""
    out = tmp_path / "out"
    empty = ImagesSource(name="nothing", entries=[])
    with pytest.raises(UserError, match="no image found in nothing"):
        pack(empty, out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError, match="no image found in nothing"):
        pack(empty, out)
    assert list(out.iterdir()) == []  # the folder itself is the user's


def test_the_number_of_workers_changes_no_byte(images, whole, tmp_path):
    """Shards that depended on who makes them could not be made again."""
    out = tmp_path / "out"
    report = pack(entries_from_folder(images), out, CONFIG, num_workers=2)
    assert report.num_samples == 23 and contents(out) == whole
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_named_and_the_rest_stays(tmp_path):
    """The out-of-memory killer takes one process, and nobody hears of it."""
    drawn = list(entries_from_synthetic(20, size=16).entries)
    deadly = ImageEntry("x.jpg", "jpg", partial(kill_yourself, os.getpid()), "")
    source = ImagesSource(name="test", entries=[*drawn[:10], deadly, *drawn[11:]])
    config = PackConfig(seed=None, samples_per_shard=5)
    with pytest.raises(
        PackFailed, match=r"a worker ended by SIGKILL while it made shard 2; .*fewe"
    ):
        pack(source, tmp_path / "out", config, num_workers=2)
    assert multiprocessing.active_children() == []
    assert (tmp_path / "out" / "pack.unfinished.json").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_what_a_worker_cannot_do_is_the_same_sentence(tmp_path, images):
    """A traceback from another process helps nobody."""
    out = tmp_path / "out"

    class RemoveTheFolder(PackProgress):
        def begin(self, num_units, unit):  # noqa: ARG002
            os.rename(out, tmp_path / "elsewhere")

    message = r"\S+out cannot be written to \(No such file.*free space there, or give another"
    for num_workers in (1, 2):
        with pytest.raises(UserError, match=message):
            pack(
                entries_from_folder(images),
                out,
                CONFIG,
                num_workers=num_workers,
                progress=RemoveTheFolder(),
            )
        (tmp_path / "elsewhere").rename(tmp_path / f"done-{num_workers}")


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path, images):
    """A disk that is full, or read-only, is found out at any moment."""
    source = entries_from_folder(images)
    with pytest.raises(UserError, match=r"/proc/out cannot be made \(.*; shards go into a folder"):
        pack(source, "/proc/out")
    (tmp_path / "out" / ".x.part-1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out cannot be written to \(.*free space there, or give"):
        pack(source, tmp_path / "out")
