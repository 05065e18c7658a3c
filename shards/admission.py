"""Keep or reject one sample, with a reason; and how many rejects a run may spend."""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import BudgetExceeded, ConfigError
from shards.picture import Picture, PictureError, inspect
from shards.records import Reason, Reject, Sample

# Looked for in this order; what the bytes really are is sniffed, whatever the extension says.
PICTURE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "jfif", "jpe"),
    *("jp2", "j2k", "ppm", "pgm", "ico", "img", "image"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionConfig:
    """Which pictures may come in, and how many may be refused.

    `min_side` and `max_pixels` are read from the header: a bomb is never decoded. After
    `probation` decided samples a run ends once more than `max_reject_fraction` were rejected.
    """

    min_side: int = 8
    max_pixels: int = 100_000_000
    max_reject_fraction: float = 0.5
    probation: int = 1000

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_pixels < self.min_side**2:
            raise ConfigError(
                f"min_side={self.min_side} and max_pixels={self.max_pixels} admit no picture; "
                "min_side must be at least 1 and max_pixels at least its square"
            )
        if not 0 <= self.max_reject_fraction <= 1:
            raise ConfigError(
                f"max_reject_fraction={self.max_reject_fraction}; it must be from 0 to 1"
            )
        if self.probation < 0:
            raise ConfigError(f"probation={self.probation}; it must be at least 0")


def admit(sample: Sample, config: AdmissionConfig) -> Picture | Reject:
    """The picture of a sample, its header checked; or why it is rejected. Decodes nothing."""
    data = picture_bytes(sample)
    if data is None:
        found = ", ".join(sorted(sample.fields)) or "nothing"
        return reject(sample, "no_picture", f"members: {found}")
    try:
        picture = inspect(data)
    except PictureError as error:
        return reject(sample, error.reason, error.detail)
    size = f"{picture.width}x{picture.height}"
    if min(picture.width, picture.height) < config.min_side:
        return reject(sample, "too_small", f"{size}, a side must have {config.min_side} pixels")
    if picture.width * picture.height > config.max_pixels:
        return reject(sample, "too_large", f"{size} is over {config.max_pixels} pixels")
    return picture


def picture_bytes(sample: Sample) -> bytes | None:
    """The bytes of the member that is the picture, by extension; None where there is none."""
    for extension in PICTURE_EXTENSIONS:
        if extension in sample.fields:
            return sample.fields[extension]
    for extension, data in sample.fields.items():  # such as "front.jpg"
        if extension.rpartition(".")[2] in PICTURE_EXTENSIONS:
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
