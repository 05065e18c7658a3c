"""Access to Ray: whoever may call the Ray of a run can run code as its user. Imports no Ray.

A Ray that a run starts takes calls with the run's token only. The token is made for that one run
and is in the environment of its processes, which no other user can read. A cluster that is joined
has a token of its own, in a variable or a file, as Ray itself reads them.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shards.access import raise_denied
from shards.errors import ConfigError
from shards.ownership import can_be_ours, owner_name

MODE: Final = "RAY_AUTH_MODE"
TOKEN: Final = "RAY_AUTH_TOKEN"
TOKEN_FILE: Final = "RAY_AUTH_TOKEN_PATH"
FOLDERS: Final = "RAY_TMPDIR"
DEFAULT_PLACE: Final = Path("/tmp")
_DISABLED: Final = "disabled"
_MODES: Final = ("token", _DISABLED)
_PROCESSES: Final = Path("/proc")
_OPEN_TO_OTHERS: Final = 0o077


def access_warnings(address: str) -> list[str]:
    """Return what lets others into the Ray at this address, a line each. Raises ConfigError."""
    if _mode() == _DISABLED:
        who = "every user of this machine" if address == "local" else "everybody who reaches it"
        return [
            f"{MODE}={_DISABLED}: {who} can run code as you through the Ray of this run; "
            f"unset {MODE} to let nobody in without the token"
        ]
    if address == "local" or os.environ.get(TOKEN):
        return []
    path = _token_file()
    try:
        is_open = bool(path.stat().st_mode & _OPEN_TO_OTHERS)
    except OSError:
        return []  # told when it is needed
    if not is_open:
        return []
    return [
        f"{path} holds the token of the Ray, and other users can read it: run `chmod 600 {path}`"
    ]


@contextmanager
def ray_variables(address: str) -> Iterator[None]:
    """Set the variables of the environment that decide who may call the Ray at this address.

    'local' gets a new token. For any other address they name the token of that cluster. Raises
    ConfigError.
    """
    changes = {MODE: _mode()}
    if changes[MODE] != _DISABLED:
        if address == "local":
            changes[TOKEN] = secrets.token_hex(32)
        else:
            _check_token(address)
    with environment(changes):
        yield


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set these variables of the environment, in which processes are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def read_token() -> str:
    """Return the token of the cluster of this process, "" if it has none."""
    if os.environ.get(MODE, "").lower() == _DISABLED:
        return ""
    if token := os.environ.get(TOKEN, "").strip():
        return token
    try:
        return _token_file().read_text().strip()
    except (OSError, ValueError):
        return ""


def place_of_folders() -> Path:
    """Return the folder in which Rays that start here have their folders."""
    return Path(os.environ.get(FOLDERS) or DEFAULT_PLACE)


def is_named(address: str) -> bool:
    """Return True if the user names the cluster, False if Ray has to find one."""
    return address != "auto" or os.environ.get("RAY_ADDRESS", "") not in ("", "auto")


def refusal(address: str) -> ConfigError:
    """Return the error for a cluster that refused the token."""
    if _mode() == _DISABLED:
        return ConfigError(
            f"the Ray at {address!r} refuses calls without a token, and {MODE}={_DISABLED} sends "
            f"none: unset {MODE}, and name the token of that cluster by {TOKEN_FILE}=FILE"
        )
    found = f"${TOKEN}" if os.environ.get(TOKEN) else str(_token_file())
    return ConfigError(
        f"the Ray at {address!r} refuses the token in {found}; put the token of that cluster into "
        f"a file that only you can read, and name it: export {TOKEN_FILE}=FILE"
    )


def check_found(address: str) -> None:
    """Raise ConfigError unless the Ray that was found has a process of this user, or of root.

    Ray finds clusters by a file in /tmp and by the command lines of all processes: any user can
    write both, and would then run code in this process. Ray reads more from these than is seen
    here, so an address without any process is refused, too.
    """
    if not (_PROCESSES / "self").exists():
        return
    found = [
        _users(path)
        for path in _PROCESSES.glob("[0-9]*")
        if f"--gcs-address={address}" in _read(path / "cmdline").split("\0")
    ]
    if any(users and all(map(can_be_ours, users)) for users in found):
        return
    others = sorted(user for users in found for user in users if not can_be_ours(user))
    if others:
        why = f"belongs to {owner_name(others[0])}, who"
    else:
        why = "has no process of yours on this machine: another user may have made it known, and"
    raise ConfigError(
        f"the Ray that was found at {address} {why} could run code as you: if you trust this "
        f"cluster, name it with RAY_ADDRESS={address}; --cluster local starts a Ray of your own"
    )


def _users(process: Path) -> set[int]:
    """Return the users whose rights a process has or had: a program may have those of root."""
    lines = _read(process / "status").splitlines()
    return {int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]}


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it ended, or is hidden
        return ""


def _mode() -> str:
    mode = os.environ.get(MODE, "").lower() or _MODES[0]
    if mode not in _MODES:
        raise ConfigError(f"{MODE}={mode!r}; it must be {' or '.join(_MODES)}: unset it for token")
    return mode


def _token_file() -> Path:
    named = os.environ.get(TOKEN_FILE)
    return Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"


def _check_token(address: str) -> None:
    """Raise ConfigError if there is no token: Ray itself would make one that fits no cluster."""
    if read_token():
        return
    path = _token_file()
    try:
        path.read_bytes()
        why = f"{path} holds none"
    except OSError as error:
        raise_denied(error, path)
        why = f"{path} does not exist"
    raise ConfigError(
        f"there is no token for the Ray at {address!r} (${TOKEN} is not set, and {why}); put the "
        f"token of that cluster into a file that only you can read, and name it: export "
        f"{TOKEN_FILE}=FILE; a cluster without a token is joined with {MODE}={_DISABLED}"
    )
