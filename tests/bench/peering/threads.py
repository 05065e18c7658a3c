"""CropDataset in this process: readers as threads, no DataLoader."""

from itertools import islice
from typing import Any

from shards.dataloader.crop_dataset import CropDataset
from shards.dataloader.sample_stream import SampleStream
from tests.bench.peering.ours import PACKAGE as PACKAGE
from tests.bench.peering.ours import RECIPE, Batches, Ours, SharedWork, config_of, described
from tests.bench.peering.ours import RESUME as RESUME
from tests.bench.peering.work import Job


class Loader(Ours):
    """`CropDataset` for crops, `SampleStream` for bytes."""

    engine: Any = SharedWork

    def __init__(self, job: Job) -> None:
        self._job = job
        self._dataset = CropDataset(job.folder, RECIPE, config_of(job), build_engine=self.engine)

    def batches(self) -> Batches:
        if self._job.mode == "crop":
            yield from described(iter(self._dataset))
            return
        samples = iter(SampleStream(self._job.folder, config_of(self._job)))
        while batch := list(islice(samples, self._job.batch_size)):
            names = [f"{p.sample.shard}:{p.sample.offset}" for p in batch]
            epochs = [sample.epoch for sample in batch]
            yield names, epochs, [sample.sample.fields["jpg"] for sample in batch]

    def state(self) -> Any:
        return self._dataset.state_dict()

    def load(self, state: Any) -> None:
        self._dataset.load_state_dict(state)
