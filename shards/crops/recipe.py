"""Crop recipes: the views of a sample, and their random parameters as one array.

A `CropRecipe` gives the distributions. `draw` draws the parameters, as a pure function of (seed,
epoch, sample id, size). An engine (`native`, `dali`) executes them. Executing one row of parameters
on an image of H x W pixels, EXIF orientation applied, means:

 1. crop the whole pixels [y0, y1) x [x0, x1), exactly as `pixel_boxes` returns them;
 2. resize to S x S: bilinear, antialiased (a triangle filter as wide as the reduction), half-pixel
    centres, rounded, as Pillow and torchvision do;
 3. mirror left to right if FLIP;
 4. apply the colour operations in the order `ORDERS[ORDER]`. Each gives whole grey levels in
    [0, 255]; the first three drop the fraction, as torchvision and Pillow do, hue rounds. Factors
    are multiples of 1 / FACTOR_STEPS and turns of 1 / HUE_STEPS, so that all is exact in integers:
      brightness   f x
      contrast     m + f (x - m),  m = the image's mean grey at this point, rounded
      saturation   g + f (x - g),  g = the pixel's grey, rounded
      hue          the HSV hexcone turned by HUE turns
    Grey is 0.299 R + 0.587 G + 0.114 B.
 5. replace all three channels by the grey if GREY;
 6. apply a Gaussian blur with standard deviation BLUR in pixels of the crop, over a window of
    2 ceil(3 BLUR) + 1 pixels, mirrored at the border without repeating its pixel, rounded;
 7. replace x >= 128 by 255 - x if SOLARISE.

Shape letters: N samples, V views of all groups in order, P parameters.
"""

import json
import math
from dataclasses import asdict, dataclass
from enum import IntEnum
from hashlib import blake2b
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.errors import ConfigError

# Mean and standard deviation of ImageNet's pixels on the scale 0..1. SwAV's code has 0.228 for the
# first deviation, a typing error; all other code and published weights use 0.229.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class Parameter(IntEnum):
    """The columns of a row of parameters: everything that an engine needs for one crop."""

    Y0 = 0  # the box, relative to height and width
    X0 = 1
    Y1 = 2
    X1 = 3
    FLIP = 4  # 0 or 1
    ORDER = 5  # index into `ORDERS`
    BRIGHTNESS = 6  # factors; 1 changes nothing
    CONTRAST = 7
    SATURATION = 8
    HUE = 9  # turns, -0.5..0.5; 0 changes nothing
    GREY = 10  # 0 or 1
    BLUR = 11  # standard deviation in pixels of the crop; 0 is no blur
    SOLARISE = 12  # 0 or 1


NUM_PARAMETERS: Final = len(Parameter)

COLOUR_OPERATIONS: Final = (
    Parameter.BRIGHTNESS,
    Parameter.CONTRAST,
    Parameter.SATURATION,
    Parameter.HUE,
)
ORDERS: Final = tuple(permutations(COLOUR_OPERATIONS))

# Steps of a factor from 0 to 1, and of the hue in one turn. Pillow's hue has 255 steps.
FACTOR_STEPS: Final = 4096
HUE_STEPS: Final = 192

MAX_SIDE: Final = 2**22  # float32 boxes are exact up to four times this side

