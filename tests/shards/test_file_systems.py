"""File systems that lack locks or flushes, or are full: one warning, or one sentence."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from shards import file_systems
from shards.errors import StorageFailed
from shards.files import DurableLines, append_line, write_atomic
from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import PackConfig, pack
from shards.pack.pack_target import FolderTarget
from shards.records import ShardInfo
from shards.stores.disk_cache import CacheConfig, DiskCache
from shards.stores.request_counters import RequestCounters
from shards.stream.journal import Journal

NO_LOCKS = (errno.ENOSYS, errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP)
NO_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    """A warning comes once in a process: each test begins as a new one."""
    monkeypatch.setattr(file_systems, "_told", set())


def refuse(monkeypatch, module, name, code):
    """Let a call of the system fail with this code."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, fail)


def pack_tars(folder):
    pack(entries_from_synthetic(8, seed=0, size=16), folder, PackConfig(samples_per_shard=4))


@pytest.mark.parametrize("code", NO_LOCKS, ids=errno.errorcode.get)
def test_a_file_system_without_locks_costs_one_warning(code, tmp_path, monkeypatch, caplog):
    """Packing onto a network disk would end in a traceback."""
    refuse(monkeypatch, fcntl, "flock", code)
    pack_tars(tmp_path / "a")
    with FolderTarget(tmp_path / "b").hold(print) as scratch:
        assert scratch.is_dir()
    assert len(list((tmp_path / "a").glob("*.tar"))) == 2
    (record,) = caplog.records
    assert "has no locks" in record.message and "one process at a time" in record.message


@pytest.mark.parametrize("code", NO_LOCKS, ids=errno.errorcode.get)
def test_a_cache_without_locks_caches_nothing_more(code, tmp_path, monkeypatch, caplog):
    """Without a lock its limit cannot hold; it is no reason to end a run, nor to free space."""
    refuse(monkeypatch, fcntl, "flock", code)
    cache = DiskCache(CacheConfig(folder=str(tmp_path), max_bytes=10**6))
    counters = RequestCounters()
    shard = ShardInfo("s3://bucket/0.tar", 1 << 40, "etag")
    for start in (0, 10):
        cache.put(shard, start, b"x" * 10, counters)
    assert cache.get(shard, 0, 10, counters) is None
    (record,) = caplog.records
    assert record.message.endswith("nothing more is cached: give a --cache on a local disk")


def test_a_cache_on_a_read_only_file_system_is_told_as_such(tmp_path, monkeypatch, caplog):
    """No permission lets a user write there."""
    cache = DiskCache(CacheConfig(folder=str(tmp_path), max_bytes=10**6))
    with monkeypatch.context() as patch:
        refuse(patch, os, "open", errno.EROFS)
        cache.put(ShardInfo("s3://bucket/0.tar", 1 << 40, "etag"), 0, b"x", RequestCounters())
    assert "its file system is read-only; mount it for writing, or give an" in caplog.text


@pytest.mark.parametrize("code", NO_FLUSH, ids=errno.errorcode.get)
def test_a_file_system_without_flushes_costs_one_warning(code, tmp_path, monkeypatch, caplog):
    """A refused fsync of a folder was told as a full disk, and ended the run."""
    refuse(monkeypatch, os, "fsync", code)
    write_atomic(tmp_path / "a", "new", durable=True)
    journal = Journal("m", "o")
    with journal.keep_in(tmp_path / "journal.jsonl"):
        journal.add_irregular(1, 2)
    pack_tars(tmp_path / "packed")
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 2
    (record,) = caplog.records
    assert "cannot flush to disk" in record.message and "loses power" in record.message


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_flush_that_fails_for_want_of_room_is_an_error(code, tmp_path, monkeypatch):
    """A checkpoint that is not on disk would count as saved."""
    refuse(monkeypatch, os, "fsync", code)
    with pytest.raises(OSError, match=os.strerror(code)):
        write_atomic(tmp_path / "a", "new", durable=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, r"the disk is full \(`df -h .*\); make room there, then start the same"),
        (errno.EDQUOT, r"your quota of the disk is used up; make room there, or ask for more, th"),
        (errno.EIO, r"Input/output error; check the disk"),
    ],
)
def test_a_full_disk_leaves_the_journal_whole(code, remedy, tmp_path, monkeypatch):
    """Half a line in the middle would be a damaged journal, and closing it failed once more."""
    journal, path, write = Journal("m", "o"), tmp_path / "journal.jsonl", os.write
    with journal.keep_in(path):
        journal.add_irregular(1, 2)
        whole = path.read_bytes()

        def write_half(descriptor, data):
            if len(data) < 10:
                raise OSError(code, os.strerror(code))
            return write(descriptor, bytes(data[: len(data) // 2]))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_half)
            with pytest.raises(StorageFailed, match=rf"journal\.jsonl cannot be written: {remedy}"):
                journal.add_irregular(2, 3)
        assert path.read_bytes() == whole and len(journal.entries) == 1
        journal.add_irregular(3, 4)
    assert len(Journal.read(path, "m", "o", replace_other=False).entries) == 2


def test_a_line_that_is_written_in_parts_is_whole(tmp_path, monkeypatch):
    """A disk that is nearly full, or a signal, makes the system write a part."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda to, data: write(to, bytes(data[:3])))
    with (tmp_path / "log").open("ab", buffering=0) as file:
        append_line(file.fileno(), b"0123456789")
        append_line(file.fileno(), b"")
    assert (tmp_path / "log").read_bytes() == b"0123456789\n\n"


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_file_that_is_gone_is_seen(how, tmp_path):
    """Lines would go into a file that nobody can open."""
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        lines = DurableLines(file, path)
        lines.append(b"a")
        assert not lines.is_lost
        if how == "removed":
            path.unlink()
        else:
            path.rename(tmp_path / "other")
        if how == "replaced":
            Path(path).touch()
        assert lines.is_lost


def test_a_removed_journal_is_written_again(tmp_path, monkeypatch):
    """A checkpoint that knows its entries could not be resumed without it."""
    path, journal = tmp_path / "run" / "journal.jsonl", Journal("m", "o")
    path.parent.mkdir()
    with journal.keep_in(path):
        journal.add_irregular(1, 2)
        whole = path.read_bytes()
        path.unlink()
        path.parent.rmdir()
        journal.restore()  # its folder is not there: nothing to do yet
        path.parent.mkdir()
        with monkeypatch.context() as patch:
            refuse(patch, os, "fsync", errno.ENOSPC)
            for _ in range(2):  # for a step, and for the checkpoint at the end of the run
                with pytest.raises(StorageFailed, match="the disk is full"):
                    journal.restore()
        journal.restore()
        assert path.read_bytes() == whole
        journal.add_quarantine("d", 3)
    assert len(Journal.read(path, "m", "o", replace_other=False).entries) == 2
