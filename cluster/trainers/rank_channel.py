"""Rank channel: messages between two processes that share a secret; all others are refused.

Each side begins with a random number. Each message is a line of JSON behind a digest of it, its
place in the conversation and its direction, with a key made from the secret and both numbers. So
nobody without the secret can send, change or repeat a message. Messages are not hidden.
"""

import hashlib
import hmac
import json
import secrets
import socket
from typing import Any

_MAX_LINE = 1 << 20  # strangers may send so much before they are refused
_NUM_DIGITS = 64  # of a number or a digest


class ChannelRefused(ConnectionError):
    """The other side does not have the secret, or the line was cut."""


class RankChannel:
    """One conversation over a connected socket. `is_server` tells the two sides apart."""

    def __init__(self, connection: socket.socket, secret: str, *, is_server: bool) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        mine = secrets.token_hex(_NUM_DIGITS // 2)
        self._send_line(mine.encode())
        theirs = self._read_line().decode("ascii", "replace")
        first, second = (mine, theirs) if is_server else (theirs, mine)
        # The same number from both sides would let one side be answered with its own messages.
        if len(theirs) != _NUM_DIGITS or theirs == mine:
            raise ChannelRefused("the other side is no rank of this run")
        self._key = _digest(secret.encode(), f"{first}{second}".encode()).encode()
        self._sent, self._received = (b"s", b"c") if is_server else (b"c", b"s")
        self._num_sent = self._num_received = 0

    def send(self, message: Any) -> None:
        """Send a JSON value. Raises OSError."""
        line = json.dumps(message).encode()
        mark = _digest(self._key, b"%s%d %s" % (self._sent, self._num_sent, line))
        self._num_sent += 1
        self._send_line(mark.encode() + line)

    def receive(self) -> Any:
        """Return the next message. Raises OSError; ChannelRefused if it is not of a rank."""
        line = self._read_line()
        mark, line = line[:_NUM_DIGITS], line[_NUM_DIGITS:]
        right = _digest(self._key, b"%s%d %s" % (self._received, self._num_received, line))
        if not hmac.compare_digest(mark, right.encode()):
            raise ChannelRefused("the other side does not know the secret of this run")
        self._num_received += 1
        return json.loads(line)

    def set_timeout(self, seconds: float | None) -> None:
        """Set how long a message may be waited for."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """End the conversation."""
        self._file.close()
        self._socket.close()

    def _send_line(self, line: bytes) -> None:
        self._socket.sendall(line + b"\n")

    def _read_line(self) -> bytes:
        line = self._file.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise ChannelRefused("the other side has hung up")
        return line[:-1]


def _digest(key: bytes, data: bytes) -> str:
    return hmac.new(key, data, hashlib.sha256).hexdigest()
