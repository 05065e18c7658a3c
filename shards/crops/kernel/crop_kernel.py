"""The functions of the crop kernel, for Python. Calls run outside the interpreter lock."""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shards.crops.kernel.compile import LIBRARY, SOURCES, source_digest
from shards.errors import ConfigError

_NO_MEMORY: Final = -1
# Of a row of parameters; `recipe`, which stands above this folder, defines them.
_FLIP, _NUM_PARAMETERS = 4, 13
_POINTER = ctypes.c_void_p
_REMEDY = (
    "run `make kernel` in the folder of the project; without that folder, run `pip install "
    "--force-reinstall --no-deps` with the wheel or the address that streamssl was installed from"
)
# Of the crops of `_prove`, by their definition the same everywhere.
_PROOF: Final = "5ed64cb2c29f8241"
_proven: set[tuple[Path, int]] = set()


class CropKernel:
    """The kernel at one level of vector instructions, with memory that it keeps between calls.

    `level` None is the best of this CPU; 1 is plain C. All levels give the same bits. Not for
    several threads at once. Raises ConfigError if the library is missing, out of date, or gives
    wrong crops on this machine.
    """

    def __init__(self, level: int | None = None, path: Path = SOURCES / LIBRARY) -> None:
        self._library = load_library(path)
        self.level = self._library.streamssl_best_level() if level is None else level
        self._scratch = self._library.streamssl_new_scratch()
        if not self._scratch:
            raise MemoryError("the crop kernel got no memory")
        release = weakref.finalize(self, self._library.streamssl_free_scratch, self._scratch)
        # A daemon thread may still crop when the interpreter exits.
        release.atexit = False
        if (path, self.level) not in _proven:
            _prove(self)
            _proven.add((path, self.level))

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
        Raises MemoryError, and ValueError for what the kernel does not accept; nothing is written
        then.
        """
        num_views = len(sizes)
        for array, dtype, shape in (
            (pixels, np.uint8, (*pixels.shape[:2], 3)),
            (boxes, np.float64, (num_views, 4)),
            (parameters, np.float32, (num_views, _NUM_PARAMETERS)),
            (sizes, np.int32, (num_views,)),
            (places, np.uint64, (num_views,)),
        ):
            assert array.dtype == dtype and array.shape == shape and array.flags.c_contiguous
        height, width = pixels.shape[:2]
        result = self._library.streamssl_crop_views(
            self.level,
            self._scratch,
            pixels.ctypes.data,
            height,
            width,
            boxes.ctypes.data,
            parameters.ctypes.data,
            sizes.ctypes.data,
            places.ctypes.data,
            num_views,
        )
        if result == _NO_MEMORY:
            raise MemoryError(f"no memory for crops of an image of {height} x {width} pixels")
        if result:
            raise ValueError(
                f"level {self.level}, an image of {height} x {width}, boxes {boxes.tolist()}, "
                f"sizes {sizes.tolist()}, parameters {parameters.tolist()}: one of them is not "
                "within the bounds of `kernel.h`"
            )


def levels() -> Sequence[int]:
    """Return the levels that this CPU can run, the best one last."""
    return range(1, 1 + load_library(SOURCES / LIBRARY).streamssl_best_level())


@functools.cache
def load_library(path: Path) -> ctypes.CDLL:
    """Return the library. Raises ConfigError if it is missing or out of date."""
    try:
        library = ctypes.CDLL(str(path))
        library.streamssl_source_digest.restype = ctypes.c_char_p
        built = library.streamssl_source_digest().decode().partition("-")[0]
    except (OSError, AttributeError) as error:
        raise ConfigError(f"the crop kernel cannot be loaded ({error}); {_REMEDY}") from error
    if built != (now := source_digest(path.parent)):
        raise ConfigError(
            f"{path} was compiled from other sources ({built}) than those beside it ({now}); "
            f"{_REMEDY}"
        )
    library.streamssl_new_scratch.restype = _POINTER
    library.streamssl_free_scratch.argtypes = [_POINTER]
    library.streamssl_free_scratch.restype = None
    library.streamssl_crop_views.argtypes = [
        ctypes.c_int, _POINTER, _POINTER, ctypes.c_int32, ctypes.c_int32, _POINTER, _POINTER,
        _POINTER, _POINTER, ctypes.c_int32,
    ]  # fmt: skip
    return library


def _prove(kernel: CropKernel) -> None:
    """Crop a small picture, and raise ConfigError if a bit is wrong.

    Wrong crops would be found by nobody: training goes on with them. Its views take every branch of
    the kernel.
    """
    y, x, channel = np.mgrid[:40, :70, :3]
    pixels = (y * y * 5 + x * 11 + channel * 90 + x * y // 8).astype(np.uint8)
    boxes = np.array([[0, 0, 40, 70], [3, 5, 36, 66], [7.5, 2.25, 30, 9.5], [0, 0, 40, 70]])
    sizes = np.array([27, 50, 19, 1], np.int32)
    rows = np.zeros((4, _NUM_PARAMETERS), np.float32)
    rows[:, _FLIP:] = [
        (1, 5, 1.25, 0.5, 1.5, 0.125, 0, 1.25, 1),
        (0, 16, 0.75, 1, 0.5, -0.375, 0, 0, 1),
        (1, 0, 1, 1.75, 1, 0, 1, 0, 0),
        (0, 0, 1, 1, 1, 0, 0, 0, 0),
    ]
    crops = np.empty(3 * int((sizes * sizes).sum()), np.uint8)
    starts = np.append(0, np.cumsum(3 * sizes * sizes)[:-1])
    kernel.crop(pixels, boxes, rows, sizes, (crops.ctypes.data + starts).astype(np.uint64))
    found = blake2b(crops.tobytes(), digest_size=8).hexdigest()
    if found != _PROOF:
        raise ConfigError(
            f"the crop kernel gives wrong crops on this machine ({found} at level {kernel.level}, "
            f"expected {_PROOF}); {_REMEDY}"
        )
