"""Start of a run: its folder is checked and locked, its data is listed. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cluster.membership.world_sizes import check_trainers
from shards.errors import ConfigError
from shards.inspect.class_names import ClassNames
from shards.inspect.layout_report import probe_layout
from shards.redaction import redact
from shards.samples.class_numbers import CLASSES_FILE
from shards.stores.range_reader import RangeReader
from streamssl.config.run_config import RunConfig
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig, OpenedData, open_data
from streamssl.runs.run_folder import check_out, lock_folder, prepare_data


@contextmanager
def start_run(
    config: RunConfig, data: DataConfig, out: Path, placement: Placement, console: Console
) -> Iterator[OpenedData]:
    """Lock the folder `out` and yield the data, packed first if it is local images.

    User errors are found before anything is written. Raises UserError, ShardUnreadable.
    """
    check_out(out)
    check_trainers(config.stream.batch_size, placement.trainers)
    with lock_folder(out):
        reader = RangeReader()
        opened = open_data(prepare_data(data, out, console), reader, out)
        for line in probe_layout(opened.manifest, reader, config.admission, config.label).lines:
            console.print(f"data: {line}", highlight=False, markup=False)
        yield _with_classes(opened, config, out, reader, console)


def _with_classes(
    data: OpenedData, config: RunConfig, out: Path, reader: RangeReader, console: Console
) -> OpenedData:
    """Return `data` with the class numbers of a run with labels, which stay the same in a resume.

    Raises ConfigError.
    """
    if not config.label:
        return data
    found = ClassNames(data.manifest.shards, reader)
    classes = found.numbers()
    if classes is None:
        return data
    if found.unnamed:
        console.print(
            f"data: {redact(found.unnamed[0])} has no {CLASSES_FILE}, as other shards have: its "
            "class numbers are taken as they are",
            highlight=False,
            markup=False,
        )
    saved = out / CLASSES_FILE
    if saved.exists() and tuple(saved.read_text(errors="replace").splitlines()) != classes.names:
        raise ConfigError(
            f"the classes of the shards are not those of {saved}, with which this run was started; "
            "a run keeps the numbers of its classes: name the shards it was started with, or give "
            "a new --out"
        )
    return replace(data, class_numbers=classes)
