"""Counts of bits and bands of images: what does not reach the encoder is told, with a remedy."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from shards.crops.isolated_process import IsolatedProcess
from shards.crops.recipe import CropRecipe, ViewGroup
from shards.crops.sample_cropper import CropJob
from shards.crops.verify_engine import VerifyingEngine
from shards.errors import DecoderLost
from shards.images.image_header import ImageHeader
from shards.images.stored_levels import has_levels
from shards.records import Reject, Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig

# The part of a detail after 'members: cls, svg; none is image; svg is '.
_FOREIGN_MEMBER = re.compile(r"; (?!none is )[^;]*? is (.*)")
# The engine only verifies, so this recipe decides nothing.
_RECIPE = CropRecipe((ViewGroup(num_views=1, size=16, scale=(1.0, 1.0)),))
# So many images of more than eight bits are decoded for a probe.
_MAX_MEASURED = 16
# An image of 16 bits that uses 15 is usual; one that uses 14 comes from a sensor of 14.
_UNUSED_BITS = 2
# Share of the images from which their unused bits are told.
_SHARE = 0.5
# Formats that are named; `verify` has the others.
_MAX_NAMES = 4


@dataclass(slots=True)
class PixelCounts:
    """Counts of images by their bits and bands, and of bytes that are no image by their format.

    `bits_in_use` counts the images that were measured; `num_narrow` of these leave upper bits
    unused, `max_narrow` bits are the most that one of them uses. `dropped` counts images by the
    bands that they have, where some are dropped. `shallow` counts those of over eight bits by
    format, if their decoder gives only eight.
    """

    num_images: int = 0
    bits: Counter[int] = field(default_factory=Counter)
    bits_in_use: Counter[int] = field(default_factory=Counter)
    bands: Counter[int] = field(default_factory=Counter)
    dropped: Counter[int] = field(default_factory=Counter)
    shallow: Counter[str] = field(default_factory=Counter)
    num_narrow: int = 0
    max_narrow: int = 0
    foreign: Counter[str] = field(default_factory=Counter)
    remedies: dict[str, str] = field(default_factory=dict)

    def add(self, image: ImageHeader) -> None:
        """Count an image that admission accepts."""
        self.num_images += 1
        self.bits[image.bits] += 1
        self.bands[image.num_bands] += 1
        if image.num_dropped_bands:
            self.dropped[image.num_bands] += 1
        if image.bits > 8 and not has_levels(image):
            self.shallow[image.format] += 1
        if image.bits_in_use:
            self.bits_in_use[image.bits_in_use] += 1
            if image.bits_in_use <= image.bits - _UNUSED_BITS:
                self.num_narrow += 1
                self.max_narrow = max(self.max_narrow, image.bits_in_use)

    def add_reject(self, reject: Reject) -> None:
        """Count a reject by the format that its detail names."""
        detail = reject.detail if reject.reason == "not_an_image" else ""
        if reject.reason == "no_image" and (member := _FOREIGN_MEMBER.search(reject.detail)):
            detail = member[1]
        name, colon, remedy = detail.partition(": ")
        if colon:
            self.foreign[name] += 1
            self.remedies.setdefault(name, remedy.partition(" (begins")[0])

    def merge(self, other: "PixelCounts") -> None:
        """Add the counts of another part."""
        self.num_images += other.num_images
        self.bits.update(other.bits)
        self.bits_in_use.update(other.bits_in_use)
        self.bands.update(other.bands)
        self.dropped.update(other.dropped)
        self.shallow.update(other.shallow)
        self.num_narrow += other.num_narrow
        self.max_narrow = max(self.max_narrow, other.max_narrow)
        self.foreign.update(other.foreign)
        self.remedies = other.remedies | self.remedies

    def lines(self, sixteen_bit: str) -> Iterator[str]:
        """Yield what is unusual, a line each, under this setting of admission."""
        for name, count in self.foreign.most_common(_MAX_NAMES):
            yield f"not read: {name} ({count:,} of the samples): {self.remedies[name]}"
        measured = self.bits_in_use.total()
        if sixteen_bit == "scale" and self.num_narrow > _SHARE * measured:
            yield (
                f"{self.num_narrow:,} of {measured:,} measured images of over eight bits "
                f"use only {self.max_narrow} bits, so their upper eight bits hold few grey levels: "
                "--admission.sixteen-bit stretch keeps the bits in use"
            )
        if sixteen_bit in ("stretch", "percentiles") and self.shallow:
            yield (
                f"{self.shallow.total():,} of {self.num_images:,} images of over eight bits "
                f"({', '.join(sorted(self.shallow))}) are decoded to their upper eight bits, so "
                f"--admission.sixteen-bit {sixteen_bit} does not apply to them: convert them to "
                "PNG or TIFF before you pack"
            )
        if self.dropped:
            bands = ", ".join(map(str, sorted(self.dropped)))
            yield (
                f"{self.dropped.total():,} of {self.num_images:,} images have {bands} bands: the "
                "first three are used as red, green and blue, or the first as grey where there are "
                "two, and the others are dropped; choose others before you pack, such as "
                "`gdal_translate -b 4 -b 3 -b 2 FILE OUT.tif`"
            )


def probe_pixels(samples: Sequence[Sample], admission: AdmissionConfig) -> PixelCounts:
    """Return the counts of these samples; some images of over eight bits are decoded.

    A child process decodes, so an image that crashes a decoder does not end this one.
    """
    counts, deep = PixelCounts(), list[Sample]()
    for sample in samples:
        image = admit(sample, admission)
        if isinstance(image, Reject):
            counts.add_reject(image)
        elif image.bits > 8 and len(deep) < _MAX_MEASURED:
            deep.append(sample)
        else:
            counts.add(image)
    for image in _measure(deep, admission):
        counts.add(image)
    return counts


def _measure(samples: Sequence[Sample], admission: AdmissionConfig) -> list[ImageHeader]:
    if not samples:
        return []
    job = CropJob(
        recipe=_RECIPE,
        seed=0,
        admission=admission,
        build_engine=partial(VerifyingEngine, _RECIPE),
        only_verify=True,
        with_bits=True,
    )
    try:
        with IsolatedProcess(job) as child:
            return list(child.crop(samples, 0).crops[0])
    except DecoderLost:
        return []
