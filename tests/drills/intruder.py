"""Intruder: what another user of the machine tries against a run whose ports are known to all.

Reads its targets as JSON from the command line, tries everything, and prints what came of it.
"""

import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster.ray_internals import GcsClient, local_addresses_allowed
from tests.other_user import become_nobody

_SECONDS = 20
_MAX_GREETING = 512  # bytes, as an error page has them


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"no answer in {seconds} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def attempt(what: str, do: Callable[[], object]) -> dict[str, str]:
    """Try something; return what came of it."""
    try:
        with _at_most(_SECONDS):
            return {"what": what, "got": repr(do())[:300], "refused": ""}
    except BaseException as error:
        return {"what": what, "got": "", "refused": f"{type(error).__name__}: {error}"[:300]}


def fetch(url: str, method: str = "GET", seconds: float = 10.0, **headers: str) -> str:
    """Return the body of an answer. Raises for a refusal."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return answer.read(2000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        raise PermissionError(f"{error.code} {error.read(300).decode()}") from error


def against_tables(address: str) -> Iterator[dict[str, str]]:
    """Try to write into the tables of a Ray, and to read them."""

    def put() -> object:
        return GcsClient(address).internal_kv_put(b"intruder", b"x", True, b"fun", timeout=5)

    def keys() -> object:
        return GcsClient(address).internal_kv_keys(b"", b"fun", timeout=5)

    yield attempt("write into the tables of Ray", put)
    yield attempt("read the tables of Ray", keys)


def against_ray(address: str) -> Iterator[dict[str, str]]:
    """Try to write into the tables of a Ray, to read them, and to run code in it."""

    def work() -> object:
        with local_addresses_allowed(True):
            ray.init(address, logging_level="error", log_to_driver=False)
        return ray.get(ray.remote(num_cpus=0)(os.getuid).remote(), timeout=10)

    yield from against_tables(address)
    yield attempt("run code in Ray", lambda: _in_child(work))


def _in_child(do: Callable[[], object]) -> object:
    """Return the result of a child: a Ray that is refused tries for minutes, and hears no alarm."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, repr(do()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        result = os.read(reading, 1000)
    finally:
        os.kill(child, signal.SIGKILL)
    if not result:
        raise PermissionError("Ray did not run it")
    return result


def against_ports(ports: list[list[Any]]) -> Iterator[dict[str, str]]:
    """Speak HTTP, and nothing in particular, to every port."""
    for role, host, port in ports:
        url = f"http://{host}:{port}"
        for method, path in (("GET", "/"), ("POST", "/get_or_create_runtime_env")):
            yield attempt(
                f"{method} {path} of {role}", lambda u=url + path, m=method: fetch(u, m, 2.0)
            )
        yield attempt(f"bytes to {role}", lambda h=host, p=port: _send_bytes(h, p))


def _send_bytes(host: str, port: int) -> str:
    with socket.create_connection((host, port), 5) as connection:
        connection.settimeout(2)
        connection.sendall(b"x" * 64 + b"\n")
        try:
            answer = connection.recv(4096)
        except TimeoutError:
            answer = b""
    if len(answer) > _MAX_GREETING:
        return repr(answer)
    raise PermissionError(f"{len(answer)} bytes: a greeting, an error, or nothing")


def against_page(address: str) -> Iterator[dict[str, str]]:
    """Read the pages of a run, under its own name and under others."""
    for path in ("/", "/state", "/gallery?name=0", "/stacks", "/status"):
        yield attempt(f"GET {path}", lambda p=path: fetch(address + p))
        name = f"Host of another, GET {path}"
        yield attempt(name, lambda p=path: fetch(address + p, Host="evil.example"))
    for path in ("/drill?fault=kill-trainer", "/continue"):
        yield attempt(f"POST {path}", lambda p=path: fetch(address + p, "POST"))


def against_files(paths: list[str]) -> Iterator[dict[str, str]]:
    """Read secrets, and speak to the sockets of Ray in the file system."""
    for path in map(Path, paths):
        yield attempt(f"read {path.name}", lambda p=path: p.read_bytes()[:20])
        if path.is_relative_to("/proc"):
            continue
        yield attempt(f"connect to {path.name}", lambda p=path: _connect(p))
        yield attempt(f"replace {path.name}", lambda p=path: p.rename(p.with_name("stolen")))


def _connect(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
    return "connected"


def main() -> None:
    """Try everything against the targets."""
    targets = json.loads(sys.argv[1])
    become_nobody()
    found = list(against_files(targets.get("files", [])))
    if targets.get("page"):
        found += against_page(targets["page"])
    found += against_ports(targets.get("ports", []))
    if targets.get("tables"):
        found += against_tables(targets["tables"])
    if targets.get("ray"):
        found += against_ray(targets["ray"])
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a half-connected Ray would wait at the end


if __name__ == "__main__":
    main()
