"""Arrays of a batch: the crops of every view lie side by side, as a network takes them."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shards.crops.array_pool import ARRAYS


def batch_arrays(
    num_rows: int, row_shapes: Iterable[tuple[int, ...]]
) -> tuple[NDArray[np.uint8], ...]:
    """Return an array (N, V, S, S, 3) for every shape (V, S, S, 3) of the rows, not filled.

    The memory is that of a contiguous array (V, N, S, S, 3), so `dataloader.tensors` sorts the rows
    of a batch by view without a copy.
    """
    return tuple(
        ARRAYS.empty((views, num_rows, *pixels)).swapaxes(0, 1) for views, *pixels in row_shapes
    )
