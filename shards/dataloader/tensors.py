"""From uint8 crops to model inputs: copied as bytes, normalised on the device.

Shape letters: N samples, V views of one group, S pixels.
"""

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
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device=device) * 255
    scale = 1 / (torch.tensor(IMAGENET_STD, dtype=torch.float32, device=device) * 255)
    return [_normalise(_move(array, torch.device(device)), mean, scale, dtype) for array in crops]


def _move(array: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Copy the crops of one group to `device`, as (V * N, S, S, 3) uint8.

    On the CPU, an array of `crops.batch_arrays` is used as it is.
    """
    # Arrays from the object store are read-only, which torch warns about.
    pixels = torch.from_numpy(array if array.flags.writeable else array.copy()).transpose(0, 1)
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    else:
        pixels = pixels.to(device)
    return pixels.flatten(0, 1)


def _normalise(
    pixels: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    # Computed in float32, because bfloat16 cannot represent all of 0..255, and rounded at the end.
    # Channels stay last in memory; the permutation changes only the strides.
    return ((pixels - mean) * scale).to(dtype).permute(0, 3, 1, 2)
