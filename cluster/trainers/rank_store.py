"""Rank store: the keys at which ranks find each other, for ranks of the run only.

The store of torch listens on every address of the machine and asks nobody for a secret: any user of
the machine could name itself a rank. Here rank 0 listens on its own address, and every message is
authenticated with a secret that the ranks have from Control.
"""

import base64
import secrets
import socket
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist

from cluster.torch_internals import Store
from cluster.trainers.rank_channel import RankChannel

_PROBE_SECONDS: Final = 2.0
_HANDSHAKE_SECONDS: Final = 10.0
_MAX_STRANGERS: Final = 64  # connections that have not shown the secret; the oldest make room
_ANSWER_SECONDS: Final = 30.0  # beyond the wait that a request names
_BACKLOG: Final = 512
_TIMEOUT: Final = timedelta(seconds=300)


class RankStoreServer:
    """A table of keys on a free port of `host`. `address` is host:port/secret."""

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=_BACKLOG)
        secret = secrets.token_hex(32)
        self.address = f"{host}:{self._listener.getsockname()[1]}/{secret}"
        serve = _Serve(self._listener, secret)
        threading.Thread(target=serve.accept, name="rank-store", daemon=True).start()
        weakref.finalize(self, _hang_up, self._listener)


class _Serve:
    """The threads of a server; they end when its listener is closed, or with their clients."""

    def __init__(self, listener: socket.socket, secret: str) -> None:
        self._listener, self._secret = listener, secret
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._strangers: list[socket.socket] = []

    def accept(self) -> None:
        with self._listener:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:  # closed
                    return
                if len(self._strangers) >= _MAX_STRANGERS:
                    _hang_up(self._strangers.pop(0))
                self._strangers.append(connection)
                threading.Thread(
                    target=self._talk, args=(connection,), name="rank-store-client", daemon=True
                ).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError, KeyError, TypeError):
            connection.settimeout(_HANDSHAKE_SECONDS)
            channel = RankChannel(connection, self._secret, is_server=True)
            request = channel.receive()
            self._forget(connection)
            channel.set_timeout(None)
            while True:
                channel.send(self._answer(**request))
                request = channel.receive()
        self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with suppress(ValueError):
            self._strangers.remove(connection)

    def _answer(self, do: str, keys: Sequence[str], value: Any = None, seconds: float = 0) -> Any:
        with self._changed:
            if do in ("get", "wait"):
                known = self._changed.wait_for(lambda: self._values.keys() >= set(keys), seconds)
                if do == "wait" or not known:
                    return known
                return [_to_text(self._values[key]) for key in keys]
            if do == "check":
                return self._values.keys() >= set(keys)
            if do == "set":
                self._values[keys[0]] = _to_bytes(value)
                self._changed.notify_all()
                return True
            if do == "add":
                total = int(self._values.get(keys[0], b"0")) + int(value)
                self._values[keys[0]] = str(total).encode()
                self._changed.notify_all()
                return total
            if do == "delete":
                return self._values.pop(keys[0], None) is not None
            return len(self._values)


class RankStore(Store):
    """Client of a server, in the form of torch's own stores. Keys of two prefixes never meet.

    Whoever passes it to torch must hold it as long as torch does. Methods are called from threads
    of torch, one at a time.
    """

    def __init__(self, address: str, prefix: str) -> None:
        """Connect. Raises OSError, at once if nothing listens there."""
        super().__init__()
        place, _, secret = address.partition("/")
        host, _, port = place.rpartition(":")
        self._address, self._prefix = address, prefix
        self._lock = threading.Lock()
        connection = socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS)
        connection.settimeout(_HANDSHAKE_SECONDS)
        try:
            self._channel = RankChannel(connection, secret, is_server=False)
        except OSError:
            connection.close()
            raise
        weakref.finalize(self, self._channel.close)

    def set(self, key: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._ask("set", [key], _to_text(data))

    def get(self, key: str) -> bytes:
        return self.multi_get([key])[0]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        found = self._ask("get", keys, seconds=_TIMEOUT.total_seconds())
        if not isinstance(found, list):
            raise dist.DistStoreError(f"no rank has set {keys[0]}")
        return [_to_bytes(value) for value in found]

    def multi_set(self, keys: list[str], values: list[bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def add(self, key: str, value: int) -> int:
        return int(self._ask("add", [key], value))

    def check(self, keys: list[str]) -> bool:
        return bool(self._ask("check", keys))

    def wait(self, keys: list[str], timeout: timedelta = _TIMEOUT) -> None:
        if not self._ask("wait", keys, seconds=timeout.total_seconds()):
            raise dist.DistStoreError(f"no rank has set {keys[0]}")

    def delete_key(self, key: str) -> bool:
        return bool(self._ask("delete", [key]))

    # The names by which the C++ part of torch calls these.
    deleteKey = delete_key

    def num_keys(self) -> int:
        return int(self._ask("count", []))

    getNumKeys = num_keys

    def has_extended_api(self) -> bool:
        return False

    def clone(self) -> "RankStore":
        return RankStore(self._address, self._prefix)

    def _ask(self, do: str, keys: Sequence[str], value: Any = None, seconds: float = 0) -> Any:
        named = [f"{self._prefix}/{key}" for key in keys]
        with self._lock:
            try:
                self._channel.set_timeout(seconds + _ANSWER_SECONDS)
                self._channel.send({"do": do, "keys": named, "value": value, "seconds": seconds})
                return self._channel.receive()
            except (OSError, ValueError) as error:
                raise dist.DistNetworkError(f"the store of rank 0 is lost ({error})") from error


def _to_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _to_bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
