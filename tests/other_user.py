"""Another user of this machine: scripts that do what they do as `nobody`."""

import importlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

NOBODY = 65_534
_NOT_FOR_TESTS = {"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle"}
ROOT = Path(__file__).parents[1]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user: run the tests as root"
)


def become_nobody() -> None:
    """Give up all rights. Called after all imports: the interpreter may be in a home folder."""
    for name in sys.stdlib_module_names - _NOT_FOR_TESTS:
        with suppress(ImportError):
            importlib.import_module(name)
    "localhost".encode("idna")  # imports a module that connections need
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def as_nobody(
    *words: object, seconds: float = 60.0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these words, which call `become_nobody`, and return the result."""
    variables = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd="/",
        env=variables | env,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
