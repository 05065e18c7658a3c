"""Start of a run: its folder is checked and locked, its data is listed. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cluster.membership.world_sizes import check_trainers
from shards.inspect.layout_report import probe_layout
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
        yield opened
