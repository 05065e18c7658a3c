"""Keep or reject one sample, with a reason."""

from dataclasses import replace
from typing import Final

import cv2
import numpy as np

from shards.images.decode import REDUCED, can_reduce, decode
from shards.images.image_header import ImageError, ImageHeader, inspect
from shards.records import Reason, Reject, Sample
from shards.samples.admission_config import AdmissionConfig

# Looked for in this order; what the bytes really are is sniffed, whatever the extension says.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "jfif", "jpe"),
    *("jp2", "j2k", "ppm", "pgm", "ico", "img", "image"),
)

# Entropy is that of a small copy, so that noise and compression do not pass for content.
_COPY_SIDE: Final = 64


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
