"""File systems: locks and flushes that some of them lack, and failed writes in words.

Network and user-space file systems may refuse `flock`, or `fsync` of a folder. A process goes on
without them, after one warning for each file system.
"""

import errno
import fcntl
import logging
import os
import threading
from pathlib import Path

from shards.access import explain_denied, raise_denied
from shards.errors import StorageFailed, UserError

# What systems answer that do not have the call: for this file, or at all. NFS answers EBADF to an
# exclusive lock of a folder, SMB to a flush of one.
_MISSING = {
    *(errno.ENOSYS, errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL),
    *(errno.ENOTTY, errno.EISDIR),
}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
_REFUSED = {errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BROKEN = {errno.EIO, errno.EFBIG, errno.ENODEV, errno.ENXIO}

_ALONE = "the work goes on without them: use this folder from one process at a time"

_log = logging.getLogger(__name__)
_told: set[tuple[str | int, ...]] = set()
_telling = threading.Lock()


def lock_file(descriptor: int, operation: int, path: Path, without: str = _ALONE) -> bool:
    """Call `flock`; return False after one warning if the file system of `path` has no locks.

    `without` says what that means for the user. Raises BlockingIOError if another process holds
    the lock, and OSError for other failures.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        found = f"the file system of {path} has no locks (flock: {error.strerror}); {without}"
        _tell(("lock", without), descriptor, found)
        return False
    return True


def flush_descriptor(descriptor: int, path: Path) -> None:
    """Flush an open file or folder to disk; warn once if its file system cannot.

    Raises OSError, such as that of a full disk.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        found = (
            f"the file system of {path} cannot flush to disk (fsync: {error.strerror}); the work "
            "goes on without it: what was written last may be lost if this machine loses power"
        )
        _tell(("flush",), descriptor, found)


def _tell(kind: tuple[str, ...], descriptor: int, text: str) -> None:
    """Warn once for each kind and file system."""
    try:
        device = os.fstat(descriptor).st_dev
    except OSError:
        device = -1
    with _telling:
        if (*kind, device) in _told:
            return
        _told.add((*kind, device))
    _log.warning("%s", text)


def is_storage_failure(error: OSError) -> bool:
    """Return True for a full disk, a quota, or a device that fails: never an error of ours."""
    return error.errno in _FULL | _BROKEN | {errno.ESTALE}


def cannot_write(
    error: OSError, path: Path, then: str = "then start the same command again"
) -> UserError:
    """Return the error to raise when a file cannot be written: found, and a remedy.

    `then` is what to do once there is room. Raises AccessDenied for a refusal.
    """
    raise_denied(error, path)
    return StorageFailed(f"{path} cannot be written: {explain_storage(error, path)}, {then}")


def explain_storage(error: OSError, path: Path | str | None = None) -> str:
    """Return the cause of a failed write and the first half of its remedy."""
    name = path if path is not None else error.filename
    folder = _existing(Path(str(name))) if name is not None else Path()
    if error.errno == errno.ENOSPC:
        return f"the disk is full (`df -h {folder}` and `df -i {folder}` show it); make room there"
    if error.errno == errno.EFBIG:
        return "files may not become larger (`ulimit -f` shows the limit); raise it"
    if error.errno == errno.EDQUOT:
        return "your quota of the disk is used up; make room there, or ask for more"
    if error.errno in _GONE:
        return f"its folder was removed or moved ({error.strerror}); put it back"
    if error.errno == errno.EROFS:
        return "its file system is read-only; mount it for writing"
    reason = error.strerror or str(error)
    if error.errno in _REFUSED:
        return f"{reason}; give this user the permission"
    return f"{reason}; check the disk (`df -h {folder}` shows its device)"


def explain_failure(error: OSError) -> str:
    """Return a sentence for the user about a refusal or a failure of the disk."""
    if not is_storage_failure(error):
        return explain_denied(error)
    name = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return f"{name}{explain_storage(error)}, then start the same command again"


def _existing(path: Path) -> Path:
    return next((one for one in (path, *path.parents) if one.is_dir()), path.parent)
