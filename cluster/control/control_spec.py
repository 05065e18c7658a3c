"""Specification of a run for Control, and the folder that holds its journals."""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.control.cluster_config import ClusterConfig
from cluster.monitoring.process_pages import DebugPorts
from cluster.protocol.messages import Role, StateRef
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
    """A run. `folder` belongs to Control, within the run folder; `journal` is a file of the run.

    `readers` are the least and the largest number of readers. `pools` are the nodes for each role,
    in order of preference. `debug_ports`: ports of the pages of each process; None: no pages.
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
    """Start of a Control. `begun`: the journal of the run is on disk; otherwise it is `entries`.

    `nonce` is the mark that the driver wrote into the folder. `pages` are the addresses of the
    pages of the driver and Control, by role.
    """

    state: StateRef
    begun: bool
    nonce: str
    entries: tuple[JournalEntry, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)


def mark_folder(folder: Path) -> str:
    """Write a mark that Control must find there, and return it."""
    nonce = secrets.token_hex(16)
    folder.mkdir(exist_ok=True)
    (folder / _NONCE).write_text(nonce)
    return nonce


def check_folder(folder: Path, nonce: str) -> None:
    """Raise ConfigError if only the driver sees the folder: Control writes its journals there."""
    found = ""
    with suppress(OSError):
        found = (folder / _NONCE).read_text()
    if found != nonce:
        raise ConfigError(
            f"the head node of the Ray cluster cannot see {folder.parent}, where Control keeps its "
            "journals; --out must be a folder that both see: start the command on the head (ray "
            "job submit), or give an --out on a file system that both have mounted there"
        )
