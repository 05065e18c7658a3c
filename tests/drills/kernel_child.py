"""Child process that gives random arguments to the crop kernel, in memory that ends where it must.

Every array lies before, or behind, a page that may not be touched: one byte too many ends the
process. The case in work stands in the file of marks, so that the parent can name it:

    python -m tests.drills.kernel_child LIBRARY MARKS (SEED FIRST COUNT MAX_SIZE | beyond)
"""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.crops.kernel.crop_kernel import CropKernel, levels
from tests.shards.crops.golden_kernel import KernelCase, crops_of
from tests.shards.crops.random_kernel import random_case, refused_case

_LIBC = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE
_NO_ACCESS = 0
_PATTERN = 0x5A


def guarded(array: NDArray[np.generic], *, at_end: bool) -> NDArray[np.generic]:
    """Return a copy that ends at a page without access, or begins behind one."""
    room = -(-array.nbytes // _PAGE) * _PAGE
    memory = mmap.mmap(-1, room + 2 * _PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + _PAGE + room):
        if _LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), _NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = _PAGE + (room - array.nbytes if at_end else 0)
    whole = np.frombuffer(memory, np.uint8)
    whole[_PAGE : _PAGE + room] = _PATTERN
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[:] = array
    return copy


def slack_of(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return the bytes of its pages that are not the array's."""
    memory = array
    while isinstance(memory, np.ndarray):
        memory = memory.base
    whole = np.frombuffer(memory, np.uint8)[_PAGE:-_PAGE]
    offset = array.ctypes.data - whole.ctypes.data
    return np.concatenate([whole[:offset], whole[offset + array.nbytes :]])


def guarded_case(case: KernelCase, rng: np.random.Generator) -> KernelCase:
    """Return the case with guarded arrays."""
    arrays = (case.pixels, case.boxes, case.parameters, case.sizes)
    return KernelCase(*(guarded(array, at_end=rng.random() < 0.7) for array in arrays))


def guarded_crops(
    kernel: CropKernel, case: KernelCase, rng: np.random.Generator
) -> list[NDArray[np.uint8]]:
    """Return the views of a guarded case; a byte written beside one is an AssertionError."""
    views = [
        guarded(np.zeros((size, size, 3), np.uint8), at_end=rng.random() < 0.7)
        for size in np.clip(case.sizes, 1, 64 if case.sizes.max() > 4096 else 4096)
    ]
    places = guarded(np.array([view.ctypes.data for view in views], np.uint64), at_end=True)
    kernel.crop(case.pixels, case.boxes, case.parameters, case.sizes, places)
    for view in views:
        assert (slack_of(view) == _PATTERN).all(), "bytes beside a crop were written"
    return views


def described(case: KernelCase) -> str:
    """Return everything but the pixels."""
    return (
        f"an image of {case.pixels.shape[:2]}, sizes {case.sizes.tolist()}, "
        f"boxes {case.boxes.tolist()}, parameters {case.parameters.tolist()}"
    )


def run(library: Path, seed: int, cases: range, max_size: int, marks: int) -> None:
    """Compare the crops of `library` at every level with those of the shipped one in plain C."""
    os.pwrite(marks, b"the proof of the library", 0)
    plain = CropKernel(1)
    kernels = [CropKernel(level, library) for level in levels()]
    for number in cases:
        rng = np.random.default_rng([seed, number])
        case = guarded_case(random_case(rng, max_size), rng)
        text = f"seed {seed}, case {number}: {described(case)}"
        os.pwrite(marks, text.encode().ljust(4096), 0)
        expected = crops_of(plain, case)
        for kernel in kernels:
            for view, same in zip(guarded_crops(kernel, case, rng), expected, strict=True):
                assert (view == same).all(), f"level {kernel.level} has other bits"
        refused = guarded_case(refused_case(rng, case), rng)
        os.pwrite(
            marks, f"seed {seed}, case {number}: {described(refused)}".encode().ljust(4096), 0
        )
        try:
            guarded_crops(kernels[number % len(kernels)], refused, rng)
        except ValueError:
            continue
        raise AssertionError("arguments that are not allowed were accepted")


def read_beyond(library: Path) -> None:
    """Claim that an image has a row more than it has: the process must not survive that."""
    pixels = guarded(np.zeros((5, 50, 3), np.uint8), at_end=True)
    longer = np.lib.stride_tricks.as_strided(pixels, (6, 50, 3))
    row = np.zeros((1, 13), np.float32)
    box = np.array([[0.0, 0.0, 6.0, 50.0]])
    crops_of(CropKernel(None, library), KernelCase(longer, box, row, np.array([4], np.int32)))


if __name__ == "__main__":
    library, marks, *words = sys.argv[1:]
    if words == ["beyond"]:
        read_beyond(Path(library))
    else:
        seed, first, count, max_size = map(int, words)
        descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT, 0o600)
        run(Path(library), seed, range(first, first + count), max_size, descriptor)
