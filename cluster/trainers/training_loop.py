"""The training loop of one learner: batch, step, report, checkpoint.

One process and every rank of a cluster run this same loop; `LoopControl` is all that differs.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from cluster.protocol.learner import Learner, LearnerState, StopVote
from cluster.protocol.messages import Doing
from cluster.protocol.step_report import StepReport
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


class TrainingLoop:
    """Trains a learner to `num_steps` and keeps its state every `save_every` steps.

    `saved_step` is the step of the state that was kept last.
    """

    def __init__(
        self, num_steps: int, save_every: int, keep: Callable[[LearnerState], None]
    ) -> None:
        self.saved_step = -1
        self._num_steps, self._save_every, self._keep = num_steps, save_every, keep
        self._save_seconds = 0.0  # since the last report

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
        vote = StopVote.CONTINUE
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
        """Keep the state of the learner, unless it was kept already."""
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
        report, vote = learner.train_step(batch, control.vote)
        report = replace(
            report,
            step_seconds=time.monotonic() - began,
            data_wait_seconds=began - asked,
            phase_seconds={**report.phase_seconds, "checkpoint": self._save_seconds},
        )
        self._save_seconds = 0.0
        control.finished(report)
        return vote
