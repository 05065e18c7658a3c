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
    remedy: str

    def is_crossed(self, found: float) -> bool:
        """Return True if the reading is beyond the limit."""
        return found < self.value if self.side == "below" else found > self.value

    def warning(self, step: int, found: float) -> str:
        """Return one sentence: found, allowed, remedy."""
        return (
            f"warning: collapsing at step {step}: {self.reading} is {found:.3g}, {self.side} its "
            f"limit of {self.value:g}: {self.meaning}; {self.remedy}"
        )


_SLOWER = (
    "if the images themselves are alike, such as masks, name others with --image-member; otherwise "
    "lower --optim.base-lr, or raise --method.momentum if a copy of the network makes targets"
)

# Measured in docs/is-it-learning.md: in drills (tests/drills/collapsing.py) and on CIFAR-10,
# healthy runs are far on the other side of each limit after their first 50 steps.
LIMITS = (
    CollapseLimit("feature_std", "below", 0.1, "all images have nearly the same feature", _SLOWER),
    CollapseLimit("effective_rank", "below", 2.0, "features have one or two directions", _SLOWER),
    CollapseLimit(
        "loss_over_plateau",
        "above",
        0.995,
        "the loss is no better than that of features without information",
        "lower --optim.base-lr, --method.epsilon or --method.temperature, or crop and colour less",
    ),
    CollapseLimit(
        "codes_certainty",
        "below",
        0.01,
        "every prototype suits an image as well as any other",
        "lower --method.epsilon",
    ),
    CollapseLimit(
        "assignments_used",
        "below",
        1.5,
        "one cluster has nearly all images",
        "lower --optim.base-lr, or --method.epsilon if it decides which images are neighbours",
    ),
)
