"""The training loop of one learner: batch, step, report, checkpoint.

One process and every rank of a cluster run this same loop; `LoopControl` is all that differs.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from cluster.protocol.learner import Learner, LearnerState, StopVote
from cluster.protocol.messages import Doing
from cluster.protocol.step_report import PendingReport, StepReport
from shards.records import CropBatch


class LoopControl(Protocol):
    """The link between a training loop and the process that runs it."""

    doing: Doing

    def check(self) -> None:
        """Raise GenerationOver if no further step can be trained."""

    @property
    def vote(self) -> StopVote:
        """The vote of this rank for the step that begins now."""

    def finished(self, report: StepReport) -> None:
        """Take the report of a finished step."""

    def after_step(self) -> StopVote:
        """Return a vote on which all ranks agree. Called after the checkpoint of the step."""


@dataclass(slots=True)
class _Unread:
    """A step whose report was not given out yet, and the seconds that the host spent on it."""

    report: StepReport | PendingReport
    data_wait_seconds: float
    save_seconds: float
    step_seconds: float = 0.0

    @property
    def is_ready(self) -> bool:
        return isinstance(self.report, StepReport) or self.report.is_ready

    def wait(self) -> None:
        if not isinstance(self.report, StepReport):
            self.report.wait()

    def read(self) -> StepReport:
        report = self.report if isinstance(self.report, StepReport) else self.report.read()
        return replace(
            report,
            step_seconds=self.step_seconds,
            data_wait_seconds=self.data_wait_seconds,
            phase_seconds={**report.phase_seconds, "checkpoint": self.save_seconds},
        )


class TrainingLoop:
    """Trains a learner to `num_steps` and keeps its state every `save_every` steps.

    `saved_step` is the step of the state that was kept last. Reports are given out in order, each
    as soon as its numbers have come from the device; the device may be `log_every` - 1 steps
    behind. All reports of a state are given out before it is kept.
    """

    def __init__(
        self,
        num_steps: int,
        save_every: int,
        keep: Callable[[LearnerState], None],
        log_every: int = 1,
    ) -> None:
        self.saved_step = -1
        self._num_steps, self._save_every, self._keep = num_steps, save_every, keep
        self._log_every = log_every
        self._unread: deque[_Unread] = deque()
        self._finished: Callable[[StepReport], None] = lambda _: None
        self._save_seconds = 0.0  # since the last step

    def run(
        self,
        learner: Learner,
        next_batch: Callable[[], CropBatch],
        control: LoopControl,
        *,
        rank: int = 0,
    ) -> StopVote:
        """Train until the last step or until a vote ends it; return that vote.

        Rank 0 alone saves. After a STOP its newest state is kept.
        """
        vote, self._finished = StopVote.CONTINUE, control.finished
        self._unread.clear()
        while vote is StopVote.CONTINUE and learner.step < self._num_steps:
            vote = self._step(learner, next_batch, control)
            if rank == 0 and learner.step % self._save_every == 0:
                self._save(learner, control)
            vote = max(vote, control.after_step())
        if learner.step >= self._num_steps:
            vote = StopVote.STOP
        if vote is StopVote.STOP and rank == 0:
            self._save(learner, control)
        return vote

    def save(self, learner: Learner) -> None:
        """Keep the state of the learner, unless it was kept already; first, give out all reports.

        Raises the error of a step whose numbers only now have come; its state is not kept then.
        """
        self._give_out(waiting=True)
        if self.saved_step == learner.step:
            return
        began = time.monotonic()
        self._keep(learner.state())
        self.saved_step = learner.step
        self._save_seconds += time.monotonic() - began

    def _save(self, learner: Learner, control: LoopControl) -> None:
        # A copy takes long, and it is no hang: no rank waits for this one meanwhile.
        control.doing = ""
        self.save(learner)

    def _step(
        self, learner: Learner, next_batch: Callable[[], CropBatch], control: LoopControl
    ) -> StopVote:
        control.check()
        asked = time.monotonic()
        control.doing = "data"
        batch = next_batch()
        began = time.monotonic()
        control.doing = "step"
        try:
            report, vote = learner.train_step(batch, control.vote)
        except Exception:
            self._give_out(waiting=True)  # an earlier step may be the cause, and raises its own
            raise
        newest = _Unread(report, began - asked, self._save_seconds)
        self._save_seconds = 0.0
        self._unread.append(newest)
        if len(self._unread) >= self._log_every:
            self._unread[-self._log_every].wait()
        newest.step_seconds = time.monotonic() - began
        self._give_out()
        return vote

    def forget_unread(self) -> None:
        """Give out no report any more of the steps so far: nobody can take one."""
        self._unread.clear()

    def _give_out(self, *, waiting: bool = False) -> None:
        """Give out the reports that have come, in order; those under way only if `waiting`."""
        while self._unread and (waiting or self._unread[0].is_ready):
            self._finished(self._unread.popleft().read())
