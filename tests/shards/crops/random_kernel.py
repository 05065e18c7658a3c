"""Random arguments of the crop kernel: allowed ones of every kind, and ones it must refuse."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from shards.crops.recipe import FACTOR_STEPS, HUE_STEPS, NUM_PARAMETERS, Parameter
from tests.shards.crops.golden_kernel import KernelCase

_MAX_PIXELS = 1 << 21
# As `kernel.h` has them.
_MAX_FACTOR, _MAX_SIGMA, _MAX_SIZE = 128, 170, 4096


def random_case(rng: np.random.Generator, max_size: int) -> KernelCase:
    """Return one to three views: boxes of any kind, images of one pixel or of a row of 100,000."""
    height, width = _random_shape(rng)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    if rng.random() < 0.2:
        pixels[:] = rng.choice([0, 1, 127, 128, 254, 255])
    num_views = int(rng.integers(1, 4))
    # Half of all sizes are below 24, where rows are shorter than vectors.
    limit = max_size if rng.random() < 0.5 else 24
    sizes = np.exp(rng.uniform(0, np.log(limit + 1), num_views)).astype(np.int32)
    boxes = np.array([_random_box(rng, height, width) for _ in range(num_views)])
    rows = np.array([_random_row(rng) for _ in range(num_views)], np.float32)
    return KernelCase(pixels, boxes, rows, sizes)


def refused_case(rng: np.random.Generator, case: KernelCase) -> KernelCase:
    """Return the case with one argument that is not allowed, or is no number."""
    spoiled = dataclasses.replace(
        case, boxes=case.boxes.copy(), parameters=case.parameters.copy(), sizes=case.sizes.copy()
    )
    view = rng.integers(len(case.sizes))
    height, width = case.pixels.shape[:2]
    kind = rng.integers(4)
    if kind == 0:
        spoiled.sizes[view] = rng.choice([0, -1, _MAX_SIZE + 1, 2**31 - 1, -(2**31)])
    elif kind == 1:
        column = rng.integers(4)
        too_large = (height, width)[column % 2] + 1e-6 if column > 1 else 1e300
        spoiled.boxes[view, column] = rng.choice([np.nan, np.inf, -np.inf, -1e-9, 1e9, too_large])
    elif kind == 2:
        spoiled.boxes[view, 2:] = spoiled.boxes[view, :2]
    else:
        column = rng.integers(Parameter.FLIP, NUM_PARAMETERS)
        most = _MAX_SIGMA if column == Parameter.BLUR else _MAX_FACTOR
        bad = [np.nan, np.inf, -np.inf, -0.51, np.nextafter(np.float32(most), np.float32(1e9))]
        spoiled.parameters[view, column] = rng.choice(bad)
    return spoiled


def _random_shape(rng: np.random.Generator) -> tuple[int, int]:
    height, width = np.exp(rng.uniform(0, np.log(1500), 2)).astype(int).tolist()
    if rng.random() < 0.05:
        side = int(np.exp(rng.uniform(0, np.log(100_000))))
        height, width = (side, height) if rng.random() < 0.5 else (width, side)
    height = min(height, max(1, _MAX_PIXELS // width))
    return height, width


def _random_box(rng: np.random.Generator, height: int, width: int) -> list[float]:
    ends = []
    for side in (height, width):
        kind = rng.integers(5)
        if kind == 0:
            low, high = 0.0, float(side)
        elif kind == 1:  # a pixel, or an eighth of one
            low = float(rng.integers(side)) + rng.integers(8) / 8
            high = low + rng.choice([0.125, 1.0])
        elif kind == 2:  # whole pixels
            low = float(rng.integers(side))
            high = low + 1 + rng.integers(side - int(low))
        elif kind == 3:  # the thinnest box, anywhere, and at the end of the image
            low = float(rng.choice([0.0, rng.uniform(0, side), np.nextafter(side, 0)]))
            high = float(np.nextafter(low, side + 1.0))
        else:
            low, high = sorted(rng.uniform(0, side, 2))
        high = min(high, float(side))
        ends.append((low, high) if low < high else (0.0, float(side)))
    (top, bottom), (left, right) = ends
    return [top, left, bottom, right]


def _random_row(rng: np.random.Generator) -> NDArray[np.float32]:
    row = np.zeros(NUM_PARAMETERS, np.float32)
    row[Parameter.FLIP] = rng.integers(2)
    row[Parameter.ORDER] = rng.integers(24)
    row[Parameter.BRIGHTNESS : Parameter.GREY] = (1, 1, 1, 0)
    if rng.random() < 0.8:
        limit = rng.choice([2, 11, _MAX_FACTOR])
        factors = rng.integers(0, limit * FACTOR_STEPS, 3, endpoint=True) / FACTOR_STEPS
        turn = rng.integers(-HUE_STEPS // 2, HUE_STEPS // 2, endpoint=True) / HUE_STEPS
        changed = np.where(rng.random(4) < 0.7, (*factors, turn), (1, 1, 1, 0))
        row[Parameter.BRIGHTNESS : Parameter.GREY] = changed
    row[Parameter.GREY] = rng.random() < 0.2
    if rng.random() < 0.5:
        row[Parameter.BLUR] = rng.uniform(
            0, rng.choice([0.3, 2, 10, _MAX_SIGMA], p=[0.2, 0.5, 0.2, 0.1])
        )
    row[Parameter.SOLARISE] = rng.random() < 0.3
    return row
