"""A run from data to checkpoints: the place where the three planes are put together."""

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from cluster.feed import RayReaders
from cluster.metrics import Metrics, MetricsServer
from cluster.session import ray_session
from shards.chunks import CropJob
from shards.crashes import CrashMarks
from shards.crops.dali import DaliEngine
from shards.crops.engine import Engine
from shards.crops.opencv import OpenCVEngine
from shards.errors import ConfigError
from shards.journal import Journal
from shards.order import Order
from shards.records import ChunkCrops, Cursor
from shards.stores.disk_cache import CacheConfig
from shards.stores.sources import RangeReader, SourceConfig
from shards.stream import BatchStream, Submit, build_order, check_bytes, check_cursor
from shards.thread_readers import ThreadReaders
from streamssl import checkpoint
from streamssl.backbones import build_backbone
from streamssl.checkpoint import TrainState
from streamssl.config import RunConfig, check_same, read_toml
from streamssl.data import Data, DataConfig, open_data, open_journal
from streamssl.progress import Progress
from streamssl.run_folder import (
    JOURNAL,
    check_out,
    is_same_start,
    locked,
    prepare_data,
    write_folder,
)
from streamssl.runlog import RunLog
from streamssl.trainer import StepReport, train

# Pictures that DALI's graph takes at once: what bounds its memory.
_DALI_BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a run runs. None of it changes what is learned.

    `cluster`: "none" reads in threads of this process, "local" starts a Ray here, "auto" or
    "ray://HOST:10001" joins one. `metrics_port` 0 takes any free port of the loopback address.
    `cache` keeps what was read on a disk of every machine that reads.
    """

    cluster: str = "none"
    readers: int = 2
    metrics_port: int = 0
    cache: CacheConfig | None = None

    def __post_init__(self) -> None:
        if self.readers < 1:
            raise ConfigError(f"readers={self.readers}; it must be at least 1")
        if not 0 <= self.metrics_port <= 65_535:
            raise ConfigError(
                f"metrics_port={self.metrics_port}; it must be from 0 (any free port) to 65535"
            )
        if self.cluster not in ("none", "local", "auto") and "://" not in self.cluster:
            raise ConfigError(
                f"cluster={self.cluster!r}; it must be none, local, auto or an address such as "
                "ray://head:10001"
            )


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
        return _train(_open(config, opened, out, console), placement, console, stop)


@dataclass(frozen=True, slots=True)
class _Run:
    """All that a run is before its first batch. Its log tells what batches must be, up to the
    block `changed_from`, from which on the user wants others."""

    config: RunConfig
    data: Data
    out: Path
    order: Order
    state: TrainState
    device: torch.device
    journal: Journal
    changed_from: int | None


def _open(config: RunConfig, data: Data, out: Path, console: Console) -> _Run:
    """A run that goes on where the newest checkpoint of `out` says, or starts."""
    order = build_order(data.manifest, config.stream, config.seed, subset=data.subset_digest)
    config = _resolve(config, order)
    check_bytes(data.manifest, order, config.stream, config.crops.num_bytes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = build_state(config, device)
    resumed = _resume(config, order, state, out)
    if state.step >= config.num_steps:
        raise ConfigError(
            f"{out} has all its {config.num_steps} steps; raise --num-steps to train on, or give "
            "a new --out"
        )
    num = len(data.manifest.shards)
    shards = f"{num} shard{'s' if num > 1 else ''}"
    where = f"resuming at step {state.step}" if resumed else f"{config.num_steps} steps"
    console.print(f"{config.method_name} on {shards}, {where}, into {out}", highlight=False)
    if data.subset is not None:
        console.print(f"of them the samples of a list: {data.subset.summary}", highlight=False)
    journal, changes, since = open_journal(out / JOURNAL, order, data, state.cursor)
    for change in changes:
        console.print(f"from block {since} on {change}", highlight=False)
    if not resumed and not is_same_start(out, config, order):
        since = 0
    order = order.reweighted(journal.weights)
    return _Run(config, data, out, order, state, device, journal, since)


def _train(run: _Run, placement: Placement, console: Console, stop: Callable[[], bool]) -> Summary:
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


def build_state(config: RunConfig, device: torch.device) -> TrainState:
    """Method and optimizer with fresh weights that depend on `config.seed` alone."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.backbone, config.largest_crop)
    num_views = [group.num_views for group in config.crops.groups]
    method = config.method.build(
        backbone, num_views=num_views, seed=config.seed, num_steps=config.num_steps
    )
    method = method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(method, config.optim.build(method.parameters_to_optimise()))


def _resolve(config: RunConfig, order: Order) -> RunConfig:
    """The configuration with everything in it that was worked out from the data."""
    stream = replace(
        config.stream,
        chunk_bytes=order.config.chunk_bytes,
        chunks_per_block=order.config.chunks_per_block,
    )
    return replace(config, stream=stream)


def _resume(config: RunConfig, order: Order, state: TrainState, out: Path) -> bool:
    """Fill `state` from the newest checkpoint of `out`, if there is one that belongs there."""
    checkpoints = checkpoint.list_checkpoints(out)
    if not checkpoints:
        return False
    newest = checkpoints[-1]
    fields = checkpoint.read_fields(newest)
    checkpoint.check_method(newest, fields, config.method_name)
    cursor = Cursor.from_json(fields["cursor"])
    # Other settings often give another order too; then the setting is what must be named.
    if cursor.manifest == order.manifest:
        check_same(read_toml(out / "config.toml"), config)
    check_cursor(order, cursor)
    checkpoint.restore(newest, state, config.method_name)
    return True


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


def build_engine(config: RunConfig) -> Callable[[], Engine]:
    """What makes the crops of a run; called once by every reader."""
    if config.engine == "opencv":
        return functools.partial(OpenCVEngine, config.crops)
    device: Literal["cpu", "gpu"] = "gpu" if config.engine == "dali-gpu" else "cpu"
    return functools.partial(
        DaliEngine, config.crops, max_batch_size=_DALI_BATCH, device=device, num_threads=1
    )


def crop_job(config: RunConfig, data: Data, sources: SourceConfig | None = None) -> CropJob:
    """What every reader of a run must know."""
    return CropJob(
        recipe=config.crops,
        seed=config.seed,
        admission=config.admission,
        build_engine=build_engine(config),
        subset=data.subset,
        sources=sources or SourceConfig(),
        label=config.label,
    )


def _room(run: _Run) -> int:
    """Bytes that readers and trainer share: crops, and the list of samples."""
    subset = run.data.subset
    return run.config.stream.max_bytes + (0 if subset is None else subset.num_bytes)


@contextmanager
def _readers(run: _Run, placement: Placement, metrics: Metrics) -> Iterator[Submit[ChunkCrops]]:
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
