"""Ray session: a connection to Ray while a run lasts, started here or joined.

A Ray that is started here listens on the loopback address only, takes calls with the token of this
session only, and ends with it. Every session has a namespace of its own, so that actors of two runs
never share a name.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import AuthenticationError, RayError

from cluster.ray_access import (
    check_found,
    is_named,
    place_of_folders,
    ray_variables,
    refusal,
)
from cluster.ray_internals import (
    ask_tables,
    bootstrap_address,
    local_addresses_allowed,
    read_authentication,
    worker_output_to,
)
from shards.errors import ConfigError

NAMESPACE: Final = "streamssl-"  # prefix of the namespaces of all runs
_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 10.0
_MAX_FOLDER_BYTES: Final = 38  # the path of a socket has 107 bytes at most, and Ray adds 68


@contextmanager
def ray_session(address: str, num_cpus: int, max_bytes: int) -> Iterator[None]:
    """Connect to Ray: 'local' starts one for this run, 'auto' or 'ray://…' joins one.

    A Ray that is started here has `num_cpus` actors of one core, room for objects of `max_bytes`,
    and is reachable from this machine only. Raises ConfigError if there is no such cluster.
    """
    with worker_output_to(_log), _access(address), _folder(address) as folder:
        _connect(address, num_cpus, max_bytes, folder=folder)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def joined_ray(address: str, namespace: str | None = None) -> Iterator[None]:
    """Connect to a running Ray as an observer. Raises ConfigError if there is none."""
    with worker_output_to(_log), _access(address):
        _connect(address, namespace=namespace)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _access(address: str) -> Iterator[None]:
    with ray_variables(address):
        read_authentication()
        yield
    read_authentication()


def count_gpus() -> int:
    """Return the number of GPUs of all present nodes."""
    return int(ray.cluster_resources().get("GPU", 0))


@contextmanager
def _folder(address: str) -> Iterator[str | None]:
    """Make a private folder for the sockets, logs and spilled objects of a Ray that starts here.

    Ray lets every user write into its own folders: another user could take the place of a socket,
    and answer with objects of his own. The folder is removed unless the run failed.
    """
    if address != "local":
        yield None
        return
    place = place_of_folders()
    try:
        folder = tempfile.mkdtemp(prefix="streamssl-", dir=place)
    except OSError as error:
        raise ConfigError(
            f"Ray has no place for its sockets and logs in {place} ({error.strerror}); name a "
            "folder that you can write to: export RAY_TMPDIR=FOLDER"
        ) from error
    if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
        Path(folder).rmdir()
        raise ConfigError(
            f"RAY_TMPDIR={place!r} is too long for paths of sockets; name a folder whose path has "
            "at most 20 characters: export RAY_TMPDIR=FOLDER"
        )
    yield f"{folder}/r"  # Ray lets every user write into this one
    shutil.rmtree(folder, ignore_errors=True)


def _connect(
    address: str,
    num_cpus: int = 0,
    max_bytes: int = 0,
    *,
    namespace: str | None = None,
    folder: str | None = None,
) -> None:
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    options["namespace"] = namespace or f"{NAMESPACE}{secrets.token_hex(8)}"
    if address == "local":
        options |= {
            "num_cpus": num_cpus,
            "object_store_memory": int(1.25 * max_bytes) + (256 << 20),
            "include_dashboard": False,
            "_node_ip_address": _LOOPBACK,
            "_temp_dir": folder,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with local_addresses_allowed(address == "local" or address.startswith(_LOOPBACK)):
            if address != "local" and "://" not in address:
                _check_listening(address)
            ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())[:200]
        if address != "local" and _is_refusal(error):
            raise refusal(address) from error
        if address == "local":
            raise ConfigError(
                f"Ray could not be started here ({reason}); run with --cluster none, which reads "
                "in threads of this process"
            ) from error
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({reason}); give --cluster local to start one "
            "here, auto to find a running one, or ray://HOST:10001"
        ) from error
    finally:
        # Ray installs a handler for SIGTERM that would end the trainer before it has saved.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def _is_refusal(error: BaseException) -> bool:
    """Return True if a cluster did not take the token."""
    return isinstance(error, AuthenticationError) or "unauthenticated" in str(error).lower()


def _log(data: dict[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001 - called by Ray
    """Write a message of Ray to the log, which users see only if they configure it."""
    logging.getLogger("ray").info("%s", "\n".join(data["lines"]))


def _check_listening(address: str) -> None:
    """Raise OSError if nothing listens at an address, RayError if it refuses the token.

    Ray itself would try for 15 minutes.
    """
    found = bootstrap_address(address)
    if not is_named(address):
        check_found(found)
    host, _, port = found.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    ask_tables(found, _CONNECT_SECONDS)