# Positions in the random numbers of one view. They are fixed: a new use takes a spare position at
# the end, so that existing recipes draw the same crops as before.
_NUM_ATTEMPTS = 10
_AREA = slice(0, _NUM_ATTEMPTS)
_LOG_RATIO = slice(_NUM_ATTEMPTS, 2 * _NUM_ATTEMPTS)
_TOP, _LEFT, _FLIP, _JITTER, _ORDER = 20, 21, 22, 23, 24
_FACTORS = slice(25, 29)
_GREY, _BLUR, _SIGMA, _SOLARISE = 29, 30, 31, 32
_NUMBERS_PER_VIEW = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourJitter:
    """Strengths with the meaning of torchvision's `ColorJitter`.

    A factor is uniform in [max(0, 1 - strength), 1 + strength]; the hue shift is uniform in
    [-hue, hue] turns. Both are rounded to their steps.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            _check_range(f"ColourJitter.{name}", getattr(self, name), 0.0, 10.0)
        _check_range("ColourJitter.hue", self.hue, 0.0, 0.5)

    def factors(self, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map uniform numbers (..., 4) to brightness, contrast, saturation and hue."""
        strengths = np.array([self.brightness, self.contrast, self.saturation])
        low = np.append(np.maximum(0.0, 1.0 - strengths), -self.hue)
        high = np.append(1.0 + strengths, self.hue)
        steps = np.array([FACTOR_STEPS, FACTOR_STEPS, FACTOR_STEPS, HUE_STEPS])
        return np.rint((low + (high - low) * uniform) * steps) / steps


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewGroup:
    """`num_views` crops of `size` x `size` pixels, all drawn from the same distribution.

    `scale` is the share of the image's area, `ratio` width over height. A pair whose halves
    differ, such as BYOL's, is two groups of one view.
    """

    num_views: int
    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: ColourJitter | None = None
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_probability: float = 0.0

    def __post_init__(self) -> None:
        _check_range("ViewGroup.num_views", self.num_views, 1, 64)
        _check_range("ViewGroup.size", self.size, 1, 4096)
        _check_interval("ViewGroup.scale", self.scale, 1e-6, 1.0)
        _check_interval("ViewGroup.ratio", self.ratio, 1e-3, 1e3)
        _check_interval("ViewGroup.blur_sigma", self.blur_sigma, 0.0, 100.0)
        for name in ("flip", "jitter_probability", "grey_probability", "blur_probability"):
            _check_range(f"ViewGroup.{name}", getattr(self, name), 0.0, 1.0)
        _check_range("ViewGroup.solarise_probability", self.solarise_probability, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class CropRecipe:
    """The groups of views of every sample."""

    groups: tuple[ViewGroup, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError(
                "CropRecipe.groups is empty; at least 1 group is needed; add a ViewGroup"
            )

    @property
    def num_views(self) -> int:
        """Views of one sample, over all groups."""
        return sum(group.num_views for group in self.groups)

    @property
    def num_bytes(self) -> int:
        """Bytes of all uint8 crops of one sample."""
        return sum(group.num_views * group.size * group.size * 3 for group in self.groups)

    @property
    def digest(self) -> str:
        """32 hex digits over everything that determines the crops."""
        text = json.dumps([asdict(group) for group in self.groups], sort_keys=True)
        return blake2b(text.encode(), digest_size=16, person=b"streamssl recipe").hexdigest()


def swav(
    *,
    counts: tuple[int, ...] = (2, 6),
    sizes: tuple[int, ...] = (224, 96),
    scales: tuple[tuple[float, float], ...] = ((0.14, 1.0), (0.05, 0.14)),
) -> CropRecipe:
    """SwAV's multi-crop (arXiv:2006.09882): the same distortions for large and small crops."""
    jitter = ColourJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    return CropRecipe(
        tuple(
            ViewGroup(num_views=count, size=size, scale=scale, jitter=jitter, blur_probability=0.5)
            for count, size, scale in _zip_groups(counts, sizes, scales)
        )
    )


def moco_v2(*, size: int = 224, scale: tuple[float, float] = (0.2, 1.0)) -> CropRecipe:
    """Two views as in MoCo v2 (arXiv:2003.04297)."""
    jitter = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    group = ViewGroup(num_views=2, size=size, scale=scale, jitter=jitter, blur_probability=0.5)
    return CropRecipe((group,))


def byol(*, size: int = 224, scale: tuple[float, float] = (0.08, 1.0)) -> CropRecipe:
    """Asymmetric pair as in BYOL (arXiv:2006.07733): view 1 always blurred, view 2 rarely."""
    jitter = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return CropRecipe(
        (
            ViewGroup(num_views=1, size=size, scale=scale, jitter=jitter, blur_probability=1.0),
            ViewGroup(
                num_views=1,
                size=size,
                scale=scale,
                jitter=jitter,
                blur_probability=0.1,
                solarise_probability=0.2,
            ),
        )
    )


def cifar(
    *,
    counts: tuple[int, ...] = (2,),
    sizes: tuple[int, ...] = (32,),
    scales: tuple[tuple[float, float], ...] = ((0.2, 1.0),),
) -> CropRecipe:
    """Views of images that are 32 pixels wide: no blur, mild colours.

    `counts=(2, 4), sizes=(32, 16), scales=((0.2, 1.0), (0.05, 0.2))` adds small crops.
    """
    jitter = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    return CropRecipe(
        tuple(
            ViewGroup(num_views=count, size=size, scale=scale, jitter=jitter)
            for count, size, scale in _zip_groups(counts, sizes, scales)
        )
    )


def draw(
    recipe: CropRecipe,
    seed: int,
    epochs: ArrayLike,
    ids: ArrayLike,
    sizes: ArrayLike,
) -> NDArray[np.float32]:
    """Return parameters (N, V, P) of all views of N samples; columns are `Parameter`.

    `epochs` (N,) int64; `ids` (N, 2) int64, shard row and header offset; `sizes` (N, 2) int, height
    and width after EXIF orientation, at most `MAX_SIDE`. A row depends only on its own
    arguments, not on its batch, and a view does not depend on later views.
    """
    epochs = np.asarray(epochs, np.int64).reshape(-1)
    ids = np.asarray(ids, np.int64).reshape(-1, 2)
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    assert len(epochs) == len(ids) == len(sizes)
    assert len(sizes) == 0 or (sizes.min() > 0 and sizes.max() <= MAX_SIDE)
    uniform = _uniform(seed, epochs, ids, recipe.num_views)
    parameters = np.empty((len(ids), recipe.num_views, NUM_PARAMETERS), np.float32)
    first = 0
    for group in recipe.groups:
        views = slice(first, first + group.num_views)
        _draw_group(group, uniform[:, views], sizes, parameters[:, views])
        first += group.num_views
    return parameters


def pixel_boxes(parameters: NDArray[np.float32], sizes: ArrayLike) -> NDArray[np.int64]:
    """Return boxes (N, V, 4) in pixels, y0 x0 y1 x1, of parameters (N, V, P) and sizes (N, 2)."""
    sides = np.asarray(sizes, np.float64).reshape(-1, 1, 2)
    relative = parameters[..., Parameter.Y0 : Parameter.X1 + 1].astype(np.float64)
    return np.rint(relative * np.concatenate([sides, sides], axis=-1)).astype(np.int64)


def _uniform(
    seed: int, epochs: NDArray[np.int64], ids: NDArray[np.int64], num_views: int
) -> NDArray[np.float64]:
    """Return numbers in [0, 1), (N, V, `_NUMBERS_PER_VIEW`).

    Every sample has its own key of a counter-based generator, and view v reads the counters from
    v * `_NUMBERS_PER_VIEW` / 4 on. Raw words are scaled here, because numpy guarantees the raw
    stream of Philox, but not the streams of its distributions.
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed={seed}; a seed is a whole number in [0, 2^64); choose another")
    root = blake2b(seed.to_bytes(8, "little"), digest_size=16, person=b"streamssl crops")
    rows = np.concatenate([epochs[:, None], ids], axis=1).astype("<i8")
    raw = np.empty((len(rows), num_views * _NUMBERS_PER_VIEW), np.uint64)
    # A new generator would first ask the system for random bytes, at six times the cost of the key.
    philox = np.random.Philox(key=0)
    start = philox.state
    for numbers, row in zip(raw, rows, strict=True):
        hasher = root.copy()
        hasher.update(row.tobytes())
        start["state"]["key"] = np.frombuffer(hasher.digest(), "<u8")
        philox.state = start
        numbers[:] = philox.random_raw(len(numbers))
    # The upper 53 bits fill the mantissa of a double.
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform.reshape(len(rows), num_views, _NUMBERS_PER_VIEW)


def _draw_group(
    group: ViewGroup,
    uniform: NDArray[np.float64],
    sizes: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Fill `out` (N, V, P) for one group's views from `uniform` (N, V, numbers)."""
    sides = np.concatenate([sizes, sizes], axis=1)[:, None, :]
    out[..., : Parameter.FLIP] = _draw_boxes(group, uniform, sizes) / sides
    out[..., Parameter.FLIP] = uniform[..., _FLIP] < group.flip
    out[..., Parameter.ORDER] = 0
    out[..., Parameter.BRIGHTNESS : Parameter.GREY] = (1.0, 1.0, 1.0, 0.0)
    if group.jitter is not None:
        drawn = (uniform[..., _JITTER] < group.jitter_probability)[..., None]
        order = np.floor(uniform[..., _ORDER : _ORDER + 1] * len(ORDERS))
        factors = group.jitter.factors(uniform[..., _FACTORS])
        np.copyto(
            out[..., Parameter.ORDER : Parameter.GREY],
            np.concatenate([order, factors], axis=-1),
            where=drawn,
            casting="same_kind",
        )
    out[..., Parameter.GREY] = uniform[..., _GREY] < group.grey_probability
    low, high = group.blur_sigma
    sigma = low + (high - low) * uniform[..., _SIGMA]
    out[..., Parameter.BLUR] = np.where(uniform[..., _BLUR] < group.blur_probability, sigma, 0.0)
    out[..., Parameter.SOLARISE] = uniform[..., _SOLARISE] < group.solarise_probability


def _draw_boxes(
    group: ViewGroup, uniform: NDArray[np.float64], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Draw whole-pixel boxes (N, V, 4) as torchvision's `RandomResizedCrop.get_params` does.

    Ten attempts are drawn at once, (N, V, 10), and the first that fits is used.
    """
    height, width = sizes[:, 0, None].astype(np.float64), sizes[:, 1, None].astype(np.float64)
    (low, high), (narrow, wide) = group.scale, np.log(group.ratio)
    area = (height * width)[..., None] * (low + (high - low) * uniform[..., _AREA])
    ratio = np.exp(narrow + (wide - narrow) * uniform[..., _LOG_RATIO])
    widths = np.rint(np.sqrt(area * ratio))
    heights = np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= width[..., None])
    fits &= (heights > 0) & (heights <= height[..., None])
    first = fits.argmax(axis=-1)[..., None]
    box_width = np.take_along_axis(widths, first, axis=-1)[..., 0]
    box_height = np.take_along_axis(heights, first, axis=-1)[..., 0]
    top = np.floor(uniform[..., _TOP] * (height - box_height + 1))
    left = np.floor(uniform[..., _LEFT] * (width - box_width + 1))
    boxes: NDArray[np.float64] = np.stack([top, left, top + box_height, left + box_width], axis=-1)
    none_fits = ~fits.any(axis=-1)
    if none_fits.any():
        central = np.broadcast_to(_central_boxes(group, height, width)[:, None], boxes.shape)
        boxes[none_fits] = central[none_fits]
    return boxes


def _central_boxes(
    group: ViewGroup, height: NDArray[np.float64], width: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the largest central boxes (N, 4) with an allowed ratio; sizes are (N, 1)."""
    narrow, wide = group.ratio
    box_width, box_height = width.copy(), height.copy()
    too_narrow, too_wide = width / height < narrow, width / height > wide
    box_height[too_narrow] = np.rint(width[too_narrow] / narrow)
    box_width[too_wide] = np.rint(height[too_wide] * wide)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return np.concatenate([top, left, top + box_height, left + box_width], axis=1)


def _zip_groups(
    counts: tuple[int, ...],
    sizes: tuple[int, ...],
    scales: tuple[tuple[float, float], ...],
) -> list[tuple[int, int, tuple[float, float]]]:
    if not len(counts) == len(sizes) == len(scales):
        raise ConfigError(
            f"{len(counts)} counts, {len(sizes)} sizes and {len(scales)} scales; "
            "every group needs one of each; make the three equally long"
        )
    return list(zip(counts, sizes, scales, strict=True))


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name}={value}; allowed is {low} to {high}; choose a value in between")


def _check_interval(name: str, interval: tuple[float, float], low: float, high: float) -> None:
    if len(interval) != 2 or not low <= interval[0] <= interval[1] <= high:
        raise ConfigError(
            f"{name}={interval}; allowed is {low} <= first <= second <= {high}; "
            "give the smaller bound first"
        )
