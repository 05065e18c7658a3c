"""Ours, in this process, with the engine of a run in the place of the shared work."""

from shards.crops.opencv import OpenCVEngine
from tests.bench.peering import threads
from tests.bench.peering.ours import PACKAGE as PACKAGE
from tests.bench.peering.ours import RESUME as RESUME


class Loader(threads.Loader):
    """It decodes large JPEGs at a fraction of their size, so it is no comparison of loaders."""

    engine = OpenCVEngine
