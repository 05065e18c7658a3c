"""Array pool: memory is given again when nobody can see it, and not kept without bound."""

import gc
import threading

import numpy as np
import torch

from shards.crops.array_pool import ArrayPool
from shards.crops.batch_arrays import batch_arrays

MIB = 1 << 20


def test_memory_of_an_array_is_given_again_after_its_last_view() -> None:
    """Crops of a batch would be overwritten while a trainer reads them."""
    pool = ArrayPool(8 * MIB)
    array = pool.empty((2, MIB))
    array[:] = 7
    place = array.ctypes.data
    row = array[1:].reshape(4, -1)[2]
    tensor = torch.from_numpy(row)
    del array, row
    gc.collect()
    other = pool.empty((2, MIB))
    other[:] = 9
    assert other.ctypes.data != place and bool((tensor == 7).all())
    del tensor
    assert pool.empty((2, MIB - 100)).ctypes.data == place


def test_memory_of_another_size_stays_and_at_most_max_bytes_lie_unused() -> None:
    """A process would hold memory for ever that only one large block of crops needed."""
    pool = ArrayPool(8 * MIB)
    arrays = [pool.empty((size * MIB,)) for size in (2, 3, 4)]
    places = [array.ctypes.data for array in arrays]
    while arrays:
        del arrays[0]
    assert pool.num_bytes == 7 * MIB
    kept = {*places[1:]}
    others = [pool.empty((size,)) for size in (MIB + 1, 5 * MIB)]
    assert kept.isdisjoint(array.ctypes.data for array in others)
    del others
    large = pool.empty((9 * MIB,))
    del large
    assert 0 < pool.num_bytes <= 8 * MIB


def test_threads_never_share_the_memory_of_two_arrays() -> None:
    """Readers would write the crops of two chunks over each other."""
    pool, spoiled = ArrayPool(16 * MIB), []

    def work(mark: int) -> None:
        for _ in range(200):
            array = pool.empty((MIB,))
            array[:] = mark
            spoiled.append(bool((array != mark).any()))

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spoiled) == 800 and not any(spoiled)


def test_crops_of_a_view_lie_side_by_side() -> None:
    """The trainer would copy every batch to sort it by view."""
    large, small = batch_arrays(5, [(2, 8, 8, 3), (3, 4, 4, 3)])
    assert large.shape == (5, 2, 8, 8, 3) and small.shape == (5, 3, 4, 4, 3)
    assert all(array.swapaxes(0, 1).flags.c_contiguous for array in (large, small))
    assert large.dtype == np.uint8
