"""Another user of this machine: commands and scripts that run as `nobody`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65_534
ROOT = Path(__file__).parents[1]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user: run the tests as root"
)


def as_nobody(*command: object, seconds: float = 60.0, **env: str) -> subprocess.CompletedProcess:
    """Run a command as a user without any right, and return its result."""
    return subprocess.run(
        [str(word) for word in command],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def python_as_nobody(script: str, *arguments: object, **env: str) -> subprocess.CompletedProcess:
    """Run a script of Python as `nobody`."""
    return as_nobody(sys.executable, "-c", script, *arguments, **env)
