"""The functions of the crop kernel, for Python. Calls run outside the interpreter lock."""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shards.crops.kernel.compile import LIBRARY, SOURCES, source_digest
from shards.errors import ConfigError

_NO_MEMORY: Final = -1
_POINTER = ctypes.c_void_p
_REMEDY = "run `make setup` in the folder of the project, or install it again with pip"


class CropKernel:
    """The kernel at one level of vector instructions, with memory that it keeps between calls.

    `level` None is the best of this CPU; 1 is plain C. All levels give the same bits. Not for
    several threads at once. Raises ConfigError if the library is missing or out of date.
    """

    def __init__(self, level: int | None = None) -> None:
        self._library = load_library()
        self._level = self._library.streamssl_best_level() if level is None else level
        assert 1 <= self._level <= self._library.streamssl_best_level()
        self._scratch = self._library.streamssl_new_scratch()
        if not self._scratch:
            raise MemoryError("the crop kernel got no memory")
        weakref.finalize(self, self._library.streamssl_free_scratch, self._scratch)

    def crop(
        self,
        pixels: NDArray[np.uint8],
        boxes: NDArray[np.float64],
        parameters: NDArray[np.float32],
        sizes: NDArray[np.int32],
        places: NDArray[np.uint64],
    ) -> None:
        """Write all views of one upright image (H, W, 3).

        `boxes` (V, 4) are in pixels of the image and may end between pixels; `parameters` (V, P)
        as in `recipe`; view v of `sizes` (V,) pixels goes to the address `places` (V,).
        Raises MemoryError, and ValueError for a box outside the image.
        """
        for array in (pixels, boxes, parameters, sizes, places):
            assert array.flags.c_contiguous
        height, width = pixels.shape[:2]
        result = self._library.streamssl_crop_views(
            self._level,
            self._scratch,
            pixels.ctypes.data,
            height,
            width,
            boxes.ctypes.data,
            parameters.ctypes.data,
            sizes.ctypes.data,
            places.ctypes.data,
            len(sizes),
        )
        if result == _NO_MEMORY:
            raise MemoryError(f"no memory for crops of an image of {height} x {width} pixels")
        if result:
            raise ValueError(f"a box of {boxes.tolist()} is not in an image of {height} x {width}")


def levels() -> Sequence[int]:
    """Return the levels that this CPU can run, the best one last."""
    return range(1, 1 + load_library().streamssl_best_level())


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the library. Raises ConfigError if it is missing or out of date."""
    path = SOURCES / LIBRARY
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ConfigError(f"the crop kernel cannot be loaded ({error}); {_REMEDY}") from error
    library.streamssl_source_digest.restype = ctypes.c_char_p
    built, now = library.streamssl_source_digest().decode(), source_digest()
    if built != now:
        raise ConfigError(
            f"the crop kernel was built from other sources ({built}, now {now}); {_REMEDY}"
        )
    library.streamssl_new_scratch.restype = _POINTER
    library.streamssl_free_scratch.argtypes = [_POINTER]
    library.streamssl_free_scratch.restype = None
    library.streamssl_crop_views.argtypes = [
        ctypes.c_int, _POINTER, _POINTER, ctypes.c_int32, ctypes.c_int32, _POINTER, _POINTER, _POINTER,
        _POINTER, ctypes.c_int32,
    ]  # fmt: skip
    return library
