"""Label watch: tells when the labels of a run end, or when images of a batch share none.

The start of a run checks only its first images. Later shards may have no label, and a method that
learns from labels goes on without an error.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from statistics import fmean

# Means are taken over this many steps, so that a rare label is not taken for none.
WINDOW = 30
# Other images with the label of an image, in its batch; a class of a thousand has 0.06 in 64.
_MIN_OTHERS = 0.01


class LabelWatch:
    """Watches the share of labelled samples, and the positives of an image, step after step.

    `labelled` is the share of samples with a label; `positives` counts all crops with the label of
    an image but itself, its own other crops among them. A method may have none of the readings.
    Each fault is told once, and once when it is over. A resumed run starts anew.
    """

    def __init__(self, label: str, num_crops: int) -> None:
        self._label, self._num_crops = label, num_crops
        self._shares: deque[float] = deque(maxlen=WINDOW)
        self._others: deque[float] = deque(maxlen=WINDOW)
        self._told: set[str] = set()

    def check(self, step: int, readings: Mapping[str, float]) -> tuple[str, ...]:
        """Take the readings of a finished step; return sentences about changes."""
        if "labelled" in readings:
            self._shares.append(readings["labelled"])
        if "positives" in readings:
            own = self._num_crops - 1
            self._others.append((readings["positives"] - own) / self._num_crops)
        return tuple(self._messages(step))

    def _messages(self, step: int) -> Iterator[str]:
        if len(self._shares) < WINDOW:
            return
        share, start = fmean(self._shares), "warning: labels at step"
        if share == 0 and self._is_new("none"):
            yield (
                f"{start} {step}: labelled is 0, no sample of the last {WINDOW} batches has the "
                f"label {self._label!r}; nothing is learned from labels: leave shards without "
                "labels out of --data, or name another --label, and give a new --out"
            )
        if share > 0 and "none" in self._told and self._is_new("some"):
            yield f"step {step}: labelled is {share:.3g}, samples have labels again"
        if not self._others or share == 0:
            return
        others, own = fmean(self._others), self._num_crops - 1
        if others < _MIN_OTHERS and self._is_new("alone"):
            yield (
                f"{start} {step}: positives is {own + others * self._num_crops:.3g}, of which "
                f"{own} of the same image: an image has {others:.2g} others with its "
                f"{self._label!r} in a batch, below the limit of {_MIN_OTHERS}; name a --label "
                "that images share, or raise --stream.batch-size, and give a new --out"
            )
        if others >= _MIN_OTHERS and "alone" in self._told and self._is_new("shared"):
            yield f"step {step}: images share labels again, each with {others:.2g} others"

    def _is_new(self, fault: str) -> bool:
        is_new = fault not in self._told
        self._told.add(fault)
        return is_new
