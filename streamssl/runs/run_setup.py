"""A run before its first batch: what it is, where it goes on, and what its readers must know."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from shards.crops.dali import DaliEngine
from shards.crops.engine import Engine
from shards.crops.opencv import OpenCVEngine
from shards.crops.sample_cropper import CropJob
from shards.errors import ConfigError
from shards.records import Cursor
from shards.stores.range_reader import SourceConfig
from shards.stream.batch_stream import build_order, check_bytes
from shards.stream.journal import Journal
from shards.stream.order import Order
from shards.stream.sample_slots import check_cursor
from streamssl import checkpoint
from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig, check_same, read_toml
from streamssl.runs.file_names import JOURNAL
from streamssl.runs.run_data import Data, open_journal
from streamssl.runs.run_folder import is_same_start
from streamssl.training.train_state import build_state

# Images that DALI's graph takes at once: what bounds its memory.
_DALI_BATCH = 32


@dataclass(frozen=True, slots=True)
class Run:
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


def open_run(config: RunConfig, data: Data, out: Path, console: Console) -> Run:
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
    return Run(config, data, out, order, state, device, journal, since)


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
