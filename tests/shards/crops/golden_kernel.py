"""Golden crops of the kernel: made pictures, one digest that every level of every CPU must give.

`python tests/shards/crops/golden_kernel.py`, from another folder, checks the installed package; it
needs NumPy only.
"""

import sys
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from shards.crops.kernel.crop_kernel import CropKernel, levels
from shards.crops.recipe import FACTOR_STEPS, HUE_STEPS, NUM_PARAMETERS, Parameter

GOLDEN = "ac7be83674477c8e95aeeedb86eea05e"
_NUM_PICTURES = 40


@dataclass(frozen=True)
class KernelCase:
    """The arguments of one call: V views of a picture."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    parameters: NDArray[np.float32]
    sizes: NDArray[np.int32]


def crops_of(kernel: CropKernel, case: KernelCase) -> list[NDArray[np.uint8]]:
    """Return the views, (S, S, 3) each."""
    views = [np.empty((size, size, 3), np.uint8) for size in case.sizes]
    places = np.array([view.ctypes.data for view in views], np.uint64)
    kernel.crop(case.pixels, case.boxes, case.parameters, case.sizes, places)
    return views


def golden_cases() -> list[KernelCase]:
    """Return pictures and views that are made of whole numbers, by no generator and no file."""
    return [_golden_case(number) for number in range(_NUM_PICTURES)]


def golden_digest(kernel: CropKernel) -> str:
    """Return 32 hex digits over the crops of all golden cases."""
    digest = blake2b(digest_size=16)
    for case in golden_cases():
        for view in crops_of(kernel, case):
            digest.update(view.tobytes())
    return digest.hexdigest()


def _golden_case(number: int) -> KernelCase:
    height, width = 12 + number * 37 % 181, 9 + number * 53 % 211
    y, x, channel = np.mgrid[:height, :width, :3]
    waves = y * (3 + number) + x * (5 + 2 * number) + channel * 60 + y * x * (number % 7) // 16
    pixels = (waves ^ (y // 8 + x // 8) % 2 * 37).astype(np.uint8)
    # A multiplicative hash gives every argument a number of its own.
    count = iter(range(1000 * number, 1000 * number + 1000))

    def below(limit: int) -> int:
        return (next(count) * 2_654_435_761 >> 9) % limit

    boxes, rows, sizes = [], [], []
    for view in range(3):
        top, left = below(height), below(width)
        bottom, right = top + 1 + below(height - top), left + 1 + below(width - left)
        eighths = below(8) / 8 if view == 2 else 0.0
        boxes.append(
            (0.0, 0.0, height, width) if view == 0 else (top + eighths, left, bottom, right)
        )
        factors = [below(2 * FACTOR_STEPS) / FACTOR_STEPS for _ in range(3)]
        hue = (below(HUE_STEPS) - HUE_STEPS // 2) / HUE_STEPS
        row = np.zeros(NUM_PARAMETERS, np.float32)
        row[Parameter.FLIP], row[Parameter.ORDER] = below(2), below(24)
        row[Parameter.BRIGHTNESS : Parameter.GREY] = (1, 1, 1, 0)
        if below(4):
            row[Parameter.BRIGHTNESS : Parameter.GREY] = (*factors, hue)
        row[Parameter.GREY], row[Parameter.BLUR] = below(5) == 0, below(2) * below(24) / 8
        row[Parameter.SOLARISE] = below(3) == 0
        rows.append(row)
        sizes.append(1 + below((8, 40, 150)[view]))
    return KernelCase(pixels, np.array(boxes), np.array(rows), np.array(sizes, np.int32))


if __name__ == "__main__":
    found = {level: golden_digest(CropKernel(level)) for level in levels()}
    print(f"golden crops of the kernel: {found}")
    sys.exit(0 if set(found.values()) == {GOLDEN} else f"expected {GOLDEN} at every level")
