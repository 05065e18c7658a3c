"""CropDataset in this process, with the engine of a run instead of the shared work."""

from shards.crops.native import NativeEngine
from tests.bench.peering import threads
from tests.bench.peering.ours import PACKAGE as PACKAGE
from tests.bench.peering.ours import RESUME as RESUME


class Loader(threads.Loader):
    """Loader that decodes large JPEGs at a reduced size, so its rate is not comparable."""

    engine = NativeEngine
