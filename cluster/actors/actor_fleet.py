"""The actors of a run as their owner sees them: made, started, left or lost.

Every actor is asked to `start`, then for the moment at which it has `left`: the answer to the one
or the other fails at once when it dies, so nobody has to ask whether it lives.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.protocol.actor_rpc import Started
from cluster.protocol.driver_protocol import ActorEvent, MakeOrder, Role
from cluster.protocol.node_pools import Pool
from shards.errors import StreamSSLError

_MAX_CAUSE = 200  # characters of a reason

_NODE_DIED = "its node has died"  # Ray says so in the text alone
# Makes an actor of this name with these options of Ray.
Make = Callable[[str, Mapping[str, Any]], Any]


@dataclass(slots=True)
class _Actor:
    order: MakeOrder
    handle: Any
    ref: Any  # of its start, then of its leaving
    started: Started | None = None


class Fleet:
    """Makes actors and hears of their ends. `make` and `pools` say how, and where, by role."""

    def __init__(self, make: Mapping[Role, Make], pools: Mapping[Role, tuple[Pool, ...]]) -> None:
        self._make, self._pools = make, pools
        self._actors: dict[str, _Actor] = {}
        self._gone: set[str] = set()
        self._killed: set[str] = set()
        self._parted: list[tuple[int, Any]] = []
        self._number = 0

    def make(self, orders: Iterable[MakeOrder]) -> None:
        """Make what is not made yet; what died is told of, and never made again under its name."""
        for order in orders:
            if order.name not in self._actors and order.name not in self._gone:
                pools = self._pools[order.role]
                where = pools[order.pool % len(pools)].options(order.avoid)
                handle = self._make[order.role](order.name, {"name": order.name, **where})
                self._actors[order.name] = _Actor(order, handle, handle.start.remote())

    def kill(self, orders: Iterable[MakeOrder]) -> list[ActorEvent]:
        """End these at once. They are told of as lost: those that were never made, here."""
        unmade = []
        for order in orders:
            actor = self._actors.get(order.name)
            if actor is not None and order.name not in self._killed:
                self._killed.add(order.name)
                ray.kill(actor.handle)
            elif actor is None and order.name not in self._gone:
                self._gone.add(order.name)
                unmade.append(self._event(_Actor(order, None, None), "lost"))
        return unmade

    def bury(self, heard: int) -> None:
        """End the processes of those that have left, and of whose leaving Control has heard."""
        for number, handle in self._parted:
            if number <= heard:
                ray.kill(handle)
        self._parted = [parted for parted in self._parted if parted[0] > heard]

    def refs(self) -> list[Any]:
        """What `ray.wait` may wait for: something happened when one of them is ready."""
        return [actor.ref for actor in self._actors.values()]

    def collect(self, refs: Iterable[Any]) -> list[ActorEvent]:
        """What happened, of those whose refs are ready."""
        by_ref = {actor.ref: actor for actor in self._actors.values()}
        return [self._look(by_ref[ref]) for ref in refs if ref in by_ref]

    @property
    def making(self) -> frozenset[str]:
        """Those that did not start yet."""
        return frozenset(name for name, one in self._actors.items() if one.started is None)

    @property
    def killing(self) -> frozenset[str]:
        """Those that were told to end, and are not known to have."""
        return frozenset(self._killed & self._actors.keys())

    def known(self) -> list[ActorEvent]:
        """All that run, as if they had just started, and all that will: for a new Control."""
        return [
            self._event(actor, "made" if actor.started is None else "started")
            for actor in self._actors.values()
        ]

    def close(self) -> None:
        """End all of them."""
        for handle in (
            *(actor.handle for actor in self._actors.values()),
            *(handle for _, handle in self._parted),
        ):
            ray.kill(handle)
        self._actors.clear()
        self._parted.clear()

    def _look(self, actor: _Actor) -> ActorEvent:
        try:
            answer = ray.get(actor.ref)
        except RayTaskError as error:
            ray.kill(actor.handle)
            self._forget(actor)
            # What a user must mend would be no better on another node.
            if isinstance(error.cause, StreamSSLError):
                return self._event(actor, "refused", error=error.cause)
            return self._event(actor, "lost", reason=_cause(error))
        except RayActorError as error:
            self._forget(actor)
            with_node = _NODE_DIED in str(error)
            return self._event(
                actor,
                "lost",
                reason=_cause(error),
                with_node=with_node,
                preempted=error.preempted,
            )
        except RayError as error:  # the node went before it answered
            ray.kill(actor.handle)
            self._forget(actor)
            return self._event(actor, "lost", reason=_cause(error), with_node=True)
        if actor.started is None:
            actor.started, actor.ref = answer, actor.handle.left.remote()
            return self._event(actor, "started")
        self._forget(actor)
        event = self._event(actor, "left")
        # A state that it gave lies in its process until somebody has fetched it.
        self._parted.append((event.number, actor.handle))
        return event

    def _forget(self, actor: _Actor) -> None:
        del self._actors[actor.order.name]
        self._gone.add(actor.order.name)

    def _event(self, actor: _Actor, kind: Any, **more: Any) -> ActorEvent:
        self._number += 1
        where = actor.started or Started(0, "")
        return ActorEvent(
            number=self._number,
            name=actor.order.name,
            role=actor.order.role,
            kind=kind,
            pid=where.pid,
            node=where.node,
            pages=where.pages,
            **more,
        )


def _cause(error: BaseException) -> str:
    """The last line of what an actor said: Ray puts a whole traceback before it, and behind a
    death everything that could ever be its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return textwrap.shorten(last.partition(" Worker exit type:")[0], _MAX_CAUSE, placeholder=" …")
