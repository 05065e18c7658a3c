"""Admission: accept or reject one sample, with a reason."""

from dataclasses import replace
from typing import Final

import cv2
import numpy as np

from shards.images.decode import JPEG_REDUCTIONS, can_reduce, decode
from shards.images.formats.foreign import foreign_member
from shards.images.image_header import ImageError, ImageHeader, read_image_header
from shards.records import Reason, Reject, Sample
from shards.samples.admission_config import AdmissionConfig
from shards.samples.image_member import find_image_member

# Entropy is measured on a small copy, so that noise and compression do not count as content.
_COPY_SIDE: Final = 64


def admit(sample: Sample, config: AdmissionConfig) -> ImageHeader | Reject:
    """Return the image of a sample after checks of its header, or a reject. Decodes no pixel."""
    member = find_image_member(sample, config.image_members)
    if member is None:
        detail = _describe_members(sample, config.image_members)
        return reject(sample, config, "no_image", detail)
    data = sample.fields[member]
    try:
        if len(data) > config.max_bytes:
            raise ImageError("too_many_bytes", f"{len(data)} bytes, over {config.max_bytes}")
        image = read_image_header(data, config.formats)
        _check_size(image, config)
        _check_kind(image, config)
    except ImageError as error:
        return reject(sample, config, error.reason, error.detail)
    return _with_settings(image, config)


def _check_size(image: ImageHeader, config: AdmissionConfig) -> None:
    height, width = image.height, image.width
    size = f"{width}x{height}"
    max_pixels = int(config.max_pixels / image.weight)
    if width * height > max_pixels:
        raise ImageError("too_large", f"{size} is over {max_pixels} pixels")
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


def _with_settings(image: ImageHeader, config: AdmissionConfig) -> ImageHeader:
    """Return the image with the decode settings of `config`."""
    if image.alpha and config.alpha in ("white", "black"):
        image = replace(image, background=config.alpha)
    if image.bits > 8 and config.sixteen_bit in ("stretch", "percentiles"):
        image = replace(image, deep_levels=config.sixteen_bit)
    if image.icc_profile and config.icc_profile == "srgb":
        image = replace(image, to_srgb=True)
    if image.orientation != 1 and config.orientation == "ignore":
        height, width = image.stored_size
        image = replace(image, height=height, width=width, orientation=1)
    return image


def check_pixels(image: ImageHeader, config: AdmissionConfig) -> tuple[Reason, str] | None:
    """Return reason and detail if an admitted image is rejected for its pixels, else None.

    The check is independent of the engine, so all engines reject the same images.
    """
    if config.min_entropy <= 0:
        return None
    try:
        bits = entropy(image)
    except ImageError as error:
        return error.reason, error.detail
    if bits < config.min_entropy:
        return "blank", f"{bits:.2f} bits of entropy, at least {config.min_entropy:g} are required"
    return None


def entropy(image: ImageHeader) -> float:
    """Return the entropy in bits of the grey levels of a small copy. Raises ImageError."""
    shortest = min(image.height, image.width)
    factors = JPEG_REDUCTIONS if can_reduce(image) else (1,)
    reduction = max(factor for factor in factors if factor == 1 or shortest >= _COPY_SIDE * factor)
    grey = cv2.cvtColor(decode(image, reduction), cv2.COLOR_RGB2GRAY)
    scale = _COPY_SIDE / min(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    counts = np.bincount(grey.ravel(), minlength=256)
    shares = counts[counts > 0] / grey.size
    return float(np.abs(np.sum(shares * np.log2(shares))))


def _describe_members(sample: Sample, wanted: tuple[str, ...]) -> str:
    found = ", ".join(sorted(name or "(no extension)" for name in sample.fields)) or "nothing"
    text = f"members: {found}" + (f"; none is {' or '.join(wanted)}" if wanted else "")
    for name, data in sorted(sample.fields.items()):
        if (foreign := foreign_member(name, data)) is not None:
            return f"{text}; {name or 'it'} is {foreign}"
    return text


def reject(sample: Sample, config: AdmissionConfig, reason: Reason, detail: str = "") -> Reject:
    """Return a reject of this sample, which names its image member."""
    image = find_image_member(sample, config.image_members)
    member = "" if image is None else sample.member(image)
    return Reject(sample.shard, sample.offset, sample.key, reason, detail, member)
