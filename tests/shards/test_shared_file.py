"""Shared file: others read it where it lies, and memory that nobody has goes back to the system."""

import gc
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from shards.crops.array_pool import ArrayPool
from shards.shared_file import SharedFile

MIB = 1 << 20
READ = """
import sys
from shards.shared_file import FileName
pid, descriptor, inode, place = map(int, sys.argv[1:])
print(*FileName(pid, descriptor, inode).open()[place : place + 3])
"""


def used_bytes(file: SharedFile) -> int:
    return 512 * os.fstat(file.name.descriptor).st_blocks


def test_another_process_reads_an_array_where_it_lies() -> None:
    """A trainer would train on other bytes than a reader of its node wrote."""
    pool = ArrayPool(8 * MIB)
    file = pool.share()
    assert file is not None and pool.share() is file
    before = pool.empty((MIB,))
    array = pool.empty((2, MIB))
    array[1, 5:8] = 7, 8, 9
    assert file.place_of(np.empty(MIB, np.uint8)) is None
    place = file.place_of(array[1, 5:])
    assert place is not None and place >= before.nbytes
    name = file.name
    words = [str(n) for n in (name.pid, name.descriptor, name.inode, place)]
    told = subprocess.run([sys.executable, "-c", READ, *words], capture_output=True, check=True)
    assert told.stdout.split() == [b"7", b"8", b"9"]
    with pytest.raises(OSError, match="not 1"):
        replace(name, inode=1).open()
    with pytest.raises(ValueError, match="read-only"):
        name.open()[0] = 1


def test_memory_of_a_file_returns_to_the_system() -> None:
    """A reader would hold the largest crops that it ever had, or run out of addresses."""
    file = SharedFile(64 * MIB)
    parts = [file.empty(16 * MIB) for _ in range(4)]
    for part in parts:
        assert part is not None
        part[:] = 1
    assert file.empty(1) is None and used_bytes(file) == 64 * MIB
    del part
    for number in (0, 2, 1):
        parts[number] = None
    gc.collect()
    assert used_bytes(file) == 16 * MIB
    whole = file.empty(48 * MIB)
    assert whole is not None and file.place_of(whole) == 0 and not whole[:: 1 << 12].any()
    assert file.empty(1) is None


def test_a_fork_takes_no_memory_from_its_parent() -> None:
    """The end of an array in a child would empty the crops of a reader, or be written over."""
    pool = ArrayPool(8 * MIB)
    assert pool.share() is not None
    array = pool.empty((2 * MIB,))
    array[:] = 5
    child = os.fork()
    if child == 0:
        pool.begin_process()
        del array
        gc.collect()
        pool.empty((2 * MIB,))[:] = 6
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (array == 5).all()
