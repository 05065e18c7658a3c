"""Which actors to make, when, and when to give up: what is wanted and what died in, orders out.

A replacement comes after 1 s, then 2 s, 4 s ... at most a minute, with jitter, so that what dies
together does not come back together; who was healthy for a minute starts afresh. A node
on which actors die again and again is avoided. What dies with its node, or because a node was taken
back, is the cluster's affair and has a budget of its own. Deaths over the same shard are put down
to the shard. Where actors die all the time, one a minute is made, and if none is left alive, the
run ends with the reason. Pure: times are `now` in seconds of a steady clock.
"""

import random
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["reader", "trainer"]
# "node": its node died, "preemption": it was taken back; "let go": we ended it ourselves.
Cause = Literal["failure", "node", "preemption", "let go"]
_NUM_EVENTS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisorConfig:
    """Patience with what dies. Counts are of deaths within `window_seconds`."""

    first_seconds: float = 1.0
    max_seconds: float = 60.0
    healthy_seconds: float = 60.0
    window_seconds: float = 300.0
    max_failures: int = 12  # of a role; at least as many as there are actors of it
    max_preemptions: int = 100
    max_in_a_row: int = 8  # in one place, none of them healthy, and nobody else alive
    max_at_start: int = 4  # in a row, before they answered
    node_failures: int = 3
    node_seconds: float = 600.0
    shard_failures: int = 8
    start_seconds: float = 900.0  # until one of a role answers: machines may have to boot


@dataclass(frozen=True, slots=True)
class Make:
    """Make an actor of this name now, in this pool, and not on these nodes."""

    role: Role
    name: str
    pool: int
    avoid: frozenset[str]


@dataclass(frozen=True, slots=True)
class Death:
    """An actor that ended against our will; `why` is a phrase for people."""

    at: float
    role: Role
    cause: Cause
    node: str
    shard: str
    why: str


@dataclass(slots=True)
class _Actor:
    made: float
    num_failures: int  # of those whose place it has, in a row
    node: str = ""
    started: float | None = None
    leaving: bool = False


@dataclass(slots=True)
class _Debt:
    """An actor that is owed, from then on."""

    due: float
    num_failures: int


@dataclass(slots=True)
class _Role:
    wanted: int = 0
    pool: int = 0
    actors: dict[str, _Actor] = field(default_factory=dict)
    debts: list[_Debt] = field(default_factory=list)
    deaths: deque[Death] = field(default_factory=deque)
    num_at_start: int = 0
    last_made: float = float("-inf")
    alone_since: float | None = None  # since when actors are wanted and none answers

    @property
    def num_alive(self) -> int:
        return sum(actor.started is not None for actor in self.actors.values())


