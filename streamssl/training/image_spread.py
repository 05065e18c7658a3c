"""Image spread: do the images of a batch differ, whatever crops of them show?

Images that are all alike, such as blank ones or copies of one image, leave nothing to learn: every
method then ends at the loss of features without information.

Shape letters: B samples, T values of tone, S pixels.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Final

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.crops.recipe import IMAGENET_STD
from streamssl.distributed.collectives import all_gather_rows, world_size

NAME: Final = "image_spread"
# Fewer samples show no correlation.
_MIN_ROWS = 8
_MAX_ROWS = 512
# Crops of copies of one image correlate as little as those of any two images: 0 on average. Noise
# that is smooth over a quarter of its image, in SwAV's crops, has 0.08; photographs have more.
LIMIT: Final = 0.03
# Means are taken over this many checks, at least: a single one is off by a tenth in small batches.
WINDOW, MIN_CHECKS = 30, 5
# One grey level of 256, in the normalised crops.
_ONE_LEVEL: Final = 1 / (255 * IMAGENET_STD[0])
# Crops without any structure show one colour, so that chance correlates them.
_SURE: Final = 0.3


@torch.no_grad()
def image_spread(
    views: Sequence[Tensor], num_rows: int, group: ProcessGroup | None = None
) -> Tensor | None:
    """Return the share of the differences between crops that comes from their images, up to 1.

    It is the correlation of the colours of two crops of an image over the images of all ranks, in
    the quarters of a crop; by chance it may be below 0. None for fewer than two crops, or too few
    samples. `views` are those of a step, with `num_rows` rows for each view, view-major.
    """
    crops = [rows for rows_of_size in views for rows in rows_of_size.split(num_rows)][:2]
    if len(crops) < 2 or num_rows * world_size(group) < _MIN_ROWS:
        return None
    crops = [rows[:_MAX_ROWS].float() for rows in crops]
    described = [part for rows in crops for part in (_tones(rows), _structure(rows))]
    all_rows = all_gather_rows(torch.cat(described, dim=1), group)[:_MAX_ROWS]
    one_BT, structure_one, two_BT, structure_two = all_rows.split([12, 1, 12, 1], dim=1)
    one_BT, two_BT = one_BT - one_BT.mean(dim=0), two_BT - two_BT.mean(dim=0)
    variance = (one_BT.square().mean() + two_BT.square().mean()) / 2
    share = (one_BT * two_BT).mean() / variance.clamp(min=_ONE_LEVEL**2)
    structure = torch.maximum(structure_one.mean(), structure_two.mean())
    is_plain = (structure < _ONE_LEVEL) & (share < _SURE)
    is_equal = variance < _ONE_LEVEL**2
    return torch.where(is_plain | is_equal, torch.zeros_like(share), share)


def _tones(rows_B3SS: Tensor) -> Tensor:
    """Return the mean colours of the quarters of each crop, (B, 12)."""
    return F.adaptive_avg_pool2d(rows_B3SS, 2).flatten(1)


def _structure(rows_B3SS: Tensor) -> Tensor:
    """Return the deviation of the pixels within each crop, (B, 1)."""
    return rows_B3SS.std(dim=(2, 3)).mean(dim=1, keepdim=True)


def are_alike(spreads: Sequence[float]) -> bool:
    """Return True if these readings of several checks say that all images are alike."""
    return len(spreads) >= MIN_CHECKS and fmean(spreads) < LIMIT


def alike_cause(spreads: Sequence[float]) -> str:
    """Return the cause in words, with a remedy."""
    return (
        f"the images look all alike: {NAME} is {fmean(spreads):.2g}, below {LIMIT:g}; look at them "
        "with `streamssl shards view DATA --out images.html`, and name others with --data or "
        "--image-member, and a new --out"
    )
