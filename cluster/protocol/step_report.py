"""The report of one finished training step, as plain values that travel between processes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from shards.records import Cursor, Reject

SampleId = tuple[int, int, int]
"""Shard row, header offset and epoch of one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One finished step: the batch, the loss, and the time that it took.

    `step` counts from 1. `cursor` is the position in the stream after the batch, and `digest` that
    of its sample ids. `readings` are the numbers of the learner beside `loss` and `lr`; this plane
    does not interpret them. `sample` is one sample of the batch.
    """

    step: int
    cursor: Cursor
    digest: str
    loss: float
    lr: float
    num_samples: int
    rejects: tuple[Reject, ...] = ()
    num_unselected: int = 0
    readings: Mapping[str, float] = field(default_factory=dict)
    step_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    sample: SampleId | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Return the report that `to_json` gave."""
        sample = saved["sample"]
        return cls(
            **{
                **saved,
                "cursor": Cursor.from_json(saved["cursor"]),
                "rejects": tuple(Reject(**reject) for reject in saved["rejects"]),
                "sample": None if sample is None else tuple(sample),
            }
        )


class PendingReport(Protocol):
    """The report of a step whose numbers may still be on their way from a device."""

    @property
    def is_ready(self) -> bool:
        """True if `read` does not wait."""

    def wait(self) -> None:
        """Wait until the numbers are here."""

    def read(self) -> StepReport:
        """Return the report; wait for its numbers. Raises the error that they show.

        Reports of a learner are read in the order of their steps.
        """
