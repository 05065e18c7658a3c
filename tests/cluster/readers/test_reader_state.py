"""Reader state: what a reader sends is what it holds, with as few copies as pay."""

import numpy as np

from cluster.readers.reader_state import ReaderState

LARGE, SMALL = (2, 128, 128, 3), (1, 8, 8, 3)


def test_large_rows_are_sent_from_where_they_lie() -> None:
    """Every crop would be copied once more before the object store takes it."""
    empty = tuple(np.empty((0, *shape), np.uint8) for shape in (LARGE, SMALL))
    rng = np.random.default_rng(0)
    held = [
        tuple(rng.integers(0, 256, (5, *shape), np.uint8) for shape in (LARGE, SMALL))
        for _ in range(2)
    ]
    wanted = [(7, np.array([4, 0])), (8, np.array([1])), (9, np.array([3]))]
    rows = ReaderState("r", 1, empty).gather([held[0], None, held[1]], wanted)
    large, small = rows.crops
    assert rows.missing == (8,) and rows.num_bytes == 3 * (2 * 128 * 128 * 3 + 8 * 8 * 3)
    for group, arrived in enumerate((large, small)):
        expected = [held[0][group][4], held[0][group][0], held[1][group][3]]
        assert all(map(np.array_equal, arrived, expected))
    assert isinstance(large, tuple)
    assert all(
        np.shares_memory(row, held[place][0]) for row, place in zip(large, (0, 0, 1), strict=True)
    )
    assert isinstance(small, np.ndarray) and small.flags.c_contiguous
