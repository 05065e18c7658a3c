"""`tests.drills.calm` for which one folder is a small disk, in memory; nobody else sees it.

The processes that it becomes have mounts of their own, so nothing is left when they end.
"""

import os
import subprocess
import sys

from tests.drills import calm

PROGRAM = "tests.drills.small_disk"
PLACE = "STREAMSSL_DRILL_DISK"  # names the folder, in the environment
_APART = ("unshare", "--map-root-user", "--mount")


def is_possible() -> bool:
    """Whether this system lets a process have mounts of its own."""
    try:
        command = (*_APART, "mount", "-t", "tmpfs", "small-disk", "/mnt")
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def with_disk(size: str, *command: str) -> tuple[str, list[str]]:
    """Return a program and its words that run the command with a disk of this size."""
    mount = f'mount -t tmpfs -o size={size} small-disk "${PLACE}"'
    shell = ("sh", "-c", f'{mount} && exec "$@"', "sh")
    return _APART[0], [*_APART, *shell, *command]


if __name__ == "__main__":
    os.execvp(*with_disk("16m", sys.executable, "-m", calm.PROGRAM, *sys.argv[1:]))
