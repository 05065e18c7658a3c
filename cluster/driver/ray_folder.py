"""Folder of a Ray that is started here: its sockets, logs and spilled objects.

Ray lets every user write into its own folders: another user could take the place of a socket, and
answer with objects of his own. So each session has a folder that only this user can enter.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cluster.ray_access import DEFAULT_PLACE, FOLDERS, place_of_folders
from shards.access import may
from shards.errors import ConfigError, StreamStopped, UserError
from shards.ownership import can_be_ours, owner_name

_SESSIONS: Final = "r"  # Ray lets every user write into this one
# The path of a socket has 107 bytes at most; 66 follow the folder of the sessions, and 21 are the
# private folder, as in /streamssl-12345678/r.
_MAX_PLACE: Final = 20


def check_place(place: Path) -> None:
    """Raise ConfigError unless a private folder can be made in `place`, which may be missing."""
    there = next((path for path in (place, *place.parents) if path.exists()), place)
    if not there.is_dir():
        raise ConfigError(_unusable(place, f"{there} is a file"))
    if not may(there, os.W_OK | os.X_OK):
        owner = owner_name(there.stat().st_uid)
        raise ConfigError(_unusable(place, f"you cannot write to {there}, which {owner} has"))
    length = len(os.fsencode(place))
    if length > _MAX_PLACE:
        raise ConfigError(
            _unusable(place, f"its {length} characters leave no room for the names of sockets")
        )


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder for the sessions of one Ray, whose logs stay there if the run fails.

    Raises ConfigError.
    """
    place = place_of_folders()
    check_place(place)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_nobody_replaces(place)
        folder = Path(tempfile.mkdtemp(prefix="streamssl-", dir=place))
    except OSError as error:
        raise ConfigError(_unusable(place, error.strerror or str(error))) from error
    sessions, keep = folder / _SESSIONS, False
    try:
        yield sessions
    except Exception as error:
        keep = not isinstance(error, StreamStopped | UserError)
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _check_nobody_replaces(place: Path) -> None:
    """Raise ConfigError if another user can rename a private folder in `place`.

    The folder for temporary files is that of the system, whatever its owner is called here.
    """
    if place == DEFAULT_PLACE:
        return
    found = place.stat()
    foreign = [owner for owner in (place.lstat().st_uid, found.st_uid) if not can_be_ours(owner)]
    if foreign:
        raise ConfigError(
            _unusable(place, f"it belongs to {owner_name(foreign[0])}, who could replace them")
        )
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise ConfigError(_unusable(place, "every user can replace what is in it"))


def _unusable(place: Path, why: str) -> str:
    return (
        f"Ray cannot keep its sockets and logs in {place}: {why}; set {FOLDERS} to a folder that "
        f"you can write to, whose path has at most {_MAX_PLACE} characters, such as "
        f"{FOLDERS}={DEFAULT_PLACE}/ray-{secrets.token_hex(4)}, or run with --cluster none"
    )
