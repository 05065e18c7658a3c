"""Readers as Ray actors: processes, which a cluster places on any machine."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import ray

from cluster.driver.ray_session import ray_session
from shards.crops.sample_cropper import CropJob
from shards.dataloader.open_data import OpenData, StreamPosition
from shards.records import CropBatch
from tests.bench.peering.ours import PACKAGE as PACKAGE
from tests.bench.peering.ours import RECIPE, Batches, Ours, SharedWork, config_of, described
from tests.bench.peering.ours import RESUME as RESUME
from tests.bench.peering.work import Job
from tests.cluster.data_path import DataPath


class Loader(Ours):
    """A feed with readers of one core each."""

    def __init__(self, job: Job) -> None:
        self._config = config_of(job)
        self._data = OpenData(job.folder, self._config)
        self._place = self._data.beginning()
        self._stack, self._term = ExitStack(), 1
        stream = self._config.stream
        self._stack.enter_context(ray_session("local", job.workers, stream.max_bytes))
        crop_job = CropJob(
            recipe=RECIPE,
            seed=job.seed,
            admission=self._config.admission,
            build_engine=partial(SharedWork, RECIPE),
        )
        self._path = self._stack.enter_context(
            DataPath(self._data.manifest, crop_job, stream, job.workers, steps_ahead=16)
        )

    def batches(self) -> Batches:
        self._term += 1
        start = {"term": self._term, "order": self._data.order, "entries": self._place.entries}
        ray.get(self._path.control.begin.remote(cursor=self._place.cursor, **start))

        def remember() -> Iterator[CropBatch]:
            with self._path.feed() as feed:
                feed.enter(0, 1, 0)
                for step in itertools.count(1):
                    batch = feed.next()
                    self._path.control.committed.remote(step)
                    entries = tuple(self._path.tell("status")["entries"])
                    self._place = StreamPosition(batch.cursor, entries)
                    yield batch

        yield from described(remember())

    def state(self) -> Any:
        return self._place.state()

    def load(self, state: Any) -> None:
        self._place = self._data.position(state)
