"""The crop kernel: one set of bits, the crops of the reference, and refused arguments."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.crops.kernel.crop_kernel import CropKernel, levels
from shards.crops.recipe import FACTOR_STEPS, HUE_STEPS, NUM_PARAMETERS, ORDERS, Parameter
from tests import reference_crops
from tests.shards.crops.golden_kernel import GOLDEN, KernelCase, crops_of, golden_digest
from tests.shards.crops.made import made_pixels
from tests.shards.crops.random_kernel import random_case, refused_case

KERNEL = CropKernel()


def row_of(**columns):
    """Return a row of parameters that changes nothing but these."""
    row = np.zeros(NUM_PARAMETERS, np.float32)
    row[Parameter.BRIGHTNESS : Parameter.HUE] = 1
    for name, value in columns.items():
        row[Parameter[name]] = value
    return row


def crop(pixels, size, row, box=None):
    """Return one view of the best level, of the whole picture unless a box is given."""
    box = (0, 0, *pixels.shape[:2]) if box is None else box
    arguments = np.array([box], np.float64), row[None], np.array([size], np.int32)
    return crops_of(KERNEL, KernelCase(pixels, *arguments))[0]


def reference(pixels, size, row):
    row = row.copy()
    row[: Parameter.FLIP] = (0, 0, 1, 1)
    return reference_crops.reference_crop(pixels, row, size)


def differences(pairs):
    """Return the distances of crops and references, in grey levels, as one array."""
    return np.concatenate([np.abs(one - other).ravel() for one, other in pairs])


@pytest.mark.parametrize("level", levels())
def test_every_level_gives_the_golden_crops(level):
    """A run could not go on on another machine; a change of the C code would pass unseen."""
    assert golden_digest(CropKernel(level)) == GOLDEN


def test_all_levels_give_the_same_bits():
    """The golden crops have few kinds of boxes, sizes and amounts."""
    kernels = [CropKernel(level) for level in levels()]
    for number in range(200):
        case = random_case(np.random.default_rng([1, number]), max_size=150)
        first, *others = [crops_of(kernel, case) for kernel in kernels]
        for other in others:
            for view, same in zip(first, other, strict=True):
                np.testing.assert_array_equal(view, same, f"case {number}")


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_colours_are_exact(order):
    """A box of the size of its crop is not resized: what is left is whole numbers."""
    rng = np.random.default_rng(order)
    for size in (37, 96):
        pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
        pixels[:9] = rng.choice([0, 255], (9, size, 3))
        for strength in (2, 2, 11):
            factors = rng.integers(0, strength * FACTOR_STEPS, 3) / FACTOR_STEPS
            row = row_of(
                FLIP=rng.integers(2),
                ORDER=order,
                BRIGHTNESS=factors[0],
                CONTRAST=factors[1],
                SATURATION=factors[2],
                HUE=rng.integers(-HUE_STEPS // 2, HUE_STEPS // 2 + 1) / HUE_STEPS,
                GREY=rng.integers(4) == 0,
                SOLARISE=rng.integers(2),
            )
            np.testing.assert_array_equal(crop(pixels, size, row), reference(pixels, size, row))


# Weights have 16 bits, and the upper half of each product is kept; what this drops is put back on
# average. So a value differs by one if it lies within some 1/256 of a half, and the more often, the
# more products it is a sum of. In nothing else does the kernel differ from float64.
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        *((1, 1, 16), (7, 5, 40), (90, 61, 96), (224, 224, 96), (500, 333, 224), (150, 4000, 64)),
        *((700, 900, 7), (33, 3300, 1), (6000, 40, 3), (20_000, 2, 1)),
    ],
)
def test_resizing_is_that_of_the_reference(height, width, size):
    """Crops would be blurred, shifted or darker; the last ones are reduced 100 times and more."""
    pixels = made_pixels(size, height, width)
    row = row_of()
    found = np.abs(crop(pixels, size, row) - reference(pixels, size, row))
    assert found.max() <= 1
    assert (found > 0).sum() <= max(1, 0.008 * found.size)


@pytest.mark.parametrize("sigma", [0.1, 0.24, 0.26, 0.5, 1, 2, 5, 20, 100])
def test_blur_is_that_of_the_reference(sigma):
    """A wrong blur kernel is known to cost six points of accuracy."""
    row = row_of(BLUR=sigma)
    pictures = [made_pixels(size, size, size) for size in (2, 9, 31, 96, 161)]
    found = differences(
        (crop(one, len(one), row), reference(one, len(one), row)) for one in pictures
    )
    assert found.max() <= 1
    assert (found > 0).mean() < (0.008 if sigma <= 10 else 0.025)


def test_whole_recipes_are_those_of_the_reference():
    """Operations could be exact alone, and wrong one after the other."""
    pairs = []
    for number in range(24):
        rng = np.random.default_rng([2, number])
        height, width, size = rng.integers(10, 200, 3)
        pixels = made_pixels(number, height, width)
        factors = rng.integers(819, 7373, 3) / FACTOR_STEPS
        row = row_of(
            FLIP=number % 2,
            ORDER=number % 24,
            BRIGHTNESS=factors[0],
            CONTRAST=factors[1],
            SATURATION=factors[2],
            HUE=rng.integers(-38, 39) / HUE_STEPS,
            GREY=number % 5 == 0,
            BLUR=number % 3 * rng.uniform(0.1, 2),
            SOLARISE=number % 4 == 0,
        )
        pairs.append((crop(pixels, size, row), reference(pixels, size, row)))
    found = differences(pairs)
    assert found.mean() < 0.01
    assert (found > 0).mean() < 0.006


def test_small_crops_are_those_of_the_reference():
    """Vectors are longer than their rows."""
    rows = (row_of(), row_of(CONTRAST=0.5, BLUR=1.5, FLIP=1), row_of(BLUR=9, SOLARISE=1))
    pairs = [
        (crop(pixels, size, row), reference(pixels, size, row))
        for size in range(1, 17)
        for pixels in (made_pixels(size, 40, 55), made_pixels(size, 5, 3))
        for row in rows
    ]
    found = differences(pairs)
    assert found.max() <= 1
    assert (found > 0).mean() < 0.008


def test_what_is_not_allowed_is_refused_and_nothing_is_written():
    """A number that is none would become an address."""
    for number in range(400):
        rng = np.random.default_rng([3, number])
        case = refused_case(rng, random_case(rng, max_size=40))
        views = [np.full((40, 40, 3), 77, np.uint8) for _ in case.sizes]
        places = np.array([view.ctypes.data for view in views], np.uint64)
        with pytest.raises(ValueError, match="within the bounds"):
            KERNEL.crop(case.pixels, case.boxes, case.parameters, case.sizes, places)
        assert all((view == 77).all() for view in views), number


EXIT_WHILE_CROPPING = """
import threading
import numpy as np
from shards.crops.kernel.crop_kernel import CropKernel

pixels, crop = np.zeros((900, 900, 3), np.uint8), np.empty((900, 900, 3), np.uint8)
box, size = np.array([[0, 0, 900, 900]], np.float64), np.array([900], np.int32)
row = np.array([[0, 0, 1, 1, 0, 0, 0.5, 0.5, 1, 0, 0, 2, 0]], np.float32)
place = np.array([crop.ctypes.data], np.uint64)
cropped = threading.Event()

def work():
    kernel = CropKernel()
    while True:
        kernel.crop(pixels, box, row, size, place)
        cropped.set()

threading.Thread(target=work, daemon=True).start()
cropped.wait()
"""


def test_a_process_may_end_while_a_thread_crops():
    """A reader that leaves would end with a segmentation fault: its memory was freed in use."""
    for _ in range(3):
        command = [sys.executable, "-c", EXIT_WHILE_CROPPING]
        done = subprocess.run(command, cwd=Path(__file__).parents[3], check=False)
        assert done.returncode == 0
