"""Keep or reject one sample, with a reason; and how many rejects a run may spend."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import cv2
import numpy as np

from shards.errors import BudgetExceeded, ConfigError
from shards.images.decode import REDUCED, can_reduce, decode
from shards.images.image_header import FORMATS, Format, ImageError, ImageHeader, inspect
from shards.records import Reason, Reject, Sample

# Looked for in this order; what the bytes really are is sniffed, whatever the extension says.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "jfif", "jpe"),
    *("jp2", "j2k", "ppm", "pgm", "ico", "img", "image"),
)

_PREDICATE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_MAX_ENTROPY = 8.0
# Entropy is that of a small copy, so that noise and compression do not pass for content.
_COPY_SIDE: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionConfig:
    """Which images may come in, how they are decoded, and how many may be refused.

    All but `min_entropy` and `predicate` is decided from the header: a bomb is never decoded.
    `min_entropy` costs one more, reduced, decode of every image.
    """

    formats: tuple[Format, ...] = ()
    """Formats that may come in, by what the bytes are; empty for all that can be read."""
    min_side: int = 8
    """Pixels that the shorter side must have."""
    # Beyond 20, no box of 5 % of the area with a usual shape fits: the central one is always taken.
    max_aspect_ratio: float = 20.0
    """How many times longer than the other a side may be; beyond 20, all crops are alike."""
    # Decoding takes up to nine bytes for each.
    max_pixels: int = 100_000_000
    """Height times width at most; of CMYK and animated WebP half of it, of JPEG 2000 a third."""
    max_bytes: int = 1 << 26
    """Bytes that the encoded image may have."""
    animated: Literal["first_frame", "reject"] = "first_frame"
    """Several frames or pages: take the first, or refuse."""
    orientation: Literal["apply", "ignore"] = "apply"
    """What EXIF says about which side is up: turn the image, or take it as it is stored."""
    alpha: Literal["white", "black", "drop", "reject"] = "white"
    """Transparency: lay on white, as pages do, or on black; drop it; or refuse what has any."""
    cmyk: Literal["convert", "reject"] = "convert"
    """Printing colours: convert them, without their profile, or refuse."""
    sixteen_bit: Literal["scale", "reject"] = "scale"
    """Over eight bits a channel: keep the upper eight, or refuse."""
    icc_profile: Literal["ignore", "srgb", "reject"] = "ignore"
    """A colour profile: take the numbers as they are; convert RGB, on the CPU; or refuse."""
    min_entropy: float = 0.0
    """Bits of the grey histogram of a small copy: 0 of plain paper, 7 of photographs. 0: off."""
    predicate: str = ""
    """As "package.module:function"; called with metadata and image of a sample, true keeps it."""
    max_reject_fraction: float = 0.5
    """A run ends once more than this share of the samples was rejected."""
    probation: int = 1000
    """Samples that are decided before `max_reject_fraction` counts."""

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_pixels < self.min_side**2:
            raise ConfigError(
                f"min_side={self.min_side} and max_pixels={self.max_pixels} admit no image; "
                "min_side must be at least 1 and max_pixels at least its square"
            )
        if unknown := set(self.formats) - set(FORMATS):
            raise ConfigError(
                f"formats={', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}; choose "
                "some of these, or none for all"
            )
        if not self.max_aspect_ratio >= 1:
            raise ConfigError(
                f"max_aspect_ratio={self.max_aspect_ratio}; it must be at least 1, which admits "
                "squares; raise it"
            )
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes={self.max_bytes}; it must be at least 1; raise it")
        if not 0 <= self.min_entropy <= _MAX_ENTROPY:
            raise ConfigError(
                f"min_entropy={self.min_entropy}; it must be from 0 to {_MAX_ENTROPY:g} bits; "
                "0 switches it off"
            )
        if self.predicate and not _PREDICATE.fullmatch(self.predicate):
            raise ConfigError(
                f"predicate={self.predicate!r}; it must name an importable function as "
                "'package.module:function'; mend the name, or leave it empty"
            )
        if not 0 <= self.max_reject_fraction <= 1:
            raise ConfigError(
                f"max_reject_fraction={self.max_reject_fraction}; it must be from 0 to 1"
            )
        if self.probation < 0:
            raise ConfigError(f"probation={self.probation}; it must be at least 0")


def admit(sample: Sample, config: AdmissionConfig) -> ImageHeader | Reject:
    """The image of a sample, its header checked; or why it is rejected. Decodes nothing."""
    data = image_bytes(sample)
    if data is None:
        found = ", ".join(sorted(sample.fields)) or "nothing"
        return reject(sample, "no_image", f"members: {found}")
    try:
        if len(data) > config.max_bytes:
            raise ImageError("too_many_bytes", f"{len(data)} bytes, over {config.max_bytes}")
        image = inspect(data, config.formats)
        _check_size(image, config)
        _check_kind(image, config)
    except ImageError as error:
        return reject(sample, error.reason, error.detail)
    return _as_asked(image, config)


def _check_size(image: ImageHeader, config: AdmissionConfig) -> None:
    height, width = image.height, image.width
    size = f"{width}x{height}"
    most = int(config.max_pixels / image.weight)
    if width * height > most:
        raise ImageError("too_large", f"{size} is over {most} pixels")
    if min(width, height) < config.min_side:
        raise ImageError("too_small", f"{size}, a side must have {config.min_side} pixels")
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        raise ImageError(
            "aspect_ratio", f"{size}, a side may be {config.max_aspect_ratio:g} times the other"
        )


def _check_kind(image: ImageHeader, config: AdmissionConfig) -> None:
    if image.num_frames > 1 and config.animated == "reject":
        raise ImageError("animated", f"{image.num_frames} frames")
    if image.alpha and config.alpha == "reject":
        raise ImageError("alpha", f"a {image.format} with transparency")
    if image.cmyk and config.cmyk == "reject":
        raise ImageError("cmyk", f"a {image.format} in printing colours")
    if image.bits > 8 and config.sixteen_bit == "reject":
        raise ImageError("bit_depth", f"{image.bits} bits a channel")
    if image.icc_profile and config.icc_profile == "reject":
        raise ImageError("icc_profile", "an embedded colour profile")


def _as_asked(image: ImageHeader, config: AdmissionConfig) -> ImageHeader:
    """The same image, with what the settings say about how it is decoded."""
    if image.alpha and config.alpha in ("white", "black"):
        image = replace(image, background=config.alpha)
    if image.icc_profile and config.icc_profile == "srgb":
        image = replace(image, to_srgb=True)
    if image.orientation != 1 and config.orientation == "ignore":
        height, width = image.stored_size
        image = replace(image, height=height, width=width, orientation=1)
    return image


def check_pixels(image: ImageHeader, config: AdmissionConfig) -> tuple[Reason, str] | None:
    """Why an image that `admit` let in is refused for its pixels; None where it is not.

    Both engines crop what passes, so what they make of the pixels plays no part in it.
    """
    if config.min_entropy <= 0:
        return None
    try:
        bits = entropy(image)
    except ImageError as error:
        return error.reason, error.detail
    if bits < config.min_entropy:
        return "blank", f"{bits:.2f} bits of entropy, at least {config.min_entropy:g} are asked for"
    return None


def entropy(image: ImageHeader) -> float:
    """Bits of the histogram of 256 grey levels of a small copy; raises `ImageError`."""
    shortest = min(image.height, image.width)
    factors = REDUCED if can_reduce(image) else (1,)
    reduction = max(factor for factor in factors if factor == 1 or shortest >= _COPY_SIDE * factor)
    grey = cv2.cvtColor(decode(image, reduction), cv2.COLOR_RGB2GRAY)
    scale = _COPY_SIDE / min(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    counts = np.bincount(grey.ravel(), minlength=256)
    shares = counts[counts > 0] / grey.size
    return float(np.abs(np.sum(shares * np.log2(shares))))


def image_bytes(sample: Sample) -> bytes | None:
    """The bytes of the member that is the image, by extension; None where there is none."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample.fields:
            return sample.fields[extension]
    for extension, data in sample.fields.items():  # such as "front.jpg"
        if extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            return data
    return None


def reject(sample: Sample, reason: Reason, detail: str = "") -> Reject:
    """A Reject of this sample."""
    return Reject(sample.shard, sample.offset, sample.key, reason, detail)


def check_budget(config: AdmissionConfig, num_samples: int, reasons: Mapping[str, int]) -> None:
    """Raise BudgetExceeded when too many of the samples decided so far were rejected."""
    num_rejects = sum(reasons.values())
    decided = num_samples + num_rejects
    if decided >= config.probation and num_rejects > config.max_reject_fraction * decided:
        raise BudgetExceeded(
            f"{num_rejects} of {decided} samples were rejected, more than "
            f"{config.max_reject_fraction:.0%}; look at the data, or raise "
            "--admission.max-reject-fraction",
            reasons,
        )
