"""Listening sockets of a run: what `ss -ltnp` shows of its processes, as a table."""

from dataclasses import dataclass
from pathlib import Path

import psutil

_ROLES = {
    "autoscaler/v2/monitor": "autoscaler of Ray",
    "_private/monitor": "autoscaler of Ray",
    "RuntimeEnvAgent": "runtime_env agent of Ray",
    "ray::Trainer": "trainer",
    "ray::Reader": "reader",
    "ray::Control": "control",
    "ray::IDLE": "idle worker of Ray",
    "gcs_server": "gcs_server of Ray",
    "raylet/raylet": "raylet of Ray",
    "runtime_env/agent": "runtime_env agent of Ray",
    "dashboard/agent": "dashboard agent of Ray",
    "log_monitor": "log monitor of Ray",
    "dashboard/dashboard": "dashboard of Ray",
    "streamssl.cli": "driver",
}


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A port on which a process of a run listens."""

    role: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.role:<26} {self.address:>15}:{self.port}"


def listeners(pid: int) -> list[Listener]:
    """Return the listening TCP sockets of a process and of everything that it started."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = set()
    for process in processes:
        try:
            role = _role(" ".join(process.cmdline()))
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    address = one.laddr.ip.removeprefix("::ffff:")  # IPv4 at a socket of IPv6
                    found.add(Listener(role, address, one.laddr.port))
        except psutil.Error:  # it ended
            continue
    return sorted(found)


def sockets_of(pid: int) -> list[Path]:
    """Return the sockets in the file system at which the Ray of a run listens."""
    found = set()
    for process in psutil.Process(pid).children(recursive=True):
        try:
            for one in process.net_connections("unix"):
                if one.laddr and one.laddr.startswith("/"):
                    found.add(Path(one.laddr))
        except psutil.Error:
            continue
    return sorted(found)


def _role(command: str) -> str:
    return next((role for part, role in _ROLES.items() if part in command), command[:40])
