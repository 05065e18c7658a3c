"""What a run is, as far as Control must know, and the folder in which it keeps its journals."""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.control.cluster_config import ClusterConfig
from cluster.monitoring.process_pages import DebugPorts
from cluster.protocol.actor_rpc import StateRef
from cluster.protocol.driver_protocol import Role
from cluster.protocol.node_pools import Pool
from shards.errors import ConfigError
from shards.samples.admission_config import AdmissionConfig
from shards.stream.journal import JournalEntry
from shards.stream.manifest import Manifest
from shards.stream.order import Order
from shards.stream.stream_config import StreamConfig

_NONCE = "nonce"


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlSpec:
    """A run. `folder` is Control's own, within that of the run, and `journal` the file there.

    `readers`: how many at least, and at most. `pools` say which nodes are for whom, in order of
    preference. `debug_ports`: where every process serves its own pages; None: nowhere.
    """

    folder: Path
    journal: Path
    manifest: Manifest
    order: Order
    stream: StreamConfig
    admission: AdmissionConfig
    num_steps: int
    readers: tuple[int, int]
    trainers: int
    pools: Mapping[Role, tuple[Pool, ...]]
    config: ClusterConfig = field(default_factory=ClusterConfig)
    debug_ports: DebugPorts | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlStart:
    """Where a Control begins. `begun`: the journal of the run is on disk; else it is `entries`.

    `nonce` is what the driver wrote into the folder, to be found there. `pages`: where the driver,
    and then Control, serve their own, by role.
    """

    state: StateRef
    begun: bool
    nonce: str
    entries: tuple[JournalEntry, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)


def mark_folder(folder: Path) -> str:
    """Leave a mark that a Control must find there; what it is."""
    nonce = secrets.token_hex(16)
    folder.mkdir(exist_ok=True)
    (folder / _NONCE).write_text(nonce)
    return nonce


def check_folder(folder: Path, nonce: str) -> None:
    """Refuse a folder that only the driver can see: the journals lie there. Raises ConfigError."""
    found = ""
    with suppress(OSError):
        found = (folder / _NONCE).read_text()
    if found != nonce:
        raise ConfigError(
            f"the head node of the Ray cluster cannot see {folder.parent}, where Control keeps its "
            "journals; --out must be a folder that both see: start the command on the head (ray "
            "job submit), or give an --out on a file system that both have mounted there"
        )
