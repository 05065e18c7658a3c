"""View tables: parameters of views as whole numbers, for kernels that finish many views at once.

The numbers are those that the crop kernel in C derives from the same parameters, so that a kernel
for another device can give the same bits. Shape letters: M views, K columns, R + 1 weights.
"""

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.crops.recipe import (
    COLOUR_OPERATIONS,
    FACTOR_STEPS,
    HUE_STEPS,
    ORDERS,
    Parameter,
)


class Column(IntEnum):
    """The columns of a view table. Operations and their amounts stand in the order of execution."""

    OPERATION = 0  # four columns: the index in `COLOUR_OPERATIONS`
    AMOUNT = 4  # four columns: the factor in 1 / FACTOR_STEPS, or the turn in 1 / HUE_STEPS
    CONTRAST_PLACE = 8  # operations before the contrast; `NO_CONTRAST` if it changes nothing
    GREY = 9  # 0 or 1, as the five below
    SOLARISE = 10
    TRANSPOSE = 11  # the turn from the stored to the upright view, and the mirror of the view
    FLIP_ROWS = 12
    FLIP_COLUMNS = 13
    RADIUS = 14  # of the blur; 0 is no blur
    LOST = 15  # what the truncations of one pass of the blur take
    IMAGE = 16  # the row of the batch that the view belongs to


NUM_COLUMNS: Final = Column.IMAGE + 1
NO_CONTRAST: Final = len(COLOUR_OPERATIONS)

_MAX_SIGMA, _MAX_FACTOR = 170.0, 128.0
_ONE = 65536
_WIDE_RADIUS, _WIDE_LOSS = 250, 126


class ViewTable(NamedTuple):
    """`rows` (M, K) int32, and `weights` (M, R + 1) int32 of the blur: of a pixel itself, then of
    both pixels at each distance."""

    rows: NDArray[np.int32]
    weights: NDArray[np.int32]


def view_table(
    parameters: NDArray[np.float32], turns: NDArray[np.bool_], images: NDArray[np.int64]
) -> ViewTable:
    """Return the table of the views of N images, M = N * V.

    `parameters` (N, V, P) as in `recipe`; `turns` (N, 3): transpose, then flip rows, then flip
    columns, which makes a stored image upright; `images` (N,): their rows in the batch.
    """
    num_views = parameters.shape[1]
    given = parameters.reshape(-1, parameters.shape[-1])
    turned = np.repeat(turns, num_views, axis=0)
    orders = given[:, Parameter.ORDER].astype(np.int64)
    operations = np.array(ORDERS, np.int64)[orders]
    amounts = np.take_along_axis(_in_steps(given), operations, axis=1)
    places = (operations == Parameter.CONTRAST).argmax(axis=1)
    idle = given[:, Parameter.CONTRAST] == 1
    radii, weights = _gaussians(given[:, Parameter.BLUR])
    rows = np.zeros((len(given), NUM_COLUMNS), np.int32)
    rows[:, Column.OPERATION : Column.AMOUNT] = operations - COLOUR_OPERATIONS[0]
    rows[:, Column.AMOUNT : Column.CONTRAST_PLACE] = amounts
    rows[:, Column.CONTRAST_PLACE] = np.where(idle, NO_CONTRAST, places)
    rows[:, Column.GREY] = given[:, Parameter.GREY] > 0
    rows[:, Column.SOLARISE] = given[:, Parameter.SOLARISE] > 0
    rows[:, Column.TRANSPOSE] = turned[:, 0]
    rows[:, Column.FLIP_ROWS] = turned[:, 1]
    rows[:, Column.FLIP_COLUMNS] = turned[:, 2] != (given[:, Parameter.FLIP] > 0)
    rows[:, Column.RADIUS] = radii
    rows[:, Column.LOST] = np.where(radii < _WIDE_RADIUS, radii // 2 + 1, _WIDE_LOSS)
    rows[:, Column.IMAGE] = np.repeat(images, num_views)
    return ViewTable(rows, weights)


def _in_steps(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return rows (M, P) whose colour operations are whole steps."""
    amounts = rows.astype(np.float64)
    factors = slice(Parameter.BRIGHTNESS, Parameter.HUE)
    amounts[:, factors] = np.clip(amounts[:, factors], 0.0, _MAX_FACTOR) * FACTOR_STEPS
    amounts[:, Parameter.HUE] = np.clip(amounts[:, Parameter.HUE], -0.5, 0.5) * HUE_STEPS
    return np.rint(amounts).astype(np.int64)


def _gaussians(deviations: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return radii (M,) and weights (M, R + 1) in 1 / 65536, by the steps of `blur.h`."""
    sigma = np.minimum(np.maximum(deviations.astype(np.float64), 0.0), _MAX_SIGMA)
    radii = np.ceil(3.0 * sigma).astype(np.int64)
    distance = np.arange(radii.max(initial=0) + 1, dtype=np.float64)
    square = np.where(sigma > 0, sigma * sigma, 1.0)[:, None]
    shares = _exponential(-0.5 * distance * distance / square)
    shares[distance > radii[:, None]] = 0.0
    shares[:, 0] = 0.5
    total = np.cumsum(shares, axis=1)[:, -1:]  # added one after the other, as in C
    weights = (shares * _ONE / total + 0.5).astype(np.int64)
    weights[:, 0] = np.minimum(_ONE - weights[:, 1:].sum(axis=1), _ONE - 1)
    return radii, weights.astype(np.int32)


def _exponential(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return e^x, x <= 0, by + - * / alone: libraries differ in its last bit."""
    y = np.maximum(x, -50.0) / 256.0
    result = np.ones_like(y)
    for term in range(6, 0, -1):
        result = 1.0 + y / term * result
    for _ in range(8):
        result = result * result
    return np.where(x < -50.0, 0.0, result)
