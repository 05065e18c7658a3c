"""From uint8 crops to model inputs: copied as bytes, normalised on the device.

Shape letters: N samples, V views of one group, S pixels.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from shards.crops.recipe import IMAGENET_MEAN, IMAGENET_STD


def to_tensors(
    crops: Sequence[NDArray[np.uint8]],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """Return a normalised tensor (V * N, 3, S, S) for every view group (N, V, S, S, 3) uint8.

    Rows are view-major: all samples of view 0, then all of view 1. The memory format is
    channels-last. Bytes are copied to `device`, a quarter of the size of floats.
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


def _move(array: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Copy the crops of one group to `device`, as uint8."""
    # Arrays from the object store are read-only, which torch warns about.
    pixels = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)
