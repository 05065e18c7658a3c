"""From uint8 crops to model inputs: copied as bytes, normalised on the device.

Shape letters: N samples, V views of one group, S pixels.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from shards.crops.recipe import IMAGENET_MEAN, IMAGENET_STD
from shards.records import CropArray


def to_tensors(
    crops: Sequence[CropArray],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """Return a normalised tensor (V * N, 3, S, S) for every view group (N, V, S, S, 3) uint8.

    Rows are view-major: all samples of view 0, then all of view 1. The memory format is
    channels-last. Bytes are copied to `device`, a quarter of the size of floats; crops that are
    tensors there are used as they are.
    """
    return [normalise(_move(array, torch.device(device)), dtype) for array in crops]


def normalise(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the tensor (V * N, 3, S, S) that `to_tensors` makes of crops (N, V, S, S, 3) uint8.

    Runs on the device of the crops, and does not wait for it.
    """
    mean, scale = _statistics(pixels.device)
    rows = pixels.transpose(0, 1).flatten(0, 1)
    # Computed in float32, because bfloat16 cannot represent all of 0..255, and rounded at the end.
    # Channels stay last in memory; the permutation changes only the strides.
    return ((rows - mean) * scale).to(dtype).permute(0, 3, 1, 2)


@functools.cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and scale of the channels; once, since a copy to a device waits for it."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device=device) * 255
    scale = 1 / (torch.tensor(IMAGENET_STD, dtype=torch.float32, device=device) * 255)
    return mean, scale


def _move(array: CropArray, device: torch.device) -> torch.Tensor:
    """Copy the crops of one group to `device`, as uint8; those that are there stay."""
    pixels = _as_tensor(array)
    if pixels.is_cuda:
        # Other streams made these crops; their memory must wait for this one before its next use.
        pixels.record_stream(torch.cuda.current_stream(pixels.device))
    elif device.type == "cuda":
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True)


def _as_tensor(array: CropArray) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    if isinstance(array, np.ndarray):
        # Arrays from the object store are read-only, which torch warns about.
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    return from_dlpack(array)
