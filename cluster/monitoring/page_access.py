"""Access to the pages of a run: which requests are answered, and what all others are told.

    Host header      must be a loopback name or the address that is served: else a page of the web
                     whose name is made to resolve to this machine could read everything
    loopback         this user and root are answered, and whoever has the token; the system knows
                     which user holds the other end of a connection
    other addresses  whoever has the token

`OPEN_PAGES` have numbers only. A Prometheus, which is a user of its own, reads them on the loopback
address without a token, under any address of the machine.
"""

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from shards.ownership import can_be_ours, owner_name

OPEN_PAGES: Final = frozenset({"/metrics", "/sd", "/healthz"})
HEALTH_PAGE: Final = "/healthz"  # says nothing, and is open everywhere
_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_PREFIX: Final = "Bearer "
_NO_SOCKET: Final = "0"  # inode of a connection that its process has closed

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PageAccess:
    """Rules of a server on the address `host`. An empty `token` is nobody's."""

    host: str
    token: str = ""

    def refusal(
        self, path: str, headers: Mapping[str, str], client: Address, server: Address
    ) -> str:
        """Return why a request is not answered, for whoever sent it; "" if it is answered."""
        name = host_name(headers.get("Host", ""))
        if not (name in _NAMES or name == self.host or (path in OPEN_PAGES and _is_address(name))):
            return (
                f"Host {name[:80]!r} is no name of this server; open http://{self.host}:{server[1]}"
                f"/ instead, from another machine through `ssh -L {server[1]}:{self.host}:"
                f"{server[1]} HOST`"
            )
        if self.has_token(headers):
            return ""
        if path == HEALTH_PAGE:
            return ""
        if not (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback):
            if not self.token:
                return (
                    "this page needs the token of the cluster, which has none: start Ray on each "
                    "node with RAY_AUTH_MODE=token, see docs/from-a-laptop-to-a-hundred-nodes.md"
                )
            return (
                "this page needs the token of the cluster: curl --header @FILE, where FILE has the "
                "line `Authorization: Bearer TOKEN`"
            )
        if path in OPEN_PAGES or not _TABLES[0].exists():
            return ""
        user = user_of(client, server)
        if user is not None and can_be_ours(user):
            return ""
        mine = owner_name(os.geteuid())
        return f"this page is for {mine} alone; /metrics is open to every user of this machine"

    def has_token(self, headers: Mapping[str, str]) -> bool:
        """Return True if a request has the token."""
        given = headers.get("Authorization", "").removeprefix(_PREFIX)
        return bool(self.token) and hmac.compare_digest(given.encode(), self.token.encode())


def host_name(header: str) -> str:
    """Return the name in a Host header, without its port and in small letters."""
    name, mark, port = header.strip().lower().rpartition(":")
    return name if mark and port.isdecimal() else header.strip().lower()


def user_of(client: Address, server: Address) -> int | None:
    """Return the user whose process holds the other end of a connection on this machine.

    None if the system does not know: it has been closed there, or is not of this machine.
    """
    ends = [tuple(map(form, (client, server))) for form in (_form4, partial(_form4, mapped=True))]
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if (words[1], words[2]) in ends and words[9] != _NO_SOCKET:
                return int(words[7])
    return None


def _form4(address: Address, *, mapped: bool = False) -> str:
    """Return an IPv4 address as the tables have it: words of the machine's byte order."""
    number = int.from_bytes(ipaddress.IPv4Address(address[0]).packed, "little")
    prefix = "0000000000000000FFFF0000" if mapped else ""
    return f"{prefix}{number:08X}:{address[1]:04X}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
