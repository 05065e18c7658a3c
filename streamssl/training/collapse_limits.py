"""Limits of collapse: values of readings that only collapsed encoders have."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CollapseLimit:
    """Limit of a reading: only collapsed encoders are on this `side` of `value`."""

    reading: str
    side: Literal["below", "above"]
    value: float
    meaning: str

    def is_crossed(self, found: float) -> bool:
        """Return True if the reading is beyond the limit."""
        return found < self.value if self.side == "below" else found > self.value

    def warning(self, step: int, found: float, remedy: str) -> str:
        """Return one sentence: found, allowed, remedy."""
        return (
            f"warning: collapsing at step {step}: {self.reading} is {found:.3g}, {self.side} its "
            f"limit of {self.value:g}: {self.meaning}; {remedy}"
        )


# Measured in docs/is-it-learning.md: in drills (tests/drills/collapsing.py) and on CIFAR-10,
# healthy runs are far on the other side of each limit after their first 50 steps.
LIMITS = (
    CollapseLimit("feature_std", "below", 0.1, "all images have nearly the same feature"),
    CollapseLimit("effective_rank", "below", 2.0, "features have one or two directions"),
    CollapseLimit(
        "loss_over_plateau",
        "above",
        0.995,
        "the loss is no better than that of features without information",
    ),
    CollapseLimit(
        "codes_certainty", "below", 0.01, "every prototype suits an image as well as any other"
    ),
    CollapseLimit("assignments_used", "below", 1.5, "one cluster has nearly all images"),
)
