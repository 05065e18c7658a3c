"""Options of the labelled sets of an evaluation, and what is told of their samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shards.errors import ConfigError
from shards.member_names import Keys
from shards.samples.class_numbers import CLASSES_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class SetOptions:
    """Reading of the labelled sets of an evaluation."""

    label: str = ""
    """Label of a sample: a member such as cls, or a JSON field such as meta.label; empty: cls,
    label or class."""
    size: int | None = None
    """Side of the images in pixels; None: the run's largest crop."""
    keys: Keys = "auto"
    """Rule of sample keys: first_dot as in WebDataset, or last_dot for file names with dots; auto
    takes what the shards show."""
    image_member: str | None = None
    """Image of a sample with several, such as image.png; None: as in the run."""
    max_left_out: float = 0.1
    """Share of unreadable samples above which a set is not scored."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_left_out <= 1:
            raise ConfigError(
                f"max_left_out={self.max_left_out}; it is a share from 0 to 1: give --max-left-out "
                "0.1"
            )


@dataclass(frozen=True, slots=True)
class SetCounts:
    """Number of images of a set, and of samples that were left out.

    `is_named`: its classes have names, in `classes.txt` or as labels.
    """

    num_images: int
    rejects: Mapping[str, int] = field(default_factory=dict)
    num_unlabelled: int = 0
    is_named: bool = False

    @property
    def num_left_out(self) -> int:
        return sum(self.rejects.values()) + self.num_unlabelled

    def describe(self, which: str) -> str:
        """Return in words how many samples were left out, and why; empty if none was."""
        reasons = dict(self.rejects)
        if self.num_unlabelled:
            reasons["no label"] = self.num_unlabelled
        if not reasons:
            return ""
        total = self.num_images + self.num_left_out
        words = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
        return f"{self.num_left_out:,} of {total:,} {which} samples were left out: {words}"


def describe_numbers(counts: Mapping[str, SetCounts]) -> str:
    """Return in words that only one of two sets has names of classes; empty if both or none has."""
    named = [which for which, count in counts.items() if count.is_named]
    unnamed = [which for which in counts if which not in named]
    if not named or not unnamed:
        return ""
    return (
        f"the {unnamed[0]} shards have no {CLASSES_FILE}, and the {named[0]} shards have names of "
        "classes: numbers are compared as they are, and must mean the same classes"
    )
