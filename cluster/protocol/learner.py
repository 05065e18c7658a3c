"""Learner: the interface of the object that ranks train. This plane knows no more of learning.

All ranks hold the same state and see different rows of every global batch. A learner changes its
state only in `train_step`. If that raises, `rollback` restores the state of the newest finished
step, and other ranks can train on the same batch again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from cluster.protocol.step_report import PendingReport, StepReport
from shards.records import CropBatch, Cursor

# This file is for every process of a run, and torch only for trainers.
if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class LearnerState:
    """The state of a learner after `step` finished steps: the content of a checkpoint.

    `tensors` are on the CPU, own their memory and are contiguous; `fields` is plain JSON.
    """

    step: int
    cursor: Cursor | None
    tensors: Mapping[str, "Tensor"]
    fields: Mapping[str, Any] = field(default_factory=dict)


class StopVote(IntEnum):
    """The wish of a rank for the end of the step under way; the strongest vote wins."""

    CONTINUE = 0
    REGROUP = 1
    STOP = 2


class Learner(Protocol):
    """The part of one rank in the training. Used by one thread."""

    @property
    def step(self) -> int:
        """The number of finished steps."""

    @property
    def cursor(self) -> Cursor | None:
        """The position in the stream after them; None before the first."""

    def enter(self, group: "ProcessGroup | None") -> None:
        """Share every further global batch with these ranks; None: train alone."""

    def look_ahead(self, peek: Callable[[], CropBatch | None]) -> None:
        """Let a step prepare the next batch while it waits for its device.

        `peek` returns that batch if it is complete. The next step may get another one.
        """

    def train_step(
        self, batch: CropBatch, vote: StopVote
    ) -> tuple[StepReport | PendingReport, StopVote]:
        """Train on the rows of this rank of the next global batch. All ranks return the same.

        `batch.crops` holds the rows of this rank; ids, epochs and cursor are those of all rows.
        Returned with the report is the strongest vote of all ranks. Votes travel with the last
        collective of a step, so that all ranks leave after the same step. A learner that trains
        alone may return a report whose numbers come later; on ranks the step is finished.
        """

    def rollback(self) -> None:
        """Undo the changes of a `train_step` that raised; do nothing after one that did not."""

    def state(self) -> LearnerState:
        """Return a copy of the state after the newest finished step.

        Raises the error of a step whose numbers were not read yet.
        """

    def load(self, state: LearnerState) -> None:
        """Replace the state by `state`."""

    def digest(self) -> str:
        """Return 32 hex digits of the state. Ranks whose digests differ have drifted apart."""


BuildLearner = Callable[[], Learner]


class Batches(Protocol):
    """The source of this rank's rows; see `BatchFeed`. Used by the thread of the learner."""

    def enter(self, rank: int, world: int, step: int) -> None:
        """Give rows of `rank` of `world` ranks, beginning with the batch of `step`."""

    def next(self) -> CropBatch:
        """Return this rank's rows of the next batch.

        Raises the error that ended the stream, or StreamStopped.
        """

    def peek(self) -> CropBatch | None:
        """Return the batch that `next` would return without waiting; None: it would wait."""

    def interrupt(self) -> None:
        """Make `next` raise StreamStopped until `enter` is called. Called by another thread."""

    def close(self) -> None:
        """End the threads; nothing more is requested."""
