"""Access of commands to a run that trains: its address and token, in a file of its user alone."""

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.access import raise_denied
from shards.errors import ConfigError
from shards.ownership import read_own, write_private
from streamssl.runs.file_names import ACCESS

_log = logging.getLogger(__name__)
_START = "start it with `streamssl pretrain`, or name another folder"


@dataclass(frozen=True, slots=True)
class RunAccess:
    """Address of the server of a run, on the loopback of `machine`, and the token that it takes."""

    address: str
    token: str
    machine: str


@contextmanager
def open_to_commands(run: Path, address: str, token: str) -> Iterator[None]:
    """Let commands of this user find the server of a run while the context lasts."""
    path = run / ACCESS
    try:
        write_private(path, json.dumps(asdict(RunAccess(address, token, socket.gethostname()))))
    except OSError as error:
        _log.warning(
            "%s cannot be written (%s): `streamssl status` will not find the run", path, error
        )
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            path.unlink()


def read_access(run: Path) -> RunAccess:
    """Return the access to the run in this folder. Raises ConfigError, AccessDenied.

    A file that another user wrote is refused: it would send this command anywhere.
    """
    access = _read(run)
    if access.machine != socket.gethostname():
        raise ConfigError(
            f"the run in {run} is driven on the machine {access.machine}; give this command there"
        )
    return access


def is_driven_elsewhere(run: Path) -> bool:
    """Return True if the last start of a run was on another machine. Raises as `read_access`."""
    return (run / ACCESS).exists() and _read(run).machine != socket.gethostname()


def _read(run: Path) -> RunAccess:
    path = run / ACCESS
    try:
        text = read_own(path, f"give this command as that user, or name a run of yours, not {run}")
        fields = json.loads(text)
        access = RunAccess(**fields)
        if not all(isinstance(value, str) for value in fields.values()):
            raise ValueError("a value is no text")
    except FileNotFoundError as error:
        if not (run / "config.toml").exists():
            raise ConfigError(f"{run} is not a run (it has no config.toml); {_START}") from error
        raise ConfigError(
            f"the run in {run} does not train now (it has no {ACCESS}); {_START}"
        ) from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise_denied(error, path)
        raise ConfigError(
            f"{path} cannot be read ({error}); stop the run and start it again, which writes it"
        ) from error
    return access
