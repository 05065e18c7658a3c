"""Loans: nothing is written over crops that a trainer reads in the memory of a reader."""

import subprocess
import sys

from cluster.readers.loans import Loans
from shards.crops.array_pool import ArrayPool

MIB = 1 << 20


def test_lent_memory_is_not_written_over_until_it_is_returned() -> None:
    """A trainer would copy half an image of one sample, and half of another one."""
    pool, loans = ArrayPool(64 * MIB), Loans()
    file = pool.share()
    assert file is not None
    array = pool.empty((MIB,))
    place = file.place_of(array)
    first, second = (loans.begin(1, [(array,), None]) for _ in range(2))
    assert first != second
    del array  # released by Control, or of an older term
    loans.end([first, 12345])
    other = pool.empty((MIB,))
    assert file.place_of(other) != place
    loans.end([second])
    assert file.place_of(pool.empty((MIB,))) == place


def test_loans_of_a_dead_process_end() -> None:
    """Readers would keep the crops of every trainer that was ever killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pool, loans = ArrayPool(8 * MIB), Loans()
    array = pool.empty((MIB,))
    address = array.ctypes.data
    loans.begin(process.pid, [(array,)])
    del array
    loans.end_dead()
    other = pool.empty((MIB,))
    assert other.ctypes.data != address
    process.communicate()
    loans.end_dead()
    assert pool.empty((MIB,)).ctypes.data == address
