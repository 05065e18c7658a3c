"""Ray session: a connection to Ray while a run lasts, started here or joined.

A Ray that is started here listens on the loopback address only, takes calls with the token of this
session only, and ends with it. Every session has a namespace of its own, so that actors of two runs
never share a name.
"""

import logging
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import (
    AuthenticationError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayError,
    RayTaskError,
)

from cluster.driver.ray_folder import private_folder
from cluster.driver.ray_room import check_store, look_for_room, store_bytes
from cluster.driver.raylet_watch import RayletWatch
from cluster.errors import RayLost
from cluster.ray_access import check_found, is_named, ray_variables, refusal
from cluster.ray_internals import (
    ask_tables,
    bootstrap_address,
    end_processes_at_once,
    local_addresses_allowed,
    read_authentication,
    without_unused_servers,
    worker_output_to,
)
from shards.errors import ConfigError, StreamSSLError, UserError
from shards.stop_signals import stop_signals_blocked

NAMESPACE: Final = "streamssl-"  # prefix of the namespaces of all runs
_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 10.0


@contextmanager
def ray_session(
    address: str,
    num_cpus: int,
    max_bytes: int,
    *,
    stream_bytes: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
    lost: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Connect to Ray: 'local' starts one for this run, 'auto' or 'ray://…' joins one.

    A Ray that is started here has `num_cpus` actors of one core, room for objects of `max_bytes`,
    and is reachable from this machine only. `stream_bytes` of these are set by --stream.max-bytes,
    by default all; `tell` gets a warning. If `lost` is given, it gets a sentence when the raylet
    under this process dies, before the process ends. Raises ConfigError if there is no such
    cluster, or no room for it here; RayLost and UserError if Ray breaks.
    """
    with worker_output_to(_log), _access(address), _folder(address) as folder:
        if folder is not None:
            own = max_bytes if stream_bytes is None else stream_bytes
            if warning := check_store(look_for_room(folder), max_bytes, own):
                tell(warning)
        _connect(address, num_cpus, max_bytes, folder=folder)
        try:
            with _watch(folder, lost), explained(folder):
                yield
        finally:
            ray.shutdown()


def _watch(
    folder: Path | None, lost: Callable[[str], None] | None
) -> AbstractContextManager[object]:
    if lost is None:
        return nullcontext()
    return RayletWatch(
        lambda: lost(
            "the raylet of Ray on this machine ended, and nothing of Ray works without it; often "
            "the system killed it for memory: see `dmesg`, give fewer --readers or a smaller "
            f"--stream.max-bytes; its log is {_logs(folder)}/raylet.out"
        )
    )


def _logs(folder: Path | None) -> str:
    return f"{folder or 'the folder of Ray on this node'}/session_latest/logs"


@contextmanager
def explained(folder: Path | None = None) -> Iterator[None]:
    """Turn errors of Ray itself into sentences. Raises RayLost, UserError.

    `folder` is that of a Ray that was started here.
    """
    try:
        yield
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise UserError(
            f"the object store of Ray is full ({_short(error)}); give a smaller "
            "--stream.max-bytes, or, where Ray is started, more memory in /dev/shm (`docker run "
            "--shm-size=…`) and a RAY_TMPDIR on a larger disk"
        ) from error
    except (RayTaskError, StreamSSLError):  # an error of our own, from another process
        raise
    except RayError as error:
        raise RayLost(
            f"Ray does not work any more ({type(error).__name__}: {_short(error)}); its logs are "
            f"in {_logs(folder)}; start the same command again: a run goes on from its checkpoint"
        ) from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def joined_ray(address: str, namespace: str | None = None) -> Iterator[None]:
    """Connect to a running Ray as an observer. Raises ConfigError if there is none."""
    with worker_output_to(_log), _access(address):
        _connect(address, namespace=namespace)
        try:
            with explained():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _access(address: str) -> Iterator[None]:
    try:
        with ray_variables(address):
            read_authentication()
            yield
    finally:
        read_authentication()


def count_gpus() -> int:
    """Return the number of GPUs of all present nodes."""
    return int(ray.cluster_resources().get("GPU", 0))


def _folder(address: str) -> AbstractContextManager[Path | None]:
    return private_folder() if address == "local" else nullcontext()


def _connect(
    address: str,
    num_cpus: int = 0,
    max_bytes: int = 0,
    *,
    namespace: str | None = None,
    folder: Path | None = None,
) -> None:
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    options["namespace"] = namespace or f"{NAMESPACE}{secrets.token_hex(8)}"
    if address == "local":
        options |= {
            "num_cpus": num_cpus,
            "object_store_memory": store_bytes(max_bytes),
            "include_dashboard": False,
            "_node_ip_address": _LOOPBACK,
            "_temp_dir": str(folder),
        }
    try:
        with local_addresses_allowed(address == "local" or address.startswith(_LOOPBACK)):
            place = address
            if address != "local" and "://" not in address:
                place = _check_listening(address)  # Ray could find another one the second time
            _init(place, options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        if address != "local" and _is_refusal(error):
            raise refusal(address) from error
        reason = _short(error)
        if address == "local":
            raise ConfigError(
                f"Ray could not be started here ({reason}); run with --cluster none, which reads "
                "in threads of this process"
            ) from error
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({reason}); give --cluster local to start one "
            "here, auto to find a running one, or ray://HOST:10001"
        ) from error


def _init(address: str, options: dict[str, Any]) -> None:
    """Connect. The processes of a Ray that starts here never receive a signal to the run."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        stack.enter_context(stop_signals_blocked())
        if address == "local":
            stack.enter_context(without_unused_servers())
        try:
            ray.init(address=address, **options)
        finally:
            # Ray installs a handler for SIGTERM that would end the trainer before it has saved.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)
    if address == "local":
        end_processes_at_once()


def _is_refusal(error: BaseException) -> bool:
    """Return True if a cluster did not take the token."""
    return isinstance(error, AuthenticationError) or "unauthenticated" in str(error).lower()


def _log(data: dict[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001 - called by Ray
    """Write a message of Ray to the log, which users see only if they configure it."""
    logging.getLogger("ray").info("%s", "\n".join(data["lines"]))


def _check_listening(address: str) -> str:
    """Return host:port of a Ray that answers. Raise OSError if nothing listens there, RayError if
    it refuses the token.

    Ray itself would try for 15 minutes.
    """
    found = bootstrap_address(address)
    host, _, port = found.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    if not is_named(address):
        check_found(found)
    ask_tables(found, _CONNECT_SECONDS)
    return found
