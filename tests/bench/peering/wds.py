"""webdataset: shards in random order, a shuffle buffer, shards divided among workers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset
from torch.utils.data import DataLoader

from tests.bench.peering.work import SHUFFLE_BUFFER, Job, collate, prepare, use_one_core

PACKAGE = "webdataset"
RESUME = "none: the maintainers advise resampling instead of a resume"


def pipeline(job: Job) -> Any:
    """Return the pipeline from shards to batches, with a seeded shuffle."""
    shards = sorted(map(str, Path(job.folder).glob("*.tar")))
    samples = webdataset.WebDataset(
        shards, shardshuffle=len(shards), seed=job.seed, detshuffle=True, empty_check=False
    )
    named = samples.shuffle(SHUFFLE_BUFFER, seed=job.seed).map(
        lambda sample: (sample["__key__"], prepare(sample["jpg"], job.mode))
    )
    return named.batched(job.batch_size, collation_fn=collate, partial=True)


class Loader:
    """`webdataset.WebDataset` in a plain DataLoader."""

    loader_class: Any = DataLoader

    def __init__(self, job: Job) -> None:
        self._loader = self.loader_class(
            pipeline(job),
            batch_size=None,
            num_workers=job.workers,
            worker_init_fn=use_one_core,
            persistent_workers=True,
        )

    def epoch(self) -> Iterator[tuple[list[str], Any]]:
        yield from self._loader

    def state(self) -> Any:
        return None

    def load(self, state: Any) -> None:
        assert json.dumps(state) == "null"
