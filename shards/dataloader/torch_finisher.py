"""The finisher of views on a GPU: tensors of torch, and the kernels of `view_kernel`.

The crops never leave the device: they enter as the library of the engine offers them by DLPack, and
leave as tensors. Several views share a launch, so a batch takes four for each view group.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from shards.crops.recipe import NUM_PARAMETERS, CropRecipe, ViewGroup
from shards.crops.view_finisher import ResizedViews
from shards.crops.view_table import view_table
from shards.dataloader import view_kernel
from shards.errors import ConfigError
from shards.images.decode import ORIENTATION_STEPS

_BLOCK: Final = 1024
# The kernels have whole numbers only, so there is nothing to fuse; Triton warns unless it is told.
_OPTIONS: Final[dict[str, Any]] = {"BLOCK": _BLOCK, "enable_fp_fusion": False}


class TorchFinisher:
    """Finishes views on `device`, on a stream of its own. Create it in the thread that uses it.

    Any other device than a GPU needs the interpreter of Triton. Raises ConfigError if Triton cannot
    compile the kernels.
    """

    def __init__(self, recipe: CropRecipe, device: torch.device | str = "cuda") -> None:
        self._recipe = recipe
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None
        if on_gpu:
            self._compile()

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        return "cpu" if self._stream is None else "gpu"

    @property
    def stream(self) -> int | None:
        return None if self._stream is None else int(self._stream.cuda_stream)

    def allocate(self, num_images: int) -> tuple[Tensor, ...]:
        # Views lie side by side in memory, as a network takes them.
        with self._on_stream():
            return tuple(
                self._empty((group.num_views, num_images, group.size, group.size, 3)).transpose(
                    0, 1
                )
                for group in self._recipe.groups
            )

    def finish(self, views: ResizedViews, out: tuple[Any, ...]) -> None:
        turns = np.array([ORIENTATION_STEPS[turn] for turn in views.orientations], np.bool_)
        first = 0
        with self._on_stream():
            for group, resized, crops in zip(self._recipe.groups, views.groups, out, strict=True):
                parameters = views.parameters[:, first : first + group.num_views]
                table = view_table(parameters, turns, views.images)
                pixels = from_dlpack(resized)
                self._launch(
                    group, pixels, self._sent(table.rows), self._sent(table.weights), crops
                )
                first += group.num_views
        self._settle()

    def place(self, crops: Sequence[NDArray[np.uint8]], image: int, out: tuple[Any, ...]) -> None:
        with self._on_stream():
            for array, cropped in zip(out, crops, strict=True):
                array[image].copy_(torch.from_numpy(cropped[0]))
        self._settle()

    def select(self, out: tuple[Any, ...], images: NDArray[np.int64]) -> tuple[Tensor, ...]:
        with self._on_stream():
            rows = torch.from_numpy(images).to(self._device)
            selected = tuple(array.transpose(0, 1)[:, rows].transpose(0, 1) for array in out)
        self._settle()
        return selected

    def _compile(self) -> None:
        """Finish black views of one image: Triton compiles a kernel when it is first used."""
        shape = 1, self._recipe.num_views, NUM_PARAMETERS
        out = self.allocate(1)
        views = ResizedViews(
            groups=[torch.zeros_like(array) for array in out],
            parameters=np.zeros(shape, np.float32),
            orientations=[1],
            images=np.zeros(1, np.int64),
        )
        try:
            self.finish(views, out)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"Triton cannot compile the kernels of crops ({' '.join(str(error).split())}); it "
                "needs a C compiler: install gcc, or crop on CPUs with --engine native"
            ) from error

    def _launch(
        self, group: ViewGroup, pixels: Tensor, table: Tensor, weights: Tensor, out: Tensor
    ) -> None:
        size, num_views = group.size, len(table)
        sums = torch.zeros(num_views, dtype=torch.int64, device=self._device)
        coloured = self._empty((num_views, size, size, 3))
        by_pixel = (num_views, triton.cdiv(size * size, _BLOCK))
        if group.jitter is not None:
            view_kernel.add_greys[by_pixel](pixels, table, sums, SIZE=size, **_OPTIONS)
        # Strides are those of `allocate`.
        num_images = len(out)
        view_kernel.colour[by_pixel](
            pixels, table, sums, coloured, out, group.num_views, num_images, SIZE=size, **_OPTIONS
        )
        if group.blur_probability == 0:
            return
        rows = self._empty((num_views, size, size, 3), torch.int16)
        by_byte = (num_views, triton.cdiv(size * size * 3, _BLOCK))
        width = weights.shape[1]
        view_kernel.blur_rows[by_byte](coloured, table, weights, rows, width, SIZE=size, **_OPTIONS)
        view_kernel.blur_columns[by_byte](
            rows, table, weights, out, group.num_views, num_images, width, SIZE=size, **_OPTIONS
        )

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _settle(self) -> None:
        """Wait, so that others may use the crops on any stream, and DALI its buffers again."""
        if self._stream is not None:
            self._stream.synchronize()

    def _sent(self, array: NDArray[np.int32]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._stream is not None:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)
