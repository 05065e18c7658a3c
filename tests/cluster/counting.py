"""A learner that only counts: runs of the control plane without a network to train."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cluster.protocol.driver_protocol import Told
from cluster.protocol.learner import LearnerState, Wish
from cluster.protocol.messages import StepRecord
from shards.records import CropBatch, Cursor


class CountingLearner:
    """Its state is the sum of the pixels it saw; a step takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.step = 0
        self.cursor: Cursor | None = None
        self._sum, self._seconds = 0, seconds

    def enter(self, group: ProcessGroup | None) -> None:
        assert group is None, "one rank is enough here"

    def train_step(self, batch: CropBatch, wish: Wish) -> tuple[StepRecord, Wish]:
        time.sleep(self._seconds)
        self._sum += sum(int(group.sum()) for group in batch.crops)
        self.step, self.cursor = self.step + 1, batch.cursor
        fields = {"digest": batch.digest, "sum": self._sum}
        return StepRecord(step=self.step, cursor=batch.cursor, fields=fields), wish

    def rollback(self) -> None:
        """A step is one assignment: there is nothing to undo."""

    def state(self) -> LearnerState:
        return LearnerState(self.step, self.cursor, {"sum": torch.tensor([self._sum])})

    def load(self, state: LearnerState) -> None:
        self.step, self.cursor = state.step, state.cursor
        self._sum = int(state.tensors["sum"])

    def digest(self) -> str:
        return f"{self._sum:032x}"


@dataclass
class Kept:
    """What a driver gave away, and when its folder was to be made."""

    records: list[StepRecord] = field(default_factory=list)
    states: list[LearnerState] = field(default_factory=list)
    begun: bool = False
    told: list[Told] = field(default_factory=list)

    def begin(self) -> None:
        assert not self.begun
        self.begun = True

    def rewind(self, step: int) -> None:
        self.records = [record for record in self.records if record.step <= step]

    def record(self, record: StepRecord) -> None:
        assert self.begun
        self.records.append(record)

    def save(self, state: LearnerState) -> None:
        self.states.append(state)

    def look(self, told: Told) -> None:
        self.told.append(told)

    @property
    def term(self) -> float:
        """Of the Control that was heard of last."""
        return self.told[-1].gauges["control_term",]


def first_state() -> LearnerState:
    """What a run begins with."""
    tensors: dict[str, Tensor] = {"sum": torch.tensor([0])}
    return LearnerState(0, None, tensors)
