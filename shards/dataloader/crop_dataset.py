"""Batches of crops for a plain `torch.utils.data.DataLoader`.

    loader = DataLoader(CropDataset("shards/", swav()), batch_size=None)

The dataset forms the batches and reads with its own threads, so a loader needs at most one worker.
Each batch carries the state that follows it; torchdata's StatefulDataLoader saves it by itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from shards.crops.engine import Engine
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe
from shards.crops.sample_cropper import CropJob
from shards.dataloader.open_data import OpenData, ReadConfig, StreamPosition
from shards.dataloader.tensors import to_tensors
from shards.errors import ConfigError
from shards.records import CropBatch
from shards.stream.batch_stream import BatchStream, check_bytes
from shards.stream.order import deal
from shards.stream.thread_readers import ThreadReaders


class TensorBatch(NamedTuple):
    """One batch, or the rows of one rank. N samples, V views of a group, S pixels.

    `views` has a tensor for every view group: as "uint8" (N, V, S, S, 3), channels last; as
    "normalised" float32 (V * N, 3, S, S), view-major, with ImageNet's mean and deviation. `ids`
    (N, 2) are shard row and header offset, `epochs` is (N,). `digest` covers the samples of all
    ranks. `state` is the argument of `CropDataset.load_state_dict` to continue after this batch.
    """

    views: list[torch.Tensor]
    ids: torch.Tensor
    epochs: torch.Tensor
    digest: str
    state: dict[str, Any]


class CropDataset(IterableDataset[TensorBatch]):
    """Endless batches of the crops of `recipe` from the shards of `patterns`.

    Use a DataLoader with `batch_size=None` and `num_workers` 0 or 1. Rank `rank` of `world` gets
    its rows of every batch of `config.stream.batch_size`. Every iteration begins at the state of
    `load_state_dict`, or at the start. Raises UserError, ShardUnreadable.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        recipe: CropRecipe,
        config: ReadConfig | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        form: Literal["uint8", "normalised"] = "uint8",
        build_engine: Callable[[CropRecipe], Engine] = NativeEngine,
    ) -> None:
        super().__init__()
        config = config or ReadConfig()
        if not 0 <= rank < world:
            raise ConfigError(
                f"rank={rank} of world={world}; rank must be from 0 to world - 1: give the number "
                "of this process, and the number of processes"
            )
        self._rows = deal(config.stream.batch_size, rank, world)
        self._data, self._form = OpenData(patterns, config), form
        check_bytes(self._data.manifest, self._data.order, config.stream, recipe.num_bytes)
        self._job = CropJob(
            recipe=recipe,
            seed=config.seed,
            admission=config.admission,
            build_engine=partial(build_engine, recipe),
            subset=config.subset,
            sources=config.sources,
        )
        self._start = self._delivered = self._data.beginning()
        # Shared memory: a worker sets it, because the main process cannot know the worker's state.
        self._in_worker = torch.zeros(1, dtype=torch.bool).share_memory_()

    def __iter__(self) -> Iterator[TensorBatch]:
        self._check_workers()
        data, self._delivered = self._data, self._start
        journal = data.journal(self._start)
        with ThreadReaders(data.manifest, self._job, data.config.num_readers) as readers:
            stream = BatchStream(
                data.order,
                data.config.stream,
                data.config.admission,
                readers.submit,
                self._start.cursor,
                journal,
            )
            for batch in stream:
                self._delivered = StreamPosition(batch.cursor, journal.entries)
                yield self._tensors(batch, self._delivered)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the latest batch of this process, as JSON values."""
        if bool(self._in_worker) and get_worker_info() is None:
            raise ConfigError(
                "state_dict() was called in the main process, but the batches come from a worker, "
                "which reads ahead; save batch.state of the last batch that was used, or use "
                "torchdata's StatefulDataLoader, or num_workers=0"
            )
        return self._delivered.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin every later iteration after the batch of `state`."""
        self._start = self._delivered = self._data.position(state)

    def _check_workers(self) -> None:
        worker = get_worker_info()
        if worker is None:
            return
        if worker.num_workers > 1:
            raise ConfigError(
                f"num_workers={worker.num_workers}, but every worker would make all batches; give "
                "the loader num_workers=0 or 1, and raise num_readers, the number of threads"
            )
        self._in_worker.fill_(True)

    def _tensors(self, batch: CropBatch, position: StreamPosition) -> TensorBatch:
        crops = [group[self._rows] for group in batch.crops]
        if self._form == "uint8":
            views = [torch.from_numpy(group) for group in crops]
        else:
            views = to_tensors(crops, "cpu")
        return TensorBatch(
            views,
            torch.from_numpy(batch.ids[self._rows]),
            torch.from_numpy(batch.epochs[self._rows]),
            batch.digest,
            position.state(),
        )
