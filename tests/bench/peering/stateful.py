"""webdataset in torchdata's StatefulDataLoader, which resumes by reading everything again."""

from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from tests.bench.peering import wds

PACKAGE = "torchdata"
RESUME = "state_dict of the loader; the pipeline has none, so its batches are replayed and dropped"


class Loader(wds.Loader):
    """The pipeline of `wds` with the resume of torchdata."""

    loader_class = StatefulDataLoader

    def state(self) -> Any:
        return self._loader.state_dict()

    def load(self, state: Any) -> None:
        self._loader.load_state_dict(state)
