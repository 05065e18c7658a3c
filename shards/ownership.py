"""Ownership of files: files that only this user can read, and files that another user wrote."""

import contextlib
import os
import pwd
import stat
from pathlib import Path

from shards.errors import ConfigError

_ROOT = 0
_MAX_BYTES = 1 << 16
_PRIVATE_MODE = 0o600


def can_be_ours(owner: int) -> bool:
    """Return True for this user and for root, who can do everything as this user anyway."""
    return owner in (os.geteuid(), _ROOT)


def owner_name(owner: int) -> str:
    """Return how a message names a user."""
    try:
        return f"user {pwd.getpwuid(owner).pw_name}"
    except KeyError:
        return f"user {owner}"


def write_private(path: Path, text: str) -> None:
    """Replace a file by a new one that no other user can read. Raises OSError."""
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    # The file must be private before it has content, whatever the umask is.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(draft, flags, _PRIVATE_MODE)
    try:
        with open(descriptor, "w") as file:
            file.write(text)
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def read_own(path: Path, remedy: str) -> str:
    """Return the text of a small file that this user, or root, wrote.

    Raises ConfigError with `remedy` for a file of another user, or a link, which leads to a file
    that its maker chose. Raises OSError. What is checked is the open file: its name may be replaced
    meanwhile.
    """
    if path.is_symlink():
        raise ConfigError(f"{path} is a link, and could lead to a file of any other run; {remedy}")
    # Without O_NONBLOCK the open of a pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is no file; {remedy}")
        if not can_be_ours(found.st_uid):
            raise ConfigError(
                f"{path} belongs to {owner_name(found.st_uid)}, and only its owner may use it; "
                f"{remedy}"
            )
        return file.read(_MAX_BYTES).decode(errors="replace")
