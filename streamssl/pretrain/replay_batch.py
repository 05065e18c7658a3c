"""Replay of a batch: the exact crops of a step of a run, made again from sample ids."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from shards.records import CropBatch, Cursor
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.journal import Journal
from shards.stream.thread_readers import ThreadReaders
from streamssl.config.run_config import RunConfig, check_definition, read_toml
from streamssl.errors import ReplayDiffers
from streamssl.pretrain.saved_data import open_saved_data
from streamssl.runs.crop_job import crop_job
from streamssl.runs.file_names import JOURNAL
from streamssl.runs.logs.metrics_log import read_log
from streamssl.runs.run_branch import values_at
from streamssl.runs.run_data import DataConfig, open_data


def open_batch(
    run: Path, step: int, reader: RangeReader, data: DataConfig | None = None, num_readers: int = 2
) -> CropBatch:
    """Return the batch of step `step` (from 1) of the run in the folder `run`.

    `data` names the shards again if their saved addresses were signed and cannot be opened. Raises
    ConfigError, ManifestError, CursorMismatch, ShardUnreadable; ReplayDiffers if the batch is not
    the one in the log.
    """
    log = read_log(run)
    if step not in log:
        known = f"steps {min(log)} to {max(log)}" if log else "no step"
        raise ConfigError(f"step {step} is not in {run}/metrics.jsonl, which has {known}: name one")
    config = _settings_at(run, step)
    check_definition(config)
    opened = open_data(data, reader) if data else open_saved_data(run)
    order = build_order(opened.manifest, config.stream, config.seed, subset=opened.subset_digest)
    journal = Journal.read(run / JOURNAL, order.manifest, order.digest, replace_other=False)
    order = order.reweighted(journal.weights)
    block, slot = _batch_begin(run, step, log)
    cursor = Cursor(manifest=order.manifest, order=order.digest, block=block, slot=slot)
    # The rejects of earlier steps are not counted here, so the budget must not apply.
    lenient = replace(config.admission, max_reject_fraction=1.0)
    with ThreadReaders(opened.manifest, crop_job(config, opened), num_readers) as readers:
        stream = BatchStream(order, config.stream, lenient, readers.submit, cursor, journal)
        batch = next(iter(stream))
    if batch.digest != log[step]["digest"]:
        raise ReplayDiffers(
            f"step {step} was trained on batch {log[step]['digest']}, but the order now gives "
            f"{batch.digest}; the order must never change: keep this folder and report it"
        )
    return batch


def _settings_at(run: Path, step: int) -> RunConfig:
    """Return the settings of a run, with those of its crops as they were at a step."""
    before = values_at(run, step)
    changed = {name: before[name] for name in ("engine", "crop_definition") if name in before}
    return replace(read_toml(run / "config.toml"), **changed)


def _batch_begin(run: Path, step: int, log: dict[int, dict[str, Any]]) -> tuple[int, int]:
    """Return block and slot at which the batch of `step` begins."""
    if step == 1:
        return 0, 0
    before = log.get(step - 1, {}).get("cursor")
    if before is None:
        raise ConfigError(
            f"{run}/metrics.jsonl does not tell where step {step - 1} ended; runs of this version "
            "write it as 'cursor': name a step of such a run"
        )
    return before[0], before[1]
