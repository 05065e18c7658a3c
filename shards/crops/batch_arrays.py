"""Arrays of a batch: the crops of every view lie side by side, as a network takes them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.crops.array_pool import ARRAYS


def batch_arrays(num_rows: int, row_shapes: Iterable[tuple[int, ...]]) -> tuple[NDArray[Any], ...]:
    """Return an array (N, V, S, S, 3) for every shape (V, S, S, 3) of the rows, not filled.

    The memory is that of a contiguous array (V, N, S, S, 3), so `dataloader.tensors` sorts the rows
    of a batch by view without a copy. Rows without a shape are verified images: objects (N,).
    """
    return tuple(
        _crop_array(num_rows, *shape) if shape else np.empty(num_rows, object)
        for shape in row_shapes
    )


def _crop_array(num_rows: int, num_views: int, *pixels: int) -> NDArray[np.uint8]:
    return ARRAYS.empty((num_views, num_rows, *pixels)).swapaxes(0, 1)