class Supervisor:
    """Owns the names of actors and the memory of what became of them."""

    def __init__(self, term: int, config: SupervisorConfig | None = None, seed: int = 0) -> None:
        self._term, self._config = term, config or SupervisorConfig()
        self._roles: dict[Role, _Role] = {"reader": _Role(), "trainer": _Role()}
        self._avoided: dict[str, float] = {}  # node: until then
        self._random = random.Random(f"{seed} {term}")
        self._last_number = 0
        self._gave_up = ""
        self.restarts: Counter[tuple[Role, Cause]] = Counter()
        self.events: deque[tuple[float, str]] = deque(maxlen=_NUM_EVENTS)

    @property
    def gave_up(self) -> str:
        """Why going on would be a restart loop; empty as long as it would not."""
        return self._gave_up

    def want(self, role: Role, count: int, pool: int = 0) -> None:
        """From now on so many actors of a role are wanted, new ones in this pool."""
        self._roles[role].wanted, self._roles[role].pool = count, pool

    def adopt(self, role: Role, name: str, now: float) -> None:
        """An actor that another Control ordered is one of ours."""
        self._roles[role].actors.setdefault(name, _Actor(now, 0))

    def started(self, name: str, node: str, now: float) -> None:
        """An actor answers for the first time."""
        for role in self._roles.values():
            actor = role.actors.get(name)
            if actor is not None and actor.started is None:
                actor.node, actor.started, role.num_at_start = node, now, 0

    def leaving(self, name: str) -> None:
        """An actor was asked to leave: another one takes its place if it is still wanted."""
        for role in self._roles.values():
            if name in role.actors:
                role.actors[name].leaving = True

    def ended(self, name: str, cause: Cause, why: str, now: float, shard: str = "") -> None:
        """An actor is dead, `shard` in its hands if it was cropping. Repeated, it does nothing."""
        for kind, role in self._roles.items():
            actor = role.actors.pop(name, None)
            if actor is None:
                continue
            self.restarts[kind, cause] += 1
            if cause == "let go" or actor.leaving:
                return
            self.events.append((now, f"{name} ended ({cause}): {why}"))
            self._note(role, Death(now, kind, cause, actor.node, shard, why))
            self._owe(role, actor, cause, now)
            if actor.started is None and cause == "failure":
                role.num_at_start += 1
            self._judge(kind, role, actor, why, now)

    def orders(self, now: float, nodes: Collection[str] = ()) -> list[Make]:
        """What to make now; `nodes` are those that could be used. Each order is given once."""
        if self._gave_up:
            return []
        for name in [name for name, until in self._avoided.items() if until <= now]:
            del self._avoided[name]
        return [
            make
            for kind, role in self._roles.items()
            for make in self._order(kind, role, nodes, now)
        ]

    def owed(self, role: Role, now: float) -> list[float]:
        """In how many seconds which replacements are due, for whoever watches."""
        return sorted(max(debt.due - now, 0.0) for debt in self._roles[role].debts)

    def is_slow(self, role: Role, now: float) -> bool:
        """Whether so many of a role die that replacements come one at a time."""
        state = self._roles[role]
        suspects = self.suspects(now)
        num_taken = sum(death.cause == "preemption" for death in state.deaths)
        num_failed = sum(
            death.cause != "preemption" and death.shard not in suspects for death in state.deaths
        )
        config = self._config
        return num_failed >= max(config.max_failures, state.wanted) or num_taken >= max(
            config.max_preemptions, state.wanted
        )

    def avoided(self, nodes: Collection[str], now: float) -> frozenset[str]:
        """Nodes to make nothing on; where that is all of them, the one avoided longest is free."""
        avoided = {node for node, until in self._avoided.items() if until > now}
        if nodes and avoided.issuperset(nodes):
            avoided.discard(min(nodes, key=lambda node: (self._avoided[node], node)))
        return frozenset(avoided)

    def suspects(self, now: float) -> dict[str, int]:
        """Shards that were in the hands of more than one actor that died, and of how many."""
        deaths: Counter[str] = Counter()
        for role in self._roles.values():
            self._forget(role, now)
            deaths.update(death.shard for death in role.deaths if death.shard)
        return {shard: count for shard, count in deaths.items() if count > 1}

    def _note(self, role: _Role, death: Death) -> None:
        """Count a death, a node that took many along only once; see whose fault it is."""
        self._forget(role, death.at)
        of_a_node = death.cause in ("node", "preemption")
        if of_a_node and any(
            other.node == death.node and other.cause == death.cause for other in role.deaths
        ):
            return
        role.deaths.append(death)
        if death.cause != "failure" or self.suspects(death.at).get(death.shard):
            return
        num_here = sum(
            other.node == death.node and other.cause == "failure" and bool(death.node)
            for state in self._roles.values()
            for other in state.deaths
        )
        if num_here >= self._config.node_failures:
            self._avoided[death.node] = death.at + self._config.node_seconds
            self.events.append(
                (death.at, f"node {death.node} is avoided: {num_here} actors died there")
            )

    def _forget(self, role: _Role, now: float) -> None:
        while role.deaths and role.deaths[0].at < now - self._config.window_seconds:
            role.deaths.popleft()

    def _owe(self, role: _Role, actor: _Actor, cause: Cause, now: float) -> None:
        """A replacement for who died, the later the more of its predecessors died."""
        config = self._config
        healthy = actor.started is not None and now - actor.started >= config.healthy_seconds
        if cause == "preemption":
            role.debts.append(_Debt(now, actor.num_failures))
            return
        num_failures = 1 if healthy else actor.num_failures + 1
        seconds = min(config.max_seconds, config.first_seconds * 2.0 ** min(num_failures - 1, 30))
        role.debts.append(_Debt(now + seconds * self._random.uniform(0.5, 1.0), num_failures))

    def _judge(self, kind: Role, role: _Role, actor: _Actor, why: str, now: float) -> None:
        if self._gave_up:
            return
        alone = not role.num_alive
        blamed = self.suspects(now)
        worst = max(blamed, key=lambda shard: (blamed[shard], shard), default="")
        if worst and blamed[worst] >= self._config.shard_failures:
            self._gave_up = (
                f"{blamed[worst]} actors died while they cropped {worst}; look at the shard with "
                "`streamssl shards verify`, and at the memory of the nodes"
            )
        elif alone and role.num_at_start >= self._config.max_at_start:
            self._gave_up = (
                f"{role.num_at_start} {kind}s died before they did anything ({why}); mend that, "
                "then start the same command again"
            )
        elif alone and (
            actor.num_failures + 1 >= self._config.max_in_a_row or self.is_slow(kind, now)
        ):
            self._gave_up = (
                f"{kind}s died again and again, {len(role.deaths)} in the last "
                f"{self._config.window_seconds:.0f} s, and none is left (the last one: {why}); "
                "mend that, then start the same command again"
            )

    def _order(self, kind: Role, role: _Role, nodes: Collection[str], now: float) -> list[Make]:
        self._check_alone(kind, role, now)
        counted = sum(not actor.leaving for actor in role.actors.values())
        missing = max(role.wanted - counted, 0)
        role.debts = sorted(role.debts, key=lambda debt: debt.due)[:missing]
        role.debts += [_Debt(now, 0) for _ in range(missing - len(role.debts))]
        due = [debt for debt in role.debts if debt.due <= now]
        if self.is_slow(kind, now):
            rested = now - role.last_made >= self._config.max_seconds
            due = due[: 1 if rested else 0]
        for debt in due:
            role.debts.remove(debt)
        return [self._make(kind, role, debt, nodes, now) for debt in due]

    def _make(
        self, kind: Role, role: _Role, debt: _Debt, nodes: Collection[str], now: float
    ) -> Make:
        self._last_number += 1
        name = f"{kind}-{self._term}.{self._last_number}"
        role.actors[name] = _Actor(now, debt.num_failures)
        role.last_made = now
        return Make(kind, name, role.pool, self.avoided(nodes, now))

    def _check_alone(self, kind: Role, role: _Role, now: float) -> None:
        """End the wait for a first actor that the cluster seems unable to start."""
        if not role.wanted or role.num_alive:
            role.alone_since = None
            return
        role.alone_since = now if role.alone_since is None else role.alone_since
        if now - role.alone_since > self._config.start_seconds and not self._gave_up:
            self._gave_up = (
                f"no {kind} started in {self._config.start_seconds:.0f} s: the cluster had no room "
                "for one; add nodes, or ask for less"
            )
