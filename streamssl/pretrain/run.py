"""A run from data to checkpoints: it composes the three planes."""

import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path

import torch
from rich.console import Console

from cluster.monitoring.http_server import Page
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.run_state import RunEnding
from cluster.trainers.trainer_crops import CroppedBatches, TrainerCropsConfig
from shards.crops.crash_marks import CrashMarks
from shards.errors import StreamSSLError, StreamStopped
from shards.redaction import scrub
from shards.stores.range_reader import SourceConfig
from shards.stream.batch_stream import BatchStream
from shards.stream.thread_readers import ThreadReaders
from streamssl import checkpoint
from streamssl.config.run_config import RunConfig, flatten, to_fields
from streamssl.config.sizing import Sizing, size
from streamssl.errors import TrainingDiverged
from streamssl.execution.compilation import check_compiler
from streamssl.execution.micro_batches import check_rows
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.pretrain.live_run import show_run
from streamssl.pretrain.run_metrics import watch_run, watch_stream
from streamssl.pretrain.run_recorder import RunRecorder
from streamssl.pretrain.run_totals import keep_totals
from streamssl.runs.crop_job import crop_job
from streamssl.runs.decode_placement import check_engine
from streamssl.runs.divergence import explain
from streamssl.runs.file_names import JOURNAL
from streamssl.runs.logs.progress import Progress
from streamssl.runs.logs.tensorboard_log import check_tensorboard
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig, OpenedData
from streamssl.runs.run_end import RunEnd, ending_of, keep_end
from streamssl.runs.run_setup import PreparedRun, open_run
from streamssl.runs.run_start import start_run
from streamssl.training.backbone_check import check_backbone
from streamssl.training.learner import PretrainLearner
from streamssl.training.trainer import train


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Result of a run. `finished` is false if it was stopped before its last step."""

    finished: bool
    step: int
    num_samples: int
    images_per_second: float
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
    *,
    sizing: Sizing | None = None,
    start: str | None = None,
) -> RunSummary:
    """Train `config` on the shards of `data` into the run folder `out`, or resume the run there.

    User errors are found before anything is written. `sizing` determines the sizes that `config`
    leaves open; by default `config` itself is the recipe. `start` names the checkpoint to go on
    from, by default the newest. Raises UserError.
    """
    check_settings(config, placement, out)
    data = DataConfig(patterns=(data,)) if isinstance(data, str) else data
    with start_run(config, data, out, placement, console) as opened:
        return pretrain_started(
            config, opened, out, placement, console, stop, sizing=sizing, start=start
        )


def check_settings(config: RunConfig, placement: Placement, out: Path) -> None:
    """Raise ConfigError if a GPU, a library or a compiler is missing, or the encoder cannot work.

    Called before any shard is read or packed.
    """
    placement.steps_to_read(config.max_skipped_steps)
    check_engine(config, placement)
    if placement.tensorboard:
        check_tensorboard()
    check_rows(config.micro_batches, config.stream.batch_size, placement.trainers)
    if config.compile:
        check_compiler("cuda" if torch.cuda.is_available() else "cpu")
    check_backbone(config, fresh=not checkpoint.list_checkpoints(out))


def pretrain_started(
    config: RunConfig,
    data: OpenedData,
    out: Path,
    placement: Placement,
    console: Console,
    stop: Callable[[], bool],
    *,
    sizing: Sizing | None = None,
    start: str | None = None,
) -> RunSummary:
    """Train in the folder `out`, which `start_run` has locked; otherwise as `pretrain`."""
    if config.sizes == "auto":
        config = _size(config, sizing or Sizing(recipe=config), data, console)
    return _train(open_run(config, data, out, console, start), placement, console, stop)


def _size(config: RunConfig, sizing: Sizing, data: OpenedData, console: Console) -> RunConfig:
    """Return the settings with sizes that follow from batch and data, and print their origins."""
    num_samples = sizing.num_samples or data.num_samples
    config = size(config, replace(sizing, num_samples=num_samples))
    known = "" if sizing.num_samples else "about "
    console.print(
        f"sizes for batches of {config.stream.batch_size} of {known}{num_samples:,} samples:",
        highlight=False,
    )
    tables = flatten(to_fields(config))
    for name, origin in config.origins.items():
        value = f" = {tables[name]}" if name in tables else ""
        console.print(f"  {name}{value} ({origin})", highlight=False, markup=False)
    return config


def _train(
    run: PreparedRun, placement: Placement, console: Console, stop: Callable[[], bool]
) -> RunSummary:
    metrics = MetricsHub(CATALOGUE)
    watch_run(metrics, run, placement)
    keep_totals(metrics, run.out, console)
    train_so, pages = _way_to_train(placement)
    with show_run(run, metrics, placement.metrics_port, pages) as server:
        console.print(f"live page at {server.page}", highlight=False)
        console.print(f"metrics at {server.url}", highlight=False)
        try:
            progress = train_so(run, placement, metrics, console, stop)
            saved = checkpoint.list_checkpoints(run.out)
            if not progress.num_samples or not saved:
                raise StreamStopped("stopped before anything was saved")
        except TrainingDiverged as error:
            metrics.values.set({("loss",): nan, ("gradient_norm",): nan})
            explained = explain(error, run.config, run.out)
            _keep_error(run, explained)
            raise explained from error
        except BaseException as error:
            _keep_error(run, error)
            if isinstance(error, StreamSSLError):
                _tell_saved(run, error)
            raise
        step = checkpoint.read_fields(saved[-1])["step"]
        how: RunEnding = "done" if step == run.config.num_steps else "stopped"
        keep_end(run.out, RunEnd(how, step, run.config.num_steps))
        return RunSummary(
            finished=step == run.config.num_steps,
            step=step,
            num_samples=progress.num_samples,
            images_per_second=progress.num_samples / max(progress.seconds, 1e-9),
            data_wait_share=progress.data_wait_seconds / max(progress.seconds, 1e-9),
            metrics_url=server.url,
            checkpoint=saved[-1],
        )


def _way_to_train(placement: Placement) -> tuple[Callable[..., Progress], Mapping[str, Page]]:
    """Return the function that trains, and its pages. Only a run that uses Ray imports it."""
    if placement.cluster == "none":
        return _train_here, {}
    from cluster.driver.run_desk import RunDesk
    from streamssl.pretrain.cluster_run import train_on_cluster

    desk = RunDesk()
    return partial(train_on_cluster, desk=desk), desk.pages


def _keep_error(run: PreparedRun, error: BaseException) -> None:
    """Note in the folder of the run that this error ended it."""
    end = RunEnd(ending_of(error), run.state.step, run.config.num_steps, scrub(str(error)))
    keep_end(run.out, end)


def _tell_saved(run: PreparedRun, error: StreamSSLError) -> None:
    """Add to an error from which step the same command goes on."""
    saved = checkpoint.list_checkpoints(run.out)
    if saved and not isinstance(error, StreamStopped):
        step = checkpoint.read_fields(saved[-1])["step"]
        error.add_note(f"step {step} is saved; the same command continues from there")


def _train_here(
    run: PreparedRun,
    placement: Placement,
    metrics: MetricsHub,
    console: Console,
    stop: Callable[[], bool],
) -> Progress:
    """Read and train in this process; return totals of the finished steps."""
    config, out = run.config, run.out
    log_every = placement.steps_to_read(config.max_skipped_steps)
    job = crop_job(config, run.data, SourceConfig(cache=placement.cache))
    # Crops that are made on a GPU stay there.
    on_gpu = config.engine == "dali-gpu"
    manifest = run.data.manifest
    with ExitStack() as stack:
        marks = stack.enter_context(CrashMarks(out / ".crashes"))
        reading = replace(job, only_verify=on_gpu)
        threads = stack.enter_context(
            ThreadReaders(manifest, reading, placement.readers, metrics.chunk_cropped, marks)
        )
        stream = BatchStream(
            run.order,
            config.stream,
            config.admission,
            threads.submit,
            run.state.cursor,
            run.journal,
            stop,
        )
        watch_stream(metrics, config, stream, threads)
        batches = iter(stream)
        if on_gpu:
            batches = stack.enter_context(CroppedBatches(batches, TrainerCropsConfig.of(job)))
        # Nothing is written before the data has shown that it can fill a batch.
        first = next(batches)
        recorder = stack.enter_context(RunRecorder(run, placement, metrics, console))
        recorder.begin()
        stack.enter_context(run.journal.keep_in(out / JOURNAL))
        train(
            PretrainLearner(config, run.device, run.state, log_every=log_every),
            itertools.chain([first], batches),
            report=recorder.record,
            save=recorder.save,
            stop=stop,
        )
        return recorder.progress
