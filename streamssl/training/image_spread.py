"""Image spread: do the images of a batch differ, whatever crops of them show?

Images that are all alike, such as blank ones or copies of one image, leave nothing to learn: every
method then ends at the loss of features without information.

Shape letters: B samples of this rank, T values of tone, S pixels.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from shards.crops.recipe import IMAGENET_STD

NAME: Final = "image_spread"
# Fewer samples show no correlation.
_MIN_ROWS = 8
_MAX_ROWS = 512
# Two crops of copies of one image correlate as little as those of any two images: 0, give or take
# one over the root of the batch.
LIMIT: Final = 0.1
# Variance of one grey level of 256, in the normalised crops.
_ONE_LEVEL: Final = (1 / (255 * IMAGENET_STD[0])) ** 2


@torch.no_grad()
def image_spread(views: Sequence[Tensor], num_rows: int) -> Tensor | None:
    """Return the share of the differences between crops that comes from their images, 0 to 1.

    It is the correlation of the colours of two crops of an image over the images of this rank, in
    the quarters of a crop. None for fewer than two crops, or too few samples. `views` are those of
    a step, with `num_rows` rows for each view, view-major.
    """
    crops = [rows for group in views for rows in group.split(num_rows)][:2]
    if len(crops) < 2 or num_rows < _MIN_ROWS:
        return None
    one_BT, two_BT = (_tones(rows[:_MAX_ROWS]) for rows in crops)
    one_BT, two_BT = one_BT - one_BT.mean(dim=0), two_BT - two_BT.mean(dim=0)
    variance = (one_BT.square().mean() + two_BT.square().mean()) / 2
    shared = (one_BT * two_BT).mean()
    share = (shared / variance.clamp(min=_ONE_LEVEL)).clamp(0, 1)
    return torch.where(variance > _ONE_LEVEL, share, torch.zeros_like(share))


def _tones(rows_B3SS: Tensor) -> Tensor:
    """Return the mean colours of the quarters of each crop, (B, 12)."""
    return F.adaptive_avg_pool2d(rows_B3SS.float(), 2).flatten(1)


def are_alike(spreads: Sequence[float]) -> bool:
    """Return True if these readings of several checks say that all images are alike."""
    return bool(spreads) and fmean(spreads) < LIMIT


def alike_cause(spreads: Sequence[float]) -> str:
    """Return the cause in words, with a remedy."""
    return (
        f"the images are all alike: {NAME} is {fmean(spreads):.2g}, below {LIMIT:g}; look at them "
        "with `streamssl shards view DATA --out images.html`, and name others with --data or "
        "--image-member, and a new --out"
    )
