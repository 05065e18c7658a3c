"""A learner that only counts, for runs of the control plane without a network."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cluster.protocol.driver_protocol import RunReport
from cluster.protocol.learner import LearnerState, StopVote
from cluster.protocol.step_report import StepReport
from shards.records import CropBatch, Cursor


class CountingLearner:
    """Learner whose state is the sum of all pixels; a step takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.step = 0
        self.cursor: Cursor | None = None
        self._sum, self._seconds = 0, seconds

    def enter(self, group: ProcessGroup | None) -> None:
        assert group is None, "one rank is enough here"

    def train_step(self, batch: CropBatch, vote: StopVote) -> tuple[StepReport, StopVote]:
        time.sleep(self._seconds)
        self._sum += sum(int(group.sum()) for group in batch.crops)
        self.step, self.cursor = self.step + 1, batch.cursor
        report = StepReport(
            step=self.step,
            cursor=batch.cursor,
            digest=batch.digest,
            loss=float(self._sum),
            lr=0.0,
            num_samples=len(batch),
        )
        return report, vote

    def look_ahead(self, peek: object) -> None:
        """A step without a device prepares nothing."""

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
    """Output of a run that keeps everything in memory."""

    records: list[StepReport] = field(default_factory=list)
    states: list[LearnerState] = field(default_factory=list)
    begun: bool = False
    reports: list[RunReport] = field(default_factory=list)

    def begin(self) -> None:
        assert not self.begun
        self.begun = True

    def rewind(self, step: int) -> None:
        self.records = [record for record in self.records if record.step <= step]

    def record(self, report: StepReport) -> None:
        assert self.begun
        self.records.append(report)

    def save(self, state: LearnerState) -> None:
        # A run that is killed now resumes after this state: its log must not end before.
        assert self.records and self.records[-1].step >= state.step
        self.states.append(state)

    def take_report(self, report: RunReport) -> None:
        self.reports.append(report)

    @property
    def term(self) -> float:
        """Term of the Control that reported last."""
        return self.reports[-1].gauges["control_term",]


def first_state() -> LearnerState:
    """Return the state with which a run begins."""
    tensors: dict[str, Tensor] = {"sum": torch.tensor([0])}
    return LearnerState(0, None, tensors)
