"""Access to files: a refusal of the system in words, with a remedy for the owner of the file."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from shards.errors import AccessDenied

_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS}


def raise_denied(error: BaseException, path: Path | str | None = None) -> None:
    """Raise AccessDenied if `error` is a refusal of access to `path`; else do nothing.

    The path is that of the error if it has one. Refused files are whole: they must not be called
    damaged.
    """
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        raise AccessDenied(explain_denied(error, path)) from error


def check_readable(path: Path) -> None:
    """Raise AccessDenied if this process may not read the file. For readers that hide the reason.

    A missing file is left to the reader.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise_denied(error, path)


def explain_denied(error: OSError, path: Path | str | None = None) -> str:
    """Return a sentence for the user about a refusal of access."""
    name = error.filename if isinstance(error.filename, str) else path
    if name is None:
        return f"{error}; run as a user with this permission"
    # An atomic write begins with a hidden draft of the file that the user knows.
    path = Path(re.sub(r"\.([^/]+)\.draft$", r"\1", str(name)))
    if error.errno == errno.EROFS:
        return f"{path} cannot be written: its file system is read-only; name a folder on another"
    closed = _closed_folder(path)
    if closed is not None:
        return (
            f"{path} cannot be reached: permission denied for the folder {closed}; ask its owner "
            f"for `chmod a+x {closed}`"
        )
    folder = path if path.is_dir() else path.parent
    if path.exists() and not may(path, os.R_OK):
        return (
            f"{path} cannot be read: permission denied; ask its owner for `chmod -R a+rX {folder}`"
        )
    return (
        f"{path} cannot be written: permission denied; ask the owner of {folder} for "
        f"`chmod -R a+rwX {folder}`, or name another folder"
    )


def _closed_folder(path: Path) -> Path | None:
    """Return the outermost folder above `path` that this process may not enter."""
    for folder in reversed(path.absolute().parents):
        with suppress(OSError):
            if folder.is_dir() and not may(folder, os.X_OK):
                return folder
    return None


def may(path: Path, mode: int) -> bool:
    """Return True if this process has these rights, such as `os.W_OK`, over a path."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
