"""MosaicML Streaming: its own MDS format, a precomputed order, and a loader with state."""

from collections.abc import Iterator
from typing import Any

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from tests.bench.peering.convert import iter_samples
from tests.bench.peering.work import Job, collate, prepare, use_one_core

PACKAGE = "mosaicml-streaming"
RESUME = "StreamingDataLoader.state_dict, after clean_stale_shared_memory()"


def convert(job: Job) -> None:
    """Write the tars as MDS, in shards of the default size."""
    columns = {"name": "str", "jpg": "bytes"}
    with MDSWriter(out=job.converted, columns=columns) as writer:
        for name, data in iter_samples(job.folder):
            writer.write({"name": name, "jpg": data})


class _Dataset(StreamingDataset):
    mode: Any = "crop"

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return sample["name"], prepare(sample["jpg"], self.mode)


class Loader:
    """`StreamingDataset(shuffle=True)` in a `StreamingDataLoader`."""

    def __init__(self, job: Job) -> None:
        clean_stale_shared_memory()
        dataset = _Dataset(
            local=job.converted, shuffle=True, shuffle_seed=job.seed, batch_size=job.batch_size
        )
        dataset.mode = job.mode
        self._loader = StreamingDataLoader(
            dataset,
            batch_size=job.batch_size,
            num_workers=job.workers,
            collate_fn=collate,
            worker_init_fn=use_one_core,
            persistent_workers=True,
        )

    def epoch(self) -> Iterator[tuple[list[str], Any]]:
        yield from self._loader

    def state(self) -> Any:
        return self._loader.state_dict()

    def load(self, state: Any) -> None:
        self._loader.load_state_dict(state)
