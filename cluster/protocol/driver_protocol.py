"""What Control and the driver tell each other: actors to make, what became of them, what is done.

    driver -- DriverReport --> Control -- ControlNews --> driver

The driver makes and owns the actors, so that none outlives the command, and all outlive Control.
Whatever either says is said again until the other one is known to have heard it.
"""

from dataclasses import dataclass
from typing import Literal

from cluster.protocol.actor_rpc import StateRef
from cluster.protocol.metric import Counted, Readings
from cluster.protocol.run_status import Status
from cluster.protocol.step_log import Records

Role = Literal["reader", "trainer"]


@dataclass(frozen=True, slots=True)
class MakeOrder:
    """An actor to make: in the pool of this number, not on these nodes."""

    name: str
    role: Role
    pool: int = 0
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorEvent:
    """What became of an actor. `number` rises; of two that are told twice, the second is nothing.

    `made`: it does not answer yet. `started`: it answers. `left`: it ended as it was told to.
    `lost`: it died. `refused`: it cannot start, and no other node would help, because of `error`.
    `with_node`: its node died, `preempted` if because it was taken back. `pages`: where it serves
    its own.
    """

    number: int
    name: str
    role: Role
    kind: Literal["made", "started", "left", "lost", "refused"]
    pid: int = 0
    node: str = ""
    pages: str = ""
    reason: str = ""
    with_node: bool = False
    preempted: bool = False
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverReport:
    """`recorded`: steps up to this one, of this `history`, are in the log.

    `making` and `killing`: actors whose end of that has not come. `state`: the newest that is safe;
    that of step `saving` is being saved, and that of step `unsaved` could not be had. `begun`: the
    run has a folder.
    """

    term: int
    events: tuple[ActorEvent, ...]
    making: frozenset[str]
    killing: frozenset[str]
    recorded: int
    history: int
    state: StateRef
    saving: int
    unsaved: int
    begun: bool
    stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a Control tells about once a second for whoever watches: counters of those that had
    something new to say, gauges, and how the run stands."""

    counted: tuple[Counted, ...]
    gauges: Readings
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNews:
    """`make` and `kill` are whole lists of what is still wanted. `heard`: events up to this one.

    `ready`: the data can fill a batch. `state` is newer than the one that is safe. `over`: every
    trainer has left; `error`: the run cannot go on. `told` comes about once a second.
    """

    term: int
    heard: int
    make: tuple[MakeOrder, ...]
    kill: tuple[MakeOrder, ...]
    ready: bool
    records: Records
    state: StateRef | None
    over: bool
    error: BaseException | None
    told: Told | None = None

    def is_new(self, report: DriverReport) -> bool:
        """Whether whoever reported this has something to do by it."""
        return bool(
            any(order.name not in report.making for order in self.make)
            or any(order.name not in report.killing for order in self.kill)
            or self.records.records
            or self.records.history != report.history
            or (self.ready and not report.begun)
            or (self.state is not None and self.state.step != report.saving)
            or self.over
            or self.error is not None
        )
