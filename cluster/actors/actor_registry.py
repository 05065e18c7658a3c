"""Actor registry: the state of every actor of a run, by name. Pure: no cluster, no clock.

    Scheduled --due--> Requested --started--> Alive --drain--> Draining --left--> (removed)
        ^                  |                    |                  |
        |__________________|____________________|                  |
        |      died: a replacement, after a delay                  |
        |                                       |__ given up ______|__> Killing --dead--> (removed)

The driver executes: it creates what is `Requested`, kills what is `Killing`, and reports events.
Requests are repeated until the driver has reported their outcome.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cluster.actors.restart_policy import (
    Cause,
    Death,
    RestartConfig,
    RestartPolicy,
    count_failures,
    restart_delay,
)
from cluster.protocol.driver_protocol import ActorEvent, CreateActor
from cluster.protocol.messages import Role
from shards.metric import Key


@dataclass(frozen=True, slots=True)
class Scheduled:
    """An actor to create at `due`; `num_failures` predecessors failed in a row."""

    role: Role
    due: float
    num_failures: int = 0


@dataclass(frozen=True, slots=True)
class Requested:
    """An actor that the driver creates; it has not answered yet."""

    create: CreateActor
    num_failures: int = 0

    @property
    def role(self) -> Role:
        return self.create.role


@dataclass(frozen=True, slots=True)
class Alive:
    """An actor that answers since `since`."""

    started: ActorEvent
    since: float
    num_failures: int = 0

    @property
    def role(self) -> Role:
        return self.started.role


@dataclass(frozen=True, slots=True)
class Draining:
    """An actor that finishes its work and leaves; another one takes its place if needed."""

    started: ActorEvent

    @property
    def role(self) -> Role:
        return self.started.role


@dataclass(frozen=True, slots=True)
class Killing:
    """An actor that the driver ends; `failed`: it was given up, not only superfluous."""

    create: CreateActor
    failed: bool
    started: ActorEvent | None = None

    @property
    def role(self) -> Role:
        return self.create.role


ActorState = Scheduled | Requested | Alive | Draining | Killing


class ActorRegistry:
    """States of all actors; the dead ones live on in the history of the restart policy."""

    def __init__(
        self, term: int, wanted: Mapping[Role, int], config: RestartConfig | None = None
    ) -> None:
        self.policy = RestartPolicy(config)
        self._states: dict[str, ActorState] = {}
        self._wanted, self._pools = dict(wanted), dict.fromkeys(wanted, 0)
        self._term, self._last_number = term, 0
        self._random = random.Random(f"0 {term}")
        self._last_request: dict[Role, float] = {}
        self._alone_since: dict[Role, float] = {}
        self._num_lost: Counter[Role] = Counter()
        self.is_closed = False

    @property
    def started(self) -> dict[str, ActorEvent]:
        """Actors that answer, by name, and where they run; those to be killed included."""
        return {
            name: state.started
            for name, state in self._states.items()
            if isinstance(state, Alive | Draining | Killing) and state.started is not None
        }

    @property
    def draining(self) -> frozenset[str]:
        """Actors that finish their work, then leave."""
        return frozenset(name for name, one in self._states.items() if isinstance(one, Draining))

    @property
    def num_wanted(self) -> Mapping[str, int]:
        """Number of actors that the run should have, by role."""
        return {str(role): count for role, count in self._wanted.items()}

    def ready(self, role: Role) -> dict[str, str]:
        """Return the nodes of actors that answer and stay, by name, the oldest actor first."""
        alive = [one for one in self._states.values() if isinstance(one, Alive)]
        alive.sort(key=lambda one: one.since)
        return {one.started.name: one.started.node for one in alive if one.role == role}

    def starting(self, role: Role) -> tuple[str, ...]:
        """Return the names of requested actors that have not answered."""
        return tuple(
            name
            for name, one in self._states.items()
            if isinstance(one, Requested) and one.role == role
        )

    def delays(self, role: Role, now: float) -> list[float]:
        """Return in how many seconds the scheduled actors of a role are due."""
        return sorted(max(one.due - now, 0.0) for _, one in self._scheduled(role))

    def requests(self) -> tuple[tuple[CreateActor, ...], tuple[CreateActor, ...]]:
        """Return the actors to create, and the actors to kill."""
        states = self._states.values()
        return (
            tuple(one.create for one in states if isinstance(one, Requested)),
            tuple(one.create for one in states if isinstance(one, Killing)),
        )

    def want(self, role: Role, count: int, pool: int = 0) -> None:
        """Set how many actors of a role the run should have, new ones in this pool."""
        if not self.is_closed:
            self._wanted[role], self._pools[role] = count, pool

    def apply(self, event: ActorEvent, now: float, shard: str = "") -> None:
        """Take an event of the driver; a dead reader cropped `shard`. Repeats have no effect."""
        if event.kind == "created":
            created = CreateActor(event.name, event.role)
            self._states.setdefault(event.name, Requested(created))
        elif event.kind == "started":
            self._start(event, now)
        else:
            self._end(event, now, shard)

    def give_up(self, name: str, shard: str, now: float) -> None:
        """Replace an actor that hangs or is silent, and let the driver kill it."""
        state = self._states.get(name)
        if isinstance(state, Alive | Draining):
            create = CreateActor(name, state.role)
            self._states[name] = Killing(create, isinstance(state, Alive), state.started)
            if isinstance(state, Alive):
                self._record_death(name, state, "failure", "it hangs, or is silent", now, shard)

    def drain(self, name: str) -> None:
        """Let an actor finish its work and leave; end it at once if it never answered."""
        state = self._states.get(name)
        if isinstance(state, Requested):
            self._states[name] = Killing(state.create, failed=False)
        elif isinstance(state, Alive):
            self._states[name] = Draining(state.started)

    def close(self) -> None:
        """End the run: no actor is needed any more, and those that work end by themselves."""
        self.is_closed = True
        self._wanted = dict.fromkeys(self._wanted, 0)
        self._states = {
            name: state
            for name, state in self._states.items()
            if not isinstance(state, Scheduled | Requested)
        }

    def tick(self, now: float, nodes: Callable[[Role, int], Collection[str]]) -> None:
        """Request the actors that are due; `nodes` returns the usable nodes of a role's pool.

        If all of them are to be avoided, one is used nevertheless.
        """
        for role in self._wanted:
            if self.is_closed or self.policy.gave_up:
                return
            self._check_alone(role, now)
            self._schedule(role, now)
            due = [name for name, one in self._scheduled(role) if one.due <= now]
            if self.policy.is_storm(role, self._wanted[role], now):
                rested = now - self._last_request.get(role, float("-inf"))
                due = due[: 1 if rested >= self.policy.config.max_seconds else 0]
            pool = self._pools[role]
            for name in due:
                avoid = self.policy.avoided(nodes(role, pool), now)
                create = CreateActor(name, role, pool, tuple(sorted(avoid)))
                state = self._states[name]
                assert isinstance(state, Scheduled)
                self._states[name] = Requested(create, state.num_failures)
                self._last_request[role] = now

    def counters(self) -> dict[Key, float]:
        """Return the losses so far, by key of the metric catalogue."""
        found: dict[Key, float] = {
            (f"{role}s_lost",): self._num_lost[role] for role in self._wanted
        }
        return found | {("restarts", *key): n for key, n in self.policy.restarts.items()}

    def _scheduled(self, role: Role) -> list[tuple[str, Scheduled]]:
        """Return the scheduled actors of a role, the first due first."""
        found = [
            (name, one)
            for name, one in self._states.items()
            if isinstance(one, Scheduled) and one.role == role
        ]
        return sorted(found, key=lambda item: item[1].due)

    def _num_alive(self, role: Role) -> int:
        """Return how many actors of a role answer and were not given up."""
        return sum(
            isinstance(one, Alive | Draining) and one.role == role for one in self._states.values()
        )

    def _start(self, event: ActorEvent, now: float) -> None:
        match self._states.get(event.name):
            case Draining():
                self._states[event.name] = Draining(event)
            case Killing(create, failed):
                self._states[event.name] = Killing(create, failed, event)
            case Alive(_, since, num_failures):
                self._states[event.name] = Alive(event, since, num_failures)
            case Requested(_, num_failures):
                self._states[event.name] = Alive(event, now, num_failures)
                self.policy.record_start(event.role)
            case _:  # an actor of an earlier Control
                self._states[event.name] = Alive(event, now)
                self.policy.record_start(event.role)

    def _end(self, event: ActorEvent, now: float, shard: str) -> None:
        state = self._states.pop(event.name, None)
        left = event.kind == "left"
        asked = isinstance(state, Draining) or (isinstance(state, Killing) and not state.failed)
        if left and event.role == "trainer" and not asked:
            self.close()  # it has trained to the last step
        if isinstance(state, Requested | Alive):
            self._num_lost[event.role] += event.kind == "lost"
            if not left:
                cause: Cause = "node" if event.with_node else "failure"
                cause = "preemption" if event.preempted else cause
                self._record_death(event.name, state, cause, event.reason, now, shard)
        elif isinstance(state, Killing):
            self._num_lost[event.role] += event.kind == "lost" and state.failed

    def _record_death(
        self,
        name: str,
        state: Requested | Alive,
        cause: Cause,
        reason: str,
        now: float,
        shard: str,
    ) -> None:
        """Add a death to the history, and schedule the replacement."""
        role, alive = state.role, state if isinstance(state, Alive) else None
        death = Death(
            at=now,
            name=name,
            role=role,
            cause=cause,
            reason=reason,
            node=alive.started.node if alive else "",
            shard=shard,
            lived=now - alive.since if alive else None,
            num_failures=state.num_failures,
        )
        config = self.policy.config
        self.policy.record_death(death, self._wanted[role], self._num_alive(role))
        if not self.is_closed:
            delay = restart_delay(config, death, self._random.uniform(0.5, 1.0))
            self._add(Scheduled(role, now + delay, count_failures(config, death)))

    def _schedule(self, role: Role, now: float) -> None:
        """Schedule the actors that are missing; cancel the latest of those that are too many."""
        counted = sum(
            isinstance(one, Requested | Alive) and one.role == role for one in self._states.values()
        )
        missing = max(self._wanted[role] - counted, 0)
        scheduled = self._scheduled(role)
        for name, _ in scheduled[missing:]:
            del self._states[name]
        for _ in range(missing - len(scheduled)):
            self._add(Scheduled(role, now))

    def _add(self, state: Scheduled) -> None:
        self._last_number += 1
        self._states[f"{state.role}-{self._term}.{self._last_number}"] = state

    def _check_alone(self, role: Role, now: float) -> None:
        """End the wait for a first actor that the cluster seems unable to start."""
        if not self._wanted[role] or self._num_alive(role):
            self._alone_since.pop(role, None)
        else:
            self.policy.check_start(role, now - self._alone_since.setdefault(role, now))
