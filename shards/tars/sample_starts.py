"""Cache of offsets at which samples begin, for tars that are walked from byte 0.

It makes n chunks of such a tar cost about one walk instead of n. The offsets come from walks from
byte 0 and are used only to shorten such walks, so they never change a result.
"""

import threading
from bisect import bisect_right, insort
from collections import OrderedDict

from shards.records import ShardInfo

# Starts that are closer together save too little to keep.
_MIN_DISTANCE = 1 << 18
_MAX_STARTS = 1 << 14
_MAX_SHARDS = 64


class SampleStarts:
    """Some offsets of one tar at which a sample begins, at most about 16,000. Thread-safe."""

    def __init__(self, distance: int = _MIN_DISTANCE) -> None:
        self._offsets = [0]
        self._distance = distance
        self._lock = threading.Lock()

    def before(self, offset: int) -> int:
        """Return the last known start at or before `offset`; 0 if there is none."""
        with self._lock:
            return self._offsets[bisect_right(self._offsets, max(0, offset)) - 1]

    def add(self, offset: int) -> None:
        with self._lock:
            at = bisect_right(self._offsets, offset)
            if offset - self._offsets[at - 1] < self._distance:
                return
            if at < len(self._offsets) and self._offsets[at] - offset < self._distance:
                return
            insort(self._offsets, offset)
            if len(self._offsets) > _MAX_STARTS:
                self._distance *= 2
                self._offsets = self._offsets[::2]


class SampleStartCache:
    """Sample starts of the shards that were walked most recently. Thread-safe."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[str, str], SampleStarts] = OrderedDict()
        self._lock = threading.Lock()

    def of_shard(self, shard: ShardInfo) -> SampleStarts:
        """Return the starts of `shard`, to read and to extend."""
        name = (shard.uri, shard.version)
        with self._lock:
            starts = self._shards.pop(name, None) or SampleStarts()
            self._shards[name] = starts
            if len(self._shards) > _MAX_SHARDS:
                self._shards.popitem(last=False)
            return starts
