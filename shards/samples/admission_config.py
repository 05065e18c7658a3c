"""Settings of admission, and the budget of rejects of a run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from shards.errors import BudgetExceeded, ConfigError
from shards.images.formats.common import FORMATS, Format

_PREDICATE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_MAX_ENTROPY = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionConfig:
    """Accepted images, how they are decoded, and how many may be rejected.

    All checks except `min_entropy` and `predicate` read only the header, so a decompression bomb is
    never decoded. `min_entropy` costs one more, reduced, decode of every image.
    """

    image_member: str = ""
    """Image of a sample with several, such as image.png, or image for any image.*; more names in
    order of preference after commas; empty: the first by extension."""
    formats: tuple[Format, ...] = ()
    """Accepted formats, detected from the bytes; empty for all supported formats."""
    min_side: int = 8
    """Minimum number of pixels of the shorter side."""
    # Beyond 20 no usual box of 5 % of the area fits, so every crop would be the central one.
    max_aspect_ratio: float = 20.0
    """Maximum ratio of the longer to the shorter side; beyond 20 all crops are alike."""
    # Decoding takes up to nine bytes per pixel.
    max_pixels: int = 100_000_000
    """Maximum of height times width; half for CMYK and animated WebP, a third for JPEG 2000."""
    max_bytes: int = 1 << 26
    """Maximum number of bytes of the encoded image."""
    animated: Literal["first_frame", "reject"] = "first_frame"
    """Several frames or pages: take the first, or reject."""
    orientation: Literal["apply", "ignore"] = "apply"
    """EXIF orientation: turn the image upright, or take it as stored."""
    alpha: Literal["white", "black", "drop", "reject"] = "white"
    """Transparency: blend on white (as web pages do) or black, drop it, or reject the image."""
    cmyk: Literal["convert", "reject"] = "convert"
    """CMYK colours: convert them without their profile, or reject."""
    sixteen_bit: Literal["scale", "stretch", "percentiles", "reject"] = "scale"
    """More than eight bits per channel: keep the upper eight; stretch keeps the upper eight of the
    bits that an image uses, percentiles stretches its 1st to 99th percentile; or reject."""
    icc_profile: Literal["ignore", "srgb", "reject"] = "ignore"
    """Colour profile: ignore it, convert RGB to sRGB on the CPU, or reject."""
    min_entropy: float = 0.0
    """Minimum entropy in bits: plain paper has 0, photographs have 7. 0 switches it off."""
    predicate: str = ""
    """Function (metadata, image) -> bool, as "package.module:function"; True keeps a sample."""
    max_reject_fraction: float = 0.5
    """A run ends when more than this share of the samples is rejected."""
    probation: int = 1000
    """Number of samples before `max_reject_fraction` applies."""

    @property
    def image_members(self) -> tuple[str, ...]:
        """Names in `image_member`, in order of preference."""
        return tuple(name for name in self.image_member.replace(",", " ").split() if name)

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_pixels < self.min_side**2:
            raise ConfigError(
                f"min_side={self.min_side} and max_pixels={self.max_pixels} admit no image; "
                "min_side must be at least 1 and max_pixels at least its square"
            )
        if unknown := set(self.formats) - set(FORMATS):
            raise ConfigError(
                f"formats={', '.join(sorted(unknown))}; supported are {', '.join(FORMATS)}; choose "
                "some of these, or none for all"
            )
        if not self.max_aspect_ratio >= 1:
            raise ConfigError(
                f"max_aspect_ratio={self.max_aspect_ratio}; it must be at least 1, which accepts "
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
                "'package.module:function'; correct the name, or leave it empty"
            )
        if not 0 <= self.max_reject_fraction <= 1:
            raise ConfigError(
                f"max_reject_fraction={self.max_reject_fraction}; it must be from 0 to 1"
            )
        if self.probation < 0:
            raise ConfigError(f"probation={self.probation}; it must be at least 0")


def check_budget(
    config: AdmissionConfig,
    num_samples: int,
    reasons: Mapping[str, int],
    first: Mapping[str, str] | None = None,
) -> None:
    """Raise BudgetExceeded if too many of the samples so far were rejected.

    `first` describes the first reject of each reason.
    """
    num_rejects = sum(reasons.values())
    decided = num_samples + num_rejects
    if decided >= config.probation and num_rejects > config.max_reject_fraction * decided:
        raise BudgetExceeded(
            f"{num_rejects} of {decided} samples were rejected, more than "
            f"{config.max_reject_fraction:.0%}; look at the data, or raise "
            "--admission.max-reject-fraction",
            reasons,
            first,
        )
