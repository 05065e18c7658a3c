"""Settings of the feature queue."""

from dataclasses import dataclass

from shards.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueConfig:
    """Capacity of the queue in features of all ranks, and the step from which it is used.

    The queue fills from the first step on, so it is full of recent features at `start_step`. With
    `max_drift` it starts later: when a feature as old as the oldest has drifted by at most that.
    Drift is 1 - the mean cosine between old and present features of the same images, measured once
    in the age of the oldest feature (`modules.drift.DriftProbe`). A started queue stays in use.
    """

    capacity: int
    start_step: int = 0
    max_drift: float | None = None

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ConfigError(
                f"queue capacity={self.capacity}; a queue holds at least 1 feature; "
                "set it to a few global batches, or leave the queue out"
            )
        if self.max_drift is not None and not 0 < self.max_drift <= 2:
            raise ConfigError(
                f"queue max_drift={self.max_drift}; it is 1 - a cosine, above 0 and at most 2; "
                "0.175 fits SwAV's epsilon of 0.05, or leave it out to start at start_step"
            )

    def check_batch(self, batch_size: int, *, whole_batches: bool) -> None:
        """Raise ConfigError unless a batch fits; `whole_batches`: the capacity is a multiple."""
        if self.capacity >= batch_size and not (whole_batches and self.capacity % batch_size):
            return
        fitting = max(1, round(self.capacity / batch_size)) * batch_size
        needed = "a multiple of" if whole_batches else "at least"
        raise ConfigError(
            f"queue capacity={self.capacity} with batch_size={batch_size}; it must be {needed} the "
            f"batch: give --method.queue.capacity {fitting}, or another --stream.batch-size"
        )
