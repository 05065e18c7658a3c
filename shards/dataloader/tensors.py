"""From uint8 crops to the tensors that a model eats: moved as bytes, normalised where they land.

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
    """For every view group (N, V, S, S, 3) uint8 a normalised tensor (V * N, 3, S, S).

    Rows are crop-major: all samples of view 0, then all of view 1. The tensors lie channels-last in
    memory. Bytes are what is copied to `device`, a quarter of what floats would be.
    """
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device=device) * 255
    scale = 1 / (torch.tensor(IMAGENET_STD, dtype=torch.float32, device=device) * 255)
    return [_normalise(_move(array, torch.device(device)), mean, scale, dtype) for array in crops]


def _move(array: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """The crops of one group on `device`, (V * N, S, S, 3) uint8."""
    # What came out of an object store is read-only, which torch warns about; it is only read here.
    pixels = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    else:
        pixels = pixels.to(device)
    return pixels.transpose(0, 1).flatten(0, 1)


def _normalise(
    pixels: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    # Computed in float32, since bfloat16 cannot hold all of 0..255, and rounded once at the end.
    # Channels stay last in memory; only the strides say that they come second.
    return ((pixels - mean) * scale).to(dtype).permute(0, 3, 1, 2)
