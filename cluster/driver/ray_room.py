"""Room for a Ray that is started here: its folder, and the memory of its object store.

Both are looked at before the start: Ray itself fails with a traceback, or is slow without a word,
or its raylet dies when a file in memory finds no page.
"""

import getpass
import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.ray_internals import MAX_SLOW_STORE_BYTES, may_be_slow, memory_for_ray, ray_folder
from shards.errors import ConfigError

SHARED_MEMORY: Final = Path("/dev/shm")
# Objects besides crops: messages, settings, results of calls.
_OTHER_BYTES: Final = 256 << 20
_SHARE: Final = 1.25  # of the crops: those that are written while others are not freed yet
_MIN_STREAM_BYTES: Final = 16 << 20  # less would hold no batch
_MAX_FOLDER: Final = 41  # characters; a socket in it has up to 66 more, and 107 are allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRoom:
    """Bytes that this machine has for objects, and the folder of Ray that takes what is left."""

    shared: int
    on_disk: int
    memory: int
    folder: Path


def store_bytes(max_bytes: int) -> int:
    """Return the size of an object store for objects of `max_bytes`."""
    return int(_SHARE * max_bytes) + _OTHER_BYTES


def look_for_room() -> StoreRoom:
    """Look at this machine. Raises ConfigError if the folder of Ray cannot be used."""
    folder = ray_folder()
    check_folder(folder)
    return StoreRoom(
        shared=_free_bytes(SHARED_MEMORY),
        on_disk=_free_bytes(_existing(folder)),
        memory=memory_for_ray(),
        folder=folder,
    )


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless Ray can make its sessions in `folder`, which may be missing."""
    there = _existing(folder)
    if not there.is_dir():
        raise ConfigError(_no_folder(folder, f"{there} is a file"))
    if not _may_write(there):
        raise ConfigError(
            _no_folder(folder, f"{there} belongs to {_owner(there)}, and only its owner may write")
        )
    if len(str(folder)) > _MAX_FOLDER:
        raise ConfigError(
            _no_folder(
                folder,
                f"it has {len(str(folder))} characters, of which {_MAX_FOLDER} leave room for "
                "the name of a socket",
            )
        )


def check_store(room: StoreRoom, max_bytes: int, stream_bytes: int) -> str:
    """Return a warning, or nothing, about a store for `max_bytes`, `stream_bytes` of them crops.

    Raises ConfigError if Ray would refuse to start, or would die when the store fills.
    """
    wanted = store_bytes(max_bytes)
    if wanted > room.memory:
        most = min(room.memory, max(room.shared, MAX_SLOW_STORE_BYTES))
        raise ConfigError(
            f"the object store of this run wants {_show(wanted)}, and this machine has "
            f"{_show(room.memory)} of memory; "
            + _remedy(_lower(most, max_bytes, stream_bytes), "take a machine with more memory")
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
        fitting = _lower(max(room.shared, room.on_disk), max_bytes, stream_bytes)
        raise ConfigError(
            f"{found}; the disk of {place} has no room for it either, {_show(room.on_disk)}; "
            + _remedy(larger, fitting, "set RAY_TMPDIR to a folder on a larger disk")
        )
    if wanted > MAX_SLOW_STORE_BYTES and not may_be_slow():
        fitting = fitting or _lower(MAX_SLOW_STORE_BYTES, max_bytes, stream_bytes)
        raise ConfigError(f"{found}; {_remedy(larger, fitting)}")
    return f"warning: {found}: crops go through files in {room.folder}, which is slow; " + _remedy(
        larger, fitting, "set RAY_TMPDIR to a folder on a fast disk"
    )


def _lower(limit: int, max_bytes: int, stream_bytes: int) -> str:
    """Return the option by which the store has at most `limit` bytes, if there is one."""
    fitting = int((limit - _OTHER_BYTES) / _SHARE) - (max_bytes - stream_bytes) - 1
    return "" if fitting < _MIN_STREAM_BYTES else f"give --stream.max-bytes {fitting}"


def _remedy(*ways: str) -> str:
    return ", or ".join(way for way in ways if way)


def _no_folder(folder: Path, why: str) -> str:
    return (
        f"Ray cannot keep its sockets and logs in {folder}: {why}; give it a short folder of your "
        f"own, RAY_TMPDIR=/tmp/ray-{_user()} before the same command, or run with --cluster none"
    )


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def _may_write(folder: Path) -> bool:
    return os.access(
        folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    )


def _owner(path: Path) -> str:
    number = path.stat().st_uid
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def _user() -> str:
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.geteuid())


def _free_bytes(folder: Path) -> int:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize


def _show(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
