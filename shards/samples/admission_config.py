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
