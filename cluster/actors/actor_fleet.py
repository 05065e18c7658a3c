"""Actor fleet: creates and kills the actors of a run as requested, and reports their events.

Each actor is asked to `start`, then to report when it has `left`. The pending call fails as soon as
the actor dies, so no polling is needed.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.protocol.actor_rpc import ActorLocation
from cluster.protocol.driver_protocol import ActorEvent, CreateActor, EventKind
from cluster.protocol.messages import Role
from cluster.protocol.node_pools import Pool
from shards.errors import StreamSSLError

_MAX_REASON = 200  # characters

_NODE_DIED = "its node has died"  # Ray reports it in the text only
# Creates an actor of this name with these options of Ray.
Make = Callable[[str, Mapping[str, Any]], Any]


@dataclass(slots=True)
class _OwnedActor:
    create: CreateActor
    handle: Any
    ref: Any  # of the call `start`, then of the call `left`
    location: ActorLocation | None = None


class ActorFleet:
    """Owner of the actors of a run. `make` and `pools` tell how and where, by role."""

    def __init__(self, make: Mapping[Role, Make], pools: Mapping[Role, tuple[Pool, ...]]) -> None:
        self._make, self._pools = make, pools
        self._actors: dict[str, _OwnedActor] = {}
        self._gone: set[str] = set()
        self._killed: set[str] = set()
        self._departed: list[tuple[int, Any]] = []
        self._number = 0

    def create(self, requests: Iterable[CreateActor]) -> None:
        """Create the actors that do not exist yet; a name is never used twice.

        Trainers come first: they import for seconds, so they get the processes that Ray has ready.
        """
        for request in sorted(requests, key=lambda one: one.role != "trainer"):
            if request.name not in self._actors and request.name not in self._gone:
                pools = self._pools[request.role]
                where = pools[request.pool % len(pools)].options(request.avoid)
                handle = self._make[request.role](request.name, {"name": request.name, **where})
                self._actors[request.name] = _OwnedActor(request, handle, handle.start.remote())

    def kill(self, requests: Iterable[CreateActor]) -> list[ActorEvent]:
        """Kill actors. Return the `lost` events of those that were never created."""
        never_created = []
        for request in requests:
            actor = self._actors.get(request.name)
            if actor is not None and request.name not in self._killed:
                self._killed.add(request.name)
                ray.kill(actor.handle)
            elif actor is None and request.name not in self._gone:
                self._gone.add(request.name)
                never_created.append(self._event(_OwnedActor(request, None, None), "lost"))
        return never_created

    def end_departed(self, last_event: int) -> None:
        """End the processes of actors that left, if Control knows events up to this number."""
        for number, handle in self._departed:
            if number <= last_event:
                ray.kill(handle)
        self._departed = [one for one in self._departed if one[0] > last_event]

    def refs(self) -> list[Any]:
        """Return the pending calls: one becomes ready when something happens to its actor."""
        return [actor.ref for actor in self._actors.values()]

    def collect(self, refs: Iterable[Any]) -> list[ActorEvent]:
        """Return the events of the actors whose calls are ready."""
        by_ref = {actor.ref: actor for actor in self._actors.values()}
        return [self._resolve(by_ref[ref]) for ref in refs if ref in by_ref]

    @property
    def creating(self) -> frozenset[str]:
        """Actors that have not started yet."""
        return frozenset(name for name, one in self._actors.items() if one.location is None)

    @property
    def killing(self) -> frozenset[str]:
        """Actors that were killed, and are not known to be dead."""
        return frozenset(self._killed & self._actors.keys())

    def known(self) -> list[ActorEvent]:
        """Return events that describe the present actors to a new Control."""
        return [
            self._event(actor, "created" if actor.location is None else "started")
            for actor in self._actors.values()
        ]

    def close(self) -> None:
        """Kill all actors."""
        for handle in (
            *(actor.handle for actor in self._actors.values()),
            *(handle for _, handle in self._departed),
        ):
            ray.kill(handle)
        self._actors.clear()
        self._departed.clear()

    def _resolve(self, actor: _OwnedActor) -> ActorEvent:
        """Return the event of an actor whose pending call is ready."""
        try:
            answer = ray.get(actor.ref)
        except RayTaskError as error:
            ray.kill(actor.handle)
            self._forget(actor)
            # An error that the user must fix would be the same on another node.
            if isinstance(error.cause, StreamSSLError):
                return self._event(actor, "refused", error=error.cause)
            return self._event(actor, "lost", reason=_reason(error))
        except RayActorError as error:
            self._forget(actor)
            return self._event(
                actor,
                "lost",
                reason=_reason(error),
                with_node=_NODE_DIED in str(error),
                preempted=error.preempted,
            )
        except RayError as error:  # the node died before the actor answered
            ray.kill(actor.handle)
            self._forget(actor)
            return self._event(actor, "lost", reason=_reason(error), with_node=True)
        if actor.location is None:
            actor.location, actor.ref = answer, actor.handle.left.remote()
            return self._event(actor, "started")
        self._forget(actor)
        event = self._event(actor, "left")
        # The state that it gave lies in its process until the driver has fetched it.
        self._departed.append((event.number, actor.handle))
        return event

    def _forget(self, actor: _OwnedActor) -> None:
        del self._actors[actor.create.name]
        self._gone.add(actor.create.name)

    def _event(self, actor: _OwnedActor, kind: EventKind, **more: Any) -> ActorEvent:
        self._number += 1
        location = actor.location or ActorLocation(0, "")
        return ActorEvent(
            number=self._number,
            name=actor.create.name,
            role=actor.create.role,
            kind=kind,
            pid=location.pid,
            node=location.node,
            pages=location.pages,
            **more,
        )


def _reason(error: BaseException) -> str:
    """Return the last line of an error.

    Ray puts a traceback before it, and after the line of a death a list of possible causes.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return textwrap.shorten(last.partition(" Worker exit type:")[0], _MAX_REASON, placeholder=" …")
