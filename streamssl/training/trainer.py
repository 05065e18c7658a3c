"""Training in one process: the loop of `cluster.trainers.training_loop` on a plain iterable.

It opens nothing and scales nothing: batches, learner and reporter are arguments.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress

from cluster.protocol.learner import LearnerState, StopVote
from cluster.protocol.messages import Doing
from cluster.protocol.step_report import StepReport
from cluster.trainers.training_loop import TrainingLoop
from shards.errors import StorageFailed, StreamEnded, StreamStopped, UserError
from shards.records import CropBatch
from streamssl.errors import TrainingDiverged
from streamssl.training.learner import PretrainLearner


def train(
    learner: PretrainLearner,
    batches: Iterable[CropBatch],
    *,
    report: Callable[[StepReport], None],
    save: Callable[[LearnerState], None],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train `learner` on `batches` until its last step, or until `stop()` after a step.

    A stream that was stopped ends the training after the last whole step. `save` is called every
    `config.save_every` steps and at the end, also at an end by an error of `batches`, which is
    raised then. `batches` must begin at the cursor of the learner. Reports come in order, each when
    its numbers have come from the device, and before the state of its step is saved. Raises
    StreamEnded when there are too few batches, and TrainingDiverged at a step that is not finite:
    neither it nor a later step is reported or saved.
    """
    config, iterator = learner.config, iter(batches)
    loop = TrainingLoop(config.num_steps, config.save_every, save, learner.log_every)
    loop.saved_step = learner.step

    def next_batch() -> CropBatch:
        try:
            batch = next(iterator, None)
        except Exception:  # no store or sample may cost the steps before it
            loop.save(learner)
            raise
        if batch is None:
            loop.save(learner)
            raise StreamEnded(
                f"the stream ended at step {learner.step} of {config.num_steps}; "
                "ask for fewer steps, or give more data"
            )
        return batch

    def finished(step: StepReport) -> None:
        try:
            report(step)
        except StorageFailed:  # the log has no room; a checkpoint may replace an older one
            loop.forget_unread()
            with suppress(UserError, TrainingDiverged):
                loop.save(learner)
            raise

    with suppress(StreamStopped):
        loop.run(learner, next_batch, _OneProcess(finished, stop))


class _OneProcess:
    """The `LoopControl` of a process that trains alone."""

    doing: Doing = ""
    vote = StopVote.CONTINUE

    def __init__(self, report: Callable[[StepReport], None], stop: Callable[[], bool]) -> None:
        self.finished, self._stop = report, stop

    def check(self) -> None:
        """A process that trains alone has no generation that could end."""

    def after_step(self) -> StopVote:
        return StopVote.STOP if self._stop() else StopVote.CONTINUE
