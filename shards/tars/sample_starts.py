"""Where samples begin in tars that were walked: n chunks of such a shard are not n walks of it.

Whatever is kept here was found by a walk from byte 0, and is used only where that walk would be
taken again. So it saves time, and changes nothing.
"""

import threading
from bisect import bisect_right, insort
from collections import OrderedDict

from shards.records import ShardInfo

# SampleStarts that lie closer together are not worth keeping.
_MIN_DISTANCE = 1 << 18
_MAX_STARTS = 1 << 14
_MAX_SHARDS = 64


class SampleStarts:
    """Offsets of one tar at which a sample begins: some of them, never more than about 16,000."""

    def __init__(self, distance: int = _MIN_DISTANCE) -> None:
        self._offsets = [0]
        self._distance = distance
        self._lock = threading.Lock()

    def before(self, offset: int) -> int:
        """The last known start that is not behind `offset`; 0 if there is none."""
        with self._lock:
            return self._offsets[bisect_right(self._offsets, max(0, offset)) - 1]

    def add(self, offset: int) -> None:
        """A sample was found to begin at `offset`."""
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
    """The starts of the shards that were walked last. Thread-safe."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[str, str], SampleStarts] = OrderedDict()
        self._lock = threading.Lock()

    def starts(self, shard: ShardInfo) -> SampleStarts:
        """Those of `shard`, to use and to add to."""
        name = (shard.uri, shard.version)
        with self._lock:
            starts = self._shards.pop(name, None) or SampleStarts()
            self._shards[name] = starts
            if len(self._shards) > _MAX_SHARDS:
                self._shards.popitem(last=False)
            return starts
