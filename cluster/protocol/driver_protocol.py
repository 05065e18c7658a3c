"""Messages between Control and the driver.

    driver -- DriverReport --> Control -- DriverOrders --> driver

The driver creates and owns the actors: none outlives the command, and all outlive Control. Both
sides repeat a message until the other one is known to have received it.
"""

from dataclasses import dataclass
from typing import Literal

from cluster.protocol.messages import Role, StateRef
from cluster.protocol.process_counts import ProcessCounts
from cluster.protocol.run_status import Status
from cluster.protocol.step_log import Records
from shards.metric import Readings

EventKind = Literal["created", "started", "left", "lost", "refused"]


@dataclass(frozen=True, slots=True)
class CreateActor:
    """Request for an actor: in the pool of this number, not on the nodes of `avoid`."""

    name: str
    role: Role
    pool: int = 0
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorEvent:
    """Change in the life of an actor. `number` rises; a repeated number is ignored.

    `created`: it has not answered yet. `started`: it answers. `left`: it ended as it was told to.
    `lost`: it died. `refused`: it cannot start because of `error`, and no other node would help.
    `with_node`: its node died; `preempted`: the provider took the node back. `pages` is the address
    of its own pages.
    """

    number: int
    name: str
    role: Role
    kind: EventKind
    pid: int = 0
    node: str = ""
    pages: str = ""
    reason: str = ""
    with_node: bool = False
    preempted: bool = False
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverReport:
    """State of the driver, and events that Control may not know.

    `recorded`: steps up to this one, of this `history`, are in the log. `creating` and `killing`:
    actors for which that is under way. `state` is the newest safe state; the state of step `saving`
    is being saved, and that of step and giver `unsaved` was lost. `begun`: the run has a folder.
    `stop`: the user wants the run to end.
    """

    term: int
    events: tuple[ActorEvent, ...]
    creating: frozenset[str]
    killing: frozenset[str]
    recorded: int
    history: int
    state: StateRef
    saving: int
    unsaved: tuple[int, str] | None
    begun: bool
    stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Report of Control, about once a second: gauges, status, and the counters that changed."""

    counted: tuple[ProcessCounts, ...]
    gauges: Readings
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverOrders:
    """Answer of Control to the driver.

    `create` and `kill` list every actor for which that is still wanted. Events up to `last_event`
    are known. `data_ready`: the data can fill a batch. `state` is newer than the safe one, and not
    newer than `records`. `finished`: every trainer has left; `error`: the run cannot go on.
    `report` comes about once a second.
    """

    last_event: int
    create: tuple[CreateActor, ...]
    kill: tuple[CreateActor, ...]
    data_ready: bool
    records: Records
    state: StateRef | None
    finished: bool
    error: BaseException | None
    report: RunReport | None = None

    def is_news(self, report: DriverReport) -> bool:
        """Return True if the driver that sent this report has something to do."""
        return bool(
            any(request.name not in report.creating for request in self.create)
            or any(request.name not in report.killing for request in self.kill)
            or self.records.records
            or self.records.history != report.history
            or (self.data_ready and not report.begun)
            or (self.state is not None and self.state.step != report.saving)
            or self.finished
            or self.error is not None
        )
