"""A batch of a run, made again: the very crops that a step was trained on, from ids alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from shards.records import CropBatch, Cursor
from shards.samples.subset import load_subset
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.journal import Journal
from shards.stream.manifest_file import read_manifest
from shards.stream.thread_readers import ThreadReaders
from streamssl.config.run_config import read_toml
from streamssl.errors import ReplayDiffers
from streamssl.runs.crop_job import crop_job
from streamssl.runs.file_names import JOURNAL
from streamssl.runs.metrics_log import read_log
from streamssl.runs.run_data import DataConfig, OpenedData, open_data, read_data


def open_batch(
    run: Path, step: int, reader: RangeReader, data: DataConfig | None = None, num_readers: int = 2
) -> CropBatch:
    """The batch of step `step` (from 1) of the run in the folder `run`.

    `data` names the shards again, where their saved addresses do not open them: they were signed.
    Raises ConfigError, ManifestError, CursorMismatch, ShardUnreadable; ReplayDiffers when it is not
    the batch that was logged.
    """
    log = read_log(run)
    if step not in log:
        known = f"steps {min(log)} to {max(log)}" if log else "no step"
        raise ConfigError(f"step {step} is not in {run}/metrics.jsonl, which has {known}: name one")
    config = read_toml(run / "config.toml")
    opened = open_data(data, reader) if data else open_saved(run)
    order = build_order(opened.manifest, config.stream, config.seed, subset=opened.subset_digest)
    journal = Journal.read(run / JOURNAL, order.manifest, order.digest, anew=False)
    order = order.reweighted(journal.weights)
    place = _place_before(run, step, log)
    cursor = Cursor(manifest=order.manifest, order=order.digest, block=place[0], slot=place[1])
    # What was spent of the budget before is not known here.
    lenient = replace(config.admission, max_reject_fraction=1.0)
    with ThreadReaders(opened.manifest, crop_job(config, opened), num_readers) as readers:
        stream = BatchStream(order, config.stream, lenient, readers.submit, cursor, journal)
        batch = next(iter(stream))
    if batch.digest != log[step]["digest"]:
        raise ReplayDiffers(
            f"step {step} was trained on batch {log[step]['digest']}, and {batch.digest} is what "
            "comes now; the order must never change: keep this folder and report it"
        )
    return batch


def _place_before(run: Path, step: int, log: dict[int, dict[str, Any]]) -> tuple[int, int]:
    """Where the batch of `step` begins."""
    if step == 1:
        return 0, 0
    before = log.get(step - 1, {}).get("cursor")
    if before is None:
        raise ConfigError(
            f"{run}/metrics.jsonl does not say where step {step - 1} ended; runs of this version "
            "write it down as 'cursor': name a step of such a run"
        )
    return before[0], before[1]


def open_saved(run: Path) -> OpenedData:
    """The data of a run as it wrote it down. Raises ConfigError, ManifestError."""
    saved = read_data(run / "data.toml")
    manifest = read_manifest(run / "manifest.parquet")
    return OpenedData(saved, manifest, load_subset(saved.subset) if saved.subset else None, ())
