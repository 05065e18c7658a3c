"""A connection to Ray while a run lasts: started here, or joined.

A Ray that is started here listens on the loopback address alone, and none of it is left behind.
Every connection has a namespace of its own, so that the names of a run's actors are its own.
"""

import logging
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray._private import ray_constants, services
from ray._private import worker as ray_worker

from shards.errors import ConfigError

NAMESPACE: Final = "streamssl-"  # what those of all runs begin with
_LOOPBACK = "127.0.0.1"
_KNOCK_SECONDS = 10.0


@contextmanager
def ray_session(address: str, num_cpus: int, max_bytes: int) -> Iterator[None]:
    """A connection to Ray: 'local' starts one for this run, 'auto' or 'ray://…' joins one.

    One that is started here has `num_cpus` actors of one core, room for objects of `max_bytes`, and
    can be reached from this machine alone. Raises ConfigError when there is no such cluster.
    """
    with _quiet():
        _connect(address, num_cpus, max_bytes)
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str, num_cpus: int, max_bytes: int, namespace: str | None = None) -> None:
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    options["namespace"] = namespace or f"{NAMESPACE}{secrets.token_hex(8)}"
    several_machines = ray_constants.ENABLE_RAY_CLUSTER
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address == "local" or address.startswith(_LOOPBACK):
        # Otherwise Ray takes the machine's own address for 127.0.0.1 and listens to everybody.
        ray_constants.ENABLE_RAY_CLUSTER = False
    if address == "local":
        room = int(1.25 * max_bytes) + (256 << 20)
        options |= {
            "num_cpus": num_cpus,
            "object_store_memory": room,
            "include_dashboard": False,
            "_node_ip_address": _LOOPBACK,
        }
    try:
        if address != "local" and "://" not in address:
            _knock(address)
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if address == "local":
            raise ConfigError(
                f"Ray could not be started here ({reason}); run with --cluster none, which reads "
                "in threads of this process"
            ) from error
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({reason}); give --cluster local to start one "
            "here, auto to find one that runs, or ray://HOST:10001"
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several_machines
        # Ray takes SIGTERM for itself, and would end the trainer before it has saved.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def joined(address: str, namespace: str | None = None) -> Iterator[None]:
    """A connection to a Ray that runs, to look at it. Raises ConfigError when there is none."""
    with _quiet():
        _connect(address, 0, 0, namespace)
        try:
            yield
        finally:
            ray.shutdown()


def count_gpus() -> int:
    """Those of all nodes that are there at this moment."""
    return int(ray.cluster_resources().get("GPU", 0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Whatever `log_to_driver` says, Ray prints ten lines of its own for every reader that dies."""
    prints = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = _log
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = prints


def _log(data: dict[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001 - called by Ray
    """A message of Ray, for those who ask their log for it."""
    logging.getLogger("ray").info("%s", "\n".join(data["lines"]))


def _knock(address: str) -> None:
    """Raise OSError unless something listens there: Ray itself would try for a quarter hour."""
    host, _, port = services.canonicalize_bootstrap_address_or_die(address).rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
