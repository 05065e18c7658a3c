"""Status: how a run on a cluster stands, in plain values, for whoever looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.protocol.lease_counters import LeaseSnapshot
from cluster.protocol.metric import Readings


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node, and when it will be taken away, if so."""

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
    """An actor. `phase`: of a trainer what it says, of a reader whether it works or leaves.

    `pool` is empty where its node is not known, `pages` where it serves none.
    """

    name: str
    role: str
    node: str
    pid: int
    phase: str
    step: int = -1
    rank: int = -1
    doing: str = ""
    heard_seconds: float = 0.0
    pool: str = ""
    pages: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Something that was decided, so many seconds ago, and why."""

    seconds: float
    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run at one moment.

    `rates` are of about the last ten seconds; `wanted` is how many actors of a role there shall be;
    `pending` are launches of nodes that are under way, `failed` those that came to nothing.
    `pages`: where Control and the driver serve their own, by role.
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
    decisions: tuple[Decided, ...]
    recoveries: tuple[Decided, ...]
    readings: Readings
    pending: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)
