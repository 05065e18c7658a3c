"""What a run on a cluster leaves behind: its log, its metrics, its checkpoints, its line.

It is what the driver of `cluster` hands things to; see `cluster.driver.driver.Keeper`.
"""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rich.console import Console

from cluster.errors import StateDiffers
from cluster.monitoring.metrics_hub import Metrics
from cluster.protocol.driver_protocol import Told
from cluster.protocol.learner import LearnerState
from cluster.protocol.messages import StepRecord
from streamssl import checkpoint
from streamssl.pretrain.metric_names import exported
from streamssl.runs.event_file import EventFile
from streamssl.runs.metrics_log import RunLog
from streamssl.runs.placement import Placement
from streamssl.runs.progress import Progress
from streamssl.runs.run_folder import write_folder
from streamssl.runs.run_setup import Run
from streamssl.training.health import HealthWatch
from streamssl.training.trainer import StepReport


class RunKeeper:
    """Keeps what comes of `run`. A context; `progress` counts what was trained."""

    def __init__(self, run: Run, placement: Placement, metrics: Metrics, console: Console) -> None:
        self._run, self._placement, self._metrics = run, placement, metrics
        self.progress = Progress(run.config.num_steps, run.state.step, console)
        self._watch = HealthWatch.of(run.config)
        self._log: RunLog | None = None
        self._files = ExitStack()

    def begin(self) -> None:
        """Write down what the run is, now that its data has filled a batch."""
        run = self._run
        write_folder(run.out, run.config, run.data)
        self._open_log(run.state.step)
        self._files.enter_context(self.progress)

    def rewind(self, step: int) -> None:
        """The steps behind this one are trained again: their digests must be those of the log."""
        self._open_log(step)

    def record(self, record: StepRecord) -> None:
        """A finished step into log, metrics and line."""
        assert self._log is not None, "nothing is trained before the run has a folder"
        fields: Any = record.fields
        report_step(
            self._log,
            self._metrics,
            self.progress,
            self._watch,
            StepReport(step=record.step, cursor=record.cursor, **fields),
        )

    def save(self, state: LearnerState) -> None:
        """A checkpoint; on another thread than the others."""
        run = self._run
        checkpoint.save_state(run.out, state, run.config.method_name, run.config.keep)

    def look(self, told: Told) -> None:
        """What Control knows, for whoever watches."""
        self._metrics.heard(told)

    def _open_log(self, step: int) -> None:
        if self._log is not None:
            self._log.close()
        self._log = open_log(self._run, self._placement, step)

    def __enter__(self) -> "RunKeeper":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, StateDiffers):
            self._metrics.values.count(("state_mismatches",), 1)
        self._files.close()
        if self._log is not None:
            self._log.close()


def open_log(run: Run, placement: Placement, step: int) -> RunLog:
    """The log of a run that goes on behind this step, with its copy for TensorBoard if wanted."""
    events = EventFile(run.out / "tensorboard") if placement.tensorboard else None
    return RunLog(run.out, step, run.changed_from, events)


def report_step(
    log: RunLog, metrics: Metrics, progress: Progress, watch: HealthWatch, report: StepReport
) -> None:
    """Tell everybody of a finished step, and warn once when it shows that the run collapses."""
    readings = {name: float(value) for name, value in report.readings.items()}
    health = watch.look(report.step, readings)
    fields = log.write(replace(report, readings=readings | health.readings))
    if health.readings:
        metrics.health(health.looked_at, health.crossed)
    for text in health.news:
        progress.say(text)
    metrics.step_trained(
        step=report.step,
        num_samples=report.num_samples,
        step_seconds=report.step_seconds,
        data_wait_seconds=report.data_wait_seconds,
        rejects=report.rejects,
        phase_seconds=report.phase_seconds,
        readings=exported(fields),
        sample=report.sample,
    )
    progress.step(
        report.step,
        fields["loss"],
        report.num_samples,
        len(report.rejects),
        report.step_seconds,
        report.data_wait_seconds,
    )
