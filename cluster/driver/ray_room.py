"""Room for the object store of a Ray that is started here.

It is looked at before the start: Ray itself fails with a traceback, or is slow without a word, or
its raylet dies when a file in memory finds no page.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.ray_internals import MAX_SLOW_STORE_BYTES, may_be_slow, memory_for_ray
from shards.errors import ConfigError

SHARED_MEMORY: Final = Path("/dev/shm")
# Objects besides crops: messages, settings, results of calls.
_OTHER_BYTES: Final = 256 << 20
_SHARE: Final = 1.25  # of the crops: those that are written while others are not freed yet
_MIN_STREAM_BYTES: Final = 16 << 20  # less would hold no batch


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRoom:
    """Bytes that this machine has for objects, and the folder of Ray, which takes what is left."""

    shared: int
    on_disk: int
    memory: int
    folder: Path


def store_bytes(max_bytes: int) -> int:
    """Return the size of an object store for objects of `max_bytes`."""
    return int(_SHARE * max_bytes) + _OTHER_BYTES


def look_for_room(folder: Path) -> StoreRoom:
    """Look at this machine, on which Ray will keep its sessions in `folder`."""
    return StoreRoom(
        shared=_free_bytes(SHARED_MEMORY),
        on_disk=_free_bytes(folder.parent),
        memory=memory_for_ray(),
        folder=folder,
    )


def check_store(room: StoreRoom, max_bytes: int, stream_bytes: int) -> str:
    """Return a warning, or nothing, about a store for `max_bytes`, `stream_bytes` of them crops.

    Raises ConfigError if Ray would refuse to start, or would die when the store fills.
    """
    wanted = store_bytes(max_bytes)
    slow = room.on_disk if may_be_slow() else min(room.on_disk, MAX_SLOW_STORE_BYTES)
    accepted = _lower(min(room.memory, max(room.shared, slow)), max_bytes, stream_bytes)
    if wanted > room.memory:
        raise ConfigError(
            f"the object store of this run wants {_show(wanted)}, and this machine has "
            f"{_show(room.memory)} of memory; "
            + _remedy(accepted, "take a machine with more memory")
        )
    if wanted <= room.shared:
        return ""
    found = (
        f"{SHARED_MEMORY} has {_show(room.shared)} free, and the object store of this run wants "
        f"{_show(wanted)}"
    )
    larger = f"in a container give `docker run --shm-size={-(-wanted * 11 // 10 >> 20)}m`"
    fitting = _lower(room.shared, max_bytes, stream_bytes)
    if wanted > room.on_disk:
        place = room.folder.parent
        raise ConfigError(
            f"{found}; the disk of {place} has no room for it either, {_show(room.on_disk)}; "
            + _remedy(larger, accepted, "set RAY_TMPDIR to a folder on a larger disk")
        )
    if wanted > MAX_SLOW_STORE_BYTES and not may_be_slow():
        raise ConfigError(f"{found}; {_remedy(larger, fitting or accepted)}")
    return f"warning: {found}: crops go through files in {room.folder}, which is slow; " + _remedy(
        larger, fitting, "set RAY_TMPDIR to a folder on a fast disk"
    )


def _lower(limit: int, max_bytes: int, stream_bytes: int) -> str:
    """Return the option by which the store has at most `limit` bytes, if there is one."""
    fitting = int((limit - _OTHER_BYTES) / _SHARE) - (max_bytes - stream_bytes) - 1
    return "" if fitting < _MIN_STREAM_BYTES else f"give --stream.max-bytes {fitting}"


def _remedy(*ways: str) -> str:
    return ", or ".join(way for way in ways if way)


def _free_bytes(folder: Path) -> int:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize


def _show(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
