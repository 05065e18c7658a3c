"""Ray Data: `read_webdataset`, a map over batches, and a shuffle buffer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from tests.bench.peering.work import SHUFFLE_BUFFER, Job, prepare, use_one_core

PACKAGE = "ray"
RESUME = "none: the dataset is executed again from its start"


class Loader:
    """A dataset of files in random order, with as many CPUs as workers."""

    def __init__(self, job: Job) -> None:
        ray.init(num_cpus=job.workers, include_dashboard=False, log_to_driver=False)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = job.ordered
        self._job = job
        mode = job.mode

        def work(batch: dict[str, Any]) -> dict[str, Any]:
            use_one_core()
            made = [prepare(bytes(data), mode) for data in batch["jpg"]]
            column = np.stack(made) if mode == "crop" else np.array(made, object)
            return {"name": batch["__key__"], "made": column}

        shards = sorted(map(str, Path(job.folder).glob("*.tar")))
        self._dataset = ray.data.read_webdataset(
            shards, decoder=None, shuffle=ray.data.FileShuffleConfig(seed=job.seed)
        ).map_batches(work, batch_size=job.batch_size)

    def epoch(self) -> Iterator[tuple[list[str], Any]]:
        batches = self._dataset.iter_batches(
            batch_size=self._job.batch_size,
            local_shuffle_buffer_size=SHUFFLE_BUFFER,
            local_shuffle_seed=self._job.seed,
        )
        for batch in batches:
            yield [str(name) for name in batch["name"]], batch["made"]

    def state(self) -> Any:
        return None

    def load(self, state: Any) -> None:
        assert state is None
