"""Interrupted packs: finished shards are kept, and a resumed pack has the same bytes."""

import multiprocessing
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from shards.errors import ManifestError, PackFailed, UserError
from shards.pack.entry_plan import ImageEntry
from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import ImagesSource, PackConfig, PackProgress, pack
from shards.pack.sources.folder_entries import entries_from_folder
from shards.stores.shard_listing import list_shards
from tests.shards.pack.helpers import Stop, StopAfter, kill_worker
from tests.shards.pack.test_pack import jpeg, make_folder, shard_bytes

CONFIG = PackConfig(samples_per_shard=5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of 23 images: five shards."""
    files = {f"{'ab'[i % 2]}/{i}.jpg": jpeg(i) for i in range(23)}
    return entries_from_folder(make_folder(tmp_path_factory.mktemp("data") / "images", files))


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """Files of an uninterrupted pack, by name."""
    out = tmp_path_factory.mktemp("expected") / "out"
    pack(source, out, CONFIG)
    return contents(out)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def contents(out: Path):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def pack_until(num_images, source, out):
    with pytest.raises(Stop):
        pack(source, out, CONFIG, progress=StopAfter(num_images))


@pytest.mark.parametrize("moment", [0, 6, 15, 21])
def test_a_stopped_pack_makes_the_missing_shards(source, expected, out, moment):
    """A new start would cost days; half a shard taken as complete would lose data."""
    pack_until(moment, source, out)
    finished = shard_bytes(out) if out.exists() else {}
    assert len(finished) == moment // 5 and finished.items() <= expected.items()
    times = {name: (out / name).stat().st_mtime_ns for name in finished}
    report = pack(source, out, CONFIG)
    assert report.num_found == len(finished) and not report.reused
    assert contents(out) == expected
    assert times == {name: (out / name).stat().st_mtime_ns for name in finished}


def test_an_unfinished_pack_cannot_be_listed(source, tmp_path, out):
    """A run on half of the shards may never be noticed."""
    pack_until(12, source, out)
    assert (out / "shard-000000.tar").exists()
    for pattern in (str(out), f"{out}/*.tar", str(tmp_path), f"{tmp_path}/*/shard-*.tar"):
        with pytest.raises(ManifestError, match=r"out holds an unfinished pack; .*goes on where"):
            list_shards(pattern)
    pack(source, out, CONFIG)
    for pattern in (str(out), f"{out}/*.tar"):
        assert len(list_shards(pattern)) == 5


def test_an_unfinished_pack_of_other_images_is_refused(source, out):
    """Two data sets would be mixed."""
    pack_until(12, source, out)
    before = contents(out)
    for other, config in ((entries_from_synthetic(9), CONFIG), (source, PackConfig(seed=1))):
        with pytest.raises(UserError, match=r"not a complete pack.*nor an unfinished one.*name"):
            pack(other, out, config)
    assert contents(out) == before


def test_damaged_shards_and_drafts_of_killed_packs_are_replaced(source, expected, out):
    """A disk may fill up between two starts; drafts would waste it."""
    pack_until(21, source, out)
    with (out / "shard-000000.tar").open("ab") as file:
        file.write(b"more")
    (out / "shard-000001.json").write_text("{")
    (out / "shard-000002.tar").unlink()
    for name in (".shard-000001.tar.part-4711", ".pack.json.draft"):
        (out / name).write_bytes(b"half")
    report = pack(source, out, CONFIG)
    assert report.num_found == 1 and contents(out) == expected


def test_a_pack_killed_before_its_last_step_is_finished(source, expected, out):
    """Until the mark is removed, the pack must not count as complete."""
    pack_until(12, source, out)
    mark = (out / "pack.unfinished.json").read_bytes()
    pack(source, out, CONFIG)
    (out / "pack.unfinished.json").write_bytes(mark)
    with pytest.raises(ManifestError, match="unfinished"):
        list_shards(str(out))
    assert pack(source, out, CONFIG).num_found == 5
    assert contents(out) == expected


def test_a_second_pack_waits_with_a_message_and_reuses_the_first(source, expected, out):
    """Two jobs that start together would write over each other; a silent wait looks like a hang."""
    waiting, reports = StopAfter(99), []
    other = threading.Thread(
        target=lambda: reports.append(pack(source, out, CONFIG, progress=waiting))
    )

    class StartTheOther(PackProgress):
        def advance(self, num_units):  # noqa: ARG002
            if not other.ident:
                other.start()
                while not waiting.messages:
                    pass

    assert not pack(source, out, CONFIG, progress=StartTheOther()).reused
    other.join()
    wait = f"another process packs into {out} at this moment; waiting for it"
    assert waiting.messages == [wait, *source.notes]
    assert reports[0].reused and contents(out) == expected


def test_an_empty_pack_removes_only_the_folder_that_it_made(out):
    """A process that waits for the lock would write into a deleted folder."""
    empty = ImagesSource(name="nothing", entries=[])
    with pytest.raises(UserError, match="no image found in nothing"):
        pack(empty, out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError, match="no image found in nothing"):
        pack(empty, out)
    assert list(out.iterdir()) == []


def test_the_number_of_workers_changes_no_byte(source, expected, out):
    """A shard that depends on its worker could not be made again."""
    report = pack(source, out, CONFIG, num_workers=2)
    assert report.num_samples == 23 and contents(out) == expected
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_named_and_finished_shards_stay(out):
    """The out-of-memory killer ends one process without a message."""
    drawn = list(entries_from_synthetic(20, size=16).entries)
    deadly = ImageEntry("x.jpg", "jpg", partial(kill_worker, os.getpid()), "")
    source = ImagesSource(name="test", entries=[*drawn[:10], deadly, *drawn[11:]])
    config = PackConfig(seed=None, samples_per_shard=5)
    message = r"a worker ended by SIGKILL while it made shard 2; .*fewer --workers"
    with pytest.raises(PackFailed, match=message):
        pack(source, out, config, num_workers=2)
    assert multiprocessing.active_children() == []
    assert (out / "pack.unfinished.json").exists() and not list(out.glob(".*"))


def test_a_target_that_cannot_be_written_to_is_named(source, out):
    """A disk may be full or read-only."""
    with pytest.raises(UserError, match=r"/proc/out cannot be made \(.*; shards go into a folder"):
        pack(source, "/proc/out")
    (out / ".x.part-1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out cannot be written to \(.*free space there, or give"):
        pack(source, out)
