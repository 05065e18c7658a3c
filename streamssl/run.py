"""A run from data to checkpoints: the place where the three planes are put together."""

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from cluster.fixed_readers import RayReaders
from cluster.metrics import Metrics, MetricsServer
from cluster.session import ray_session
from shards.crashes import CrashMarks
from shards.errors import ConfigError
from shards.records import ChunkCrops
from shards.stores.sources import RangeReader, SourceConfig
from shards.stream import BatchStream, Submit
from shards.thread_readers import ThreadReaders
from streamssl import checkpoint
from streamssl.checkpoint import TrainState
from streamssl.config import RunConfig
from streamssl.data import DataConfig, open_data
from streamssl.opening import Run, open_run
from streamssl.opening import build_engine as build_engine
from streamssl.opening import build_state as build_state
from streamssl.opening import crop_job as crop_job
from streamssl.placement import Placement as Placement
from streamssl.progress import Progress
from streamssl.run_folder import JOURNAL, check_out, locked, prepare_data, write_folder
from streamssl.runlog import RunLog
from streamssl.trainer import StepReport, train


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run went. `finished` is false when it was stopped before its last step."""

    finished: bool
    step: int
    num_samples: int
    pictures_per_second: float
    data_wait_share: float
    metrics_url: str
    checkpoint: Path


def pretrain(
    config: RunConfig,
    data: DataConfig | str,
    out: Path,
    placement: Placement,
    console: Console,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Train `config` on the shards of `data` into the run folder `out`; resumes what is there.

    Everything a user can get wrong is checked before anything is written. Raises UserError.
    """
    data = DataConfig(patterns=(data,)) if isinstance(data, str) else data
    check_out(out)
    _check_engine(config, placement)
    with locked(out):
        opened = open_data(prepare_data(data, out, console), RangeReader())
        return _train(open_run(config, opened, out, console), placement, console, stop)


def _train(run: Run, placement: Placement, console: Console, stop: Callable[[], bool]) -> Summary:
    config, out, state = run.config, run.out, run.state
    with ExitStack() as stack:
        metrics = Metrics()
        server = stack.enter_context(MetricsServer(metrics, placement.metrics_port))
        console.print(f"metrics at {server.url}", highlight=False)
        submit = stack.enter_context(_readers(run, placement, metrics))
        stream = BatchStream(
            run.order, config.stream, config.admission, submit, state.cursor, run.journal, stop
        )
        batches = iter(stream)
        # Nothing is written before the data has shown that it can fill a batch.
        first = next(batches)
        write_folder(out, config, run.data)
        stack.enter_context(run.journal.keep_in(out / JOURNAL))
        log = stack.enter_context(RunLog(out, state.step, run.changed_from))
        progress = stack.enter_context(Progress(config.num_steps, state.step, console))
        train(
            config,
            state,
            itertools.chain([first], batches),
            device=run.device,
            report=functools.partial(_report, log, metrics, progress),
            save=lambda: _save(out, state, config),
            stop=stop,
        )
        return Summary(
            finished=state.step == config.num_steps,
            step=state.step,
            num_samples=progress.num_samples,
            pictures_per_second=progress.num_samples / progress.seconds,
            data_wait_share=progress.data_wait_seconds / progress.seconds,
            metrics_url=server.url,
            checkpoint=checkpoint.list_checkpoints(out)[-1],
        )


def _save(out: Path, state: TrainState, config: RunConfig) -> None:
    checkpoint.save(out, state, config.method_name, config.keep)


def _report(log: RunLog, metrics: Metrics, progress: Progress, report: StepReport) -> None:
    fields = log.write(report)
    metrics.step_trained(
        step=report.step,
        loss=fields["loss"],
        lr=report.lr,
        num_samples=report.num_samples,
        step_seconds=report.step_seconds,
        data_wait_seconds=report.data_wait_seconds,
        rejects=report.rejects,
    )
    progress.step(
        report.step,
        fields["loss"],
        report.num_samples,
        len(report.rejects),
        report.step_seconds,
        report.data_wait_seconds,
    )


def _check_engine(config: RunConfig, placement: Placement) -> None:
    """DALI on a GPU crops in the trainer's process, so that must have one."""
    if config.engine != "dali-gpu":
        return
    if placement.cluster != "none":
        raise ConfigError(
            f"engine='dali-gpu' with cluster={placement.cluster!r}; it crops on the trainer's own "
            "GPU: use --cluster none, or --engine opencv for readers on CPUs"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            "engine='dali-gpu', but torch sees no NVIDIA GPU; use --engine opencv on CPUs"
        )


def _room(run: Run) -> int:
    """Bytes that readers and trainer share: crops, and the list of samples."""
    subset = run.data.subset
    return run.config.stream.max_bytes + (0 if subset is None else subset.num_bytes)


@contextmanager
def _readers(run: Run, placement: Placement, metrics: Metrics) -> Iterator[Submit[ChunkCrops]]:
    sources = SourceConfig(cache=placement.cache)
    manifest, job = run.data.manifest, crop_job(run.config, run.data, sources)
    if placement.cluster == "none":
        with (
            CrashMarks(run.out / ".crashes") as marks,
            ThreadReaders(
                manifest, job, placement.readers, metrics.chunk_cropped, marks
            ) as threads,
        ):
            yield threads.submit
        return
    with (
        ray_session(placement.cluster, placement.readers, _room(run)),
        RayReaders(
            manifest,
            job,
            placement.readers,
            on_crops=metrics.chunk_cropped,
            on_lost=metrics.lost_readers.inc,
        ) as readers,
    ):
        yield readers.submit
