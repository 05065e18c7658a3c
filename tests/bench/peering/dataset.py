"""CropDataset in one worker of torchdata's StatefulDataLoader; readers are threads there."""

from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from shards.dataloader.crop_dataset import CropDataset
from tests.bench.peering.ours import PACKAGE as PACKAGE
from tests.bench.peering.ours import RECIPE, Batches, Ours, SharedWork, config_of, described
from tests.bench.peering.work import Job

RESUME = "state_dict of the loader"


class Loader(Ours):
    """`CropDataset` in the loader, with as many threads as other loaders have workers."""

    def __init__(self, job: Job) -> None:
        dataset = CropDataset(job.folder, RECIPE, config_of(job), build_engine=SharedWork)
        self._loader = StatefulDataLoader(dataset, batch_size=None, num_workers=1)

    def batches(self) -> Batches:
        yield from described(iter(self._loader))

    def state(self) -> Any:
        return self._loader.state_dict()

    def load(self, state: Any) -> None:
        self._loader.load_state_dict(state)
