"""What is run on elastic ranks: all that the control plane knows of learning.

Ranks hold the same state and see different rows of every global batch. A learner changes its
state in one place only, `train_step`; if that raises, `rollback` takes it back to the newest
finished step, and the same batch can be tried again with other ranks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from torch import Tensor
from torch.distributed import ProcessGroup

from cluster.protocol.messages import StepRecord
from shards.records import CropBatch, Cursor


@dataclass(frozen=True, slots=True)
class LearnerState:
    """Everything that a learner is after `step` finished steps: what a checkpoint holds.

    `tensors` lie on the CPU, own their memory and are contiguous; `fields` is plain JSON.
    """

    step: int
    cursor: Cursor | None
    tensors: Mapping[str, Tensor]
    fields: Mapping[str, Any] = field(default_factory=dict)


class Wish(IntEnum):
    """What a rank wants to happen when the step under way is finished; the strongest holds."""

    GO_ON = 0
    REGROUP = 1
    STOP = 2


class Learner(Protocol):
    """One rank's part of the training. Driven from one thread."""

    @property
    def step(self) -> int:
        """Finished steps."""

    @property
    def cursor(self) -> Cursor | None:
        """The place in the stream behind them; None before the first."""

    def enter(self, group: ProcessGroup | None) -> None:
        """From now on these ranks share every global batch; None: this one alone."""

    def train_step(self, batch: CropBatch, wish: Wish) -> tuple[StepRecord, Wish]:
        """Train on this rank's rows of the next global batch; all ranks give the same answer.

        `batch.crops` holds this rank's rows; ids, epochs and cursor are those of all rows. With
        the record comes the strongest wish of all ranks: it travels with the last thing that they
        tell each other, so that they part at the same step. Nothing is told after that.
        """

    def rollback(self) -> None:
        """Undo what a `train_step` that raised has done. No-op after one that did not."""

    def state(self) -> LearnerState:
        """A copy of the state after the newest finished step."""

    def load(self, state: LearnerState) -> None:
        """Become what `state` was taken from."""

    def digest(self) -> str:
        """32 hex digits of the state; the same on all ranks, or something is broken."""


BuildLearner = Callable[[], Learner]


class Batches(Protocol):
    """Where this rank's rows come from: a `Feed`. Driven from the learner's thread."""

    def enter(self, rank: int, world: int, step: int) -> None:
        """From now on give rows of rank `rank` of `world`, from the batch of `step` on."""

    def next(self) -> CropBatch:
        """This rank's rows of the next batch. Raises what ended the stream, or StreamStopped."""

    def interrupt(self) -> None:
        """From another thread: `next` raises StreamStopped, now and until `enter` is called."""

    def close(self) -> None:
        """End the threads; nothing is asked for any more."""
