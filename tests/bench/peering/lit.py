"""LitData: its own chunks, written by `optimize`, and a loader with state."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset, optimize

from tests.bench.peering.convert import iter_shard
from tests.bench.peering.work import Job, collate, prepare, use_one_core

PACKAGE = "litdata"
RESUME = "StreamingDataLoader.state_dict"


def _write(shard: str) -> Iterator[dict[str, Any]]:
    for name, data in iter_shard(Path(shard)):
        yield {"name": name, "jpg": data}


def convert(job: Job) -> None:
    """Write the tars as chunks of 64 MB, the size in its documentation."""
    optimize(
        fn=partial(_write),
        inputs=sorted(map(str, Path(job.folder).glob("*.tar"))),
        output_dir=job.converted,
        chunk_bytes="64MB",
        num_workers=job.workers,
    )


class _Dataset(StreamingDataset):
    mode: Any = "crop"

    def __getitem__(self, index: Any) -> Any:
        sample = super().__getitem__(index)
        return sample["name"], prepare(sample["jpg"], self.mode)


class Loader:
    """`StreamingDataset(shuffle=True)` in a `StreamingDataLoader`."""

    def __init__(self, job: Job) -> None:
        dataset = _Dataset(job.converted, shuffle=True, seed=job.seed, drop_last=False)
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
