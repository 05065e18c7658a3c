"""Status of a run on a cluster, in plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.protocol.lease_counters import LeaseSnapshot
from shards.metric import Readings


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node; `leaves_in` seconds it will be taken away, None if no notice was given."""

    node: str
    address: str
    labels: Mapping[str, str]
    num_readers: int
    num_trainers: int
    cores: float
    leaves_in: float | None
    is_head: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStatus:
    """An actor. `phase` is reported by a trainer; a reader works or leaves.

    `heartbeat_age` is in seconds. `pool` is empty if the node is unknown, `pages` without pages.
    """

    name: str
    role: str
    node: str
    pid: int
    phase: str
    step: int = -1
    rank: int = -1
    doing: str = ""
    heartbeat_age: float = 0.0
    pool: str = ""
    pages: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedEvent:
    """An event `seconds` ago, and its reason."""

    seconds: float
    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run at one moment.

    `rates` are of about the last ten seconds; `wanted` is the number of actors to have, by role;
    `pending` are launches of nodes under way, `failed` those that failed. `pages` are the addresses
    of the pages of Control and the driver, by role.
    """

    term: int
    seconds: float
    step: int
    num_steps: int
    planned: int
    generation: str
    world: int
    step_seconds: float
    wanted: Mapping[str, int]
    scaling: str
    rates: Mapping[str, float]
    nodes: tuple[NodeStatus, ...]
    actors: tuple[ActorStatus, ...]
    leases: LeaseSnapshot
    decisions: tuple[TimedEvent, ...]
    recoveries: tuple[TimedEvent, ...]
    readings: Readings
    pending: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)
