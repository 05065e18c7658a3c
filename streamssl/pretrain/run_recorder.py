"""RunRecorder: writes the log, the metrics, the checkpoints and the progress line of a run.

A run in one process calls it directly; a run on a cluster gives it to the driver.
"""

import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cluster.errors import StateDiffers
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.protocol.driver_protocol import RunReport
from cluster.protocol.learner import LearnerState
from cluster.protocol.step_report import StepReport
from streamssl import checkpoint
from streamssl.config.run_config import toml_of
from streamssl.monitoring.exported_readings import exported, set_collapsing
from streamssl.runs.file_names import MANIFEST
from streamssl.runs.logs.metrics_log import RunLog
from streamssl.runs.logs.progress import Progress
from streamssl.runs.logs.tensorboard_log import TensorBoardLog
from streamssl.runs.placement import Placement
from streamssl.runs.run_end import keep_start
from streamssl.runs.run_folder import lock_folder, write_folder
from streamssl.runs.run_setup import PreparedRun
from streamssl.training.health import HealthWatch


class RunRecorder:
    """Records of `run`. Use as a context; `progress` has totals of the finished steps."""

    def __init__(
        self, run: PreparedRun, placement: Placement, metrics: MetricsHub, console: Console
    ) -> None:
        self._run, self._placement, self._metrics = run, placement, metrics
        self.progress = Progress(run.config.num_steps, run.state.step, console)
        self._watch = HealthWatch(run.config)
        self._log: RunLog | None = None
        self._files = ExitStack()
        self._restoring = threading.RLock()

    def begin(self) -> None:
        """Write the run folder. Called when the data has filled a batch."""
        run = self._run
        if run.branch is not None and (line := run.branch.begin()):
            self.progress.message(line)
        write_folder(run.out, run.config, run.data)
        keep_start(run.out, run.state.step, run.config.num_steps)
        self._open_log(run.state.step)
        self._files.enter_context(self.progress)

    def rewind(self, step: int) -> None:
        """Continue the log after `step`: later steps are trained again, with the same digests."""
        self._open_log(step)

    def record(self, report: StepReport) -> None:
        """Write a finished step."""
        with self._restoring:
            self._keep_folder()
            assert self._log is not None, "nothing is trained before the run has a folder"
            record_step(self._log, self._metrics, self.progress, self._watch, report)

    def save(self, state: LearnerState) -> None:
        """Write a checkpoint. May be called by another thread than the other methods."""
        run = self._run
        settings = toml_of(run.config)
        with self._restoring:
            self._keep_folder()
        self._metrics.keep_totals()  # a resume must not know fewer steps than its checkpoint
        checkpoint.save(run.out, state, run.config.method_name, run.config.keep, settings)

    def take_report(self, report: RunReport) -> None:
        """Pass the report of Control to the metrics."""
        self._metrics.take_report(report)

    def _keep_folder(self) -> None:
        """Make the folder again if somebody removed or moved it, and tell it.

        Otherwise the run would train on into a folder that no command can resume. Raises UserError.
        """
        out, step = self._run.out, self.progress.last_step
        if self._log is None or not (self._log.is_lost or _missing(out)):
            return
        what = f"{out} was" if not out.exists() else f"files of {out} were"
        if not out.exists():
            self._files.enter_context(lock_folder(out))
        write_folder(out, self._run.config, self._run.data)
        keep_start(out, step, self._run.config.num_steps)
        self._run.journal.restore()
        if self._log.is_lost:
            self._open_log(step)
        self.progress.message(
            f"after step {step}: {what} removed or moved while the run trains; what a resume needs "
            "was written again, and the next checkpoint goes there. Earlier checkpoints and steps "
            "of the log are only where the folder was moved"
        )

    def _open_log(self, step: int) -> None:
        if self._log is not None:
            self._log.close()
        run = self._run
        events = TensorBoardLog(run.out / "tensorboard") if self._placement.tensorboard else None
        self._log = RunLog(run.out, step, run.changed_from, events)

    def __enter__(self) -> "RunRecorder":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, StateDiffers):
            self._metrics.values.count(("state_mismatches",), 1)
        self._files.close()
        if self._log is not None:
            self._log.close()


def _missing(out: Path) -> bool:
    """Return True if a file is gone without which no command can resume the run."""
    return not all((out / name).exists() for name in ("config.toml", "data.toml", MANIFEST))


def record_step(
    log: RunLog, metrics: MetricsHub, progress: Progress, watch: HealthWatch, report: StepReport
) -> None:
    """Write a finished step to all outputs. Warn once when it shows that the run collapses."""
    health = watch.check(report.step, report.readings)
    fields = log.write(replace(report, readings={**report.readings, **health.readings}))
    if health.readings:
        set_collapsing(metrics, health.measured, health.crossed)
    for text in health.messages:
        progress.message(text)
    if "skipped_steps" in report.readings:
        progress.message(
            f"step {report.step} is left out, since its numbers are not finite: loss "
            f"{report.loss:g}, gradient norm {report.readings['gradient_norm']:g}; "
            f"{report.readings['skipped_steps']:.0f} such steps so far, --max-skipped-steps is "
            "their limit"
        )
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
        report.loss,
        report.num_samples,
        len(report.rejects),
        report.step_seconds,
        report.data_wait_seconds,
    )
