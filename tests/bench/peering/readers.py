"""Ours, with readers as Ray actors: processes of this machine here, of any machine in a cluster."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from cluster.fixed_readers import RayReaders
from cluster.session import ray_session
from shards.cropper import CropJob
from shards.records import CropBatch
from shards.standalone import OpenData, Place
from shards.stream import BatchStream
from tests.bench.peering.ours import PACKAGE as PACKAGE
from tests.bench.peering.ours import RECIPE, Batches, Ours, SharedWork, config_of, described
from tests.bench.peering.ours import RESUME as RESUME
from tests.bench.peering.work import Job


class Loader(Ours):
    """`BatchStream` on `RayReaders`, one core each."""

    def __init__(self, job: Job) -> None:
        self._config = config_of(job)
        self._data = OpenData(job.folder, self._config)
        self._place = self._data.beginning()
        self._stack = ExitStack()
        stream = self._config.stream
        self._stack.enter_context(ray_session("local", job.workers, stream.max_bytes))
        crop_job = CropJob(
            recipe=RECIPE,
            seed=job.seed,
            admission=self._config.admission,
            build_engine=partial(SharedWork, RECIPE),
        )
        self._readers = self._stack.enter_context(
            RayReaders(self._data.manifest, crop_job, job.workers)
        )

    def batches(self) -> Batches:
        journal = self._data.journal(self._place)
        stream = BatchStream(
            self._data.order,
            self._config.stream,
            self._config.admission,
            self._readers.submit,
            self._place.cursor,
            journal,
        )

        def remember() -> Iterator[CropBatch]:
            for batch in stream:
                self._place = Place(batch.cursor, journal.entries)
                yield batch

        yield from described(remember())

    def state(self) -> Any:
        return self._place.state()

    def load(self, state: Any) -> None:
        self._place = self._data.place(state)
