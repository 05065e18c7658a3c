"""Who works for the run: which actors there shall be, which must go, and why. Pure: no cluster.

It puts two policies together: how many readers (`scaler`), and what is made anew, when and where
(`supervisor`). Orders are repeated until the driver says what became of them.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cluster.actors.autoscaler import Decision, Observation, Scaler, ScalingConfig
from cluster.actors.reader_totals import Tally
from cluster.actors.restart_policy import Cause, Supervisor, SupervisorConfig
from cluster.protocol.driver_protocol import ActorEvent, MakeOrder, Role
from cluster.protocol.messages import Beat
from cluster.protocol.metric import Key

_NUM_EVENTS = 100


@dataclass(slots=True)
class _Before:
    """Counters at the last look, to work out rates."""

    now: float
    num_made: int = 0
    busy_seconds: float = 0.0
    committed: int = -1
    step_seconds: float = 0.0
    wait_seconds: float = 0.0


class Staff:
    """Wants actors, and hears what became of them."""

    def __init__(
        self,
        term: int,
        scaling: ScalingConfig,
        num_trainers: int,
        num_pools: Mapping[Role, int],
        config: SupervisorConfig,
    ) -> None:
        self._supervisor = Supervisor(term, config)
        self._scaler = Scaler(scaling, num_pools["reader"])
        self._wanted: dict[Role, int] = {"reader": scaling.least, "trainer": num_trainers}
        self._trainer_pools = num_pools["trainer"]
        self._orders: dict[str, MakeOrder] = {}
        self._there: dict[str, ActorEvent] = {}
        self._kill: dict[str, MakeOrder] = {}
        self._leaving: set[str] = set()
        self._num_lost: Counter[Role] = Counter()
        self._num_scalings: Counter[tuple[str, str]] = Counter()
        self._num_failed_launches = 0
        self._closed = False
        self._before: _Before | None = None
        self._failed_launches = 0
        self.decision = Decision(target=scaling.least, reason="unknown")
        self._scalings: deque[tuple[float, str, str]] = deque(maxlen=_NUM_EVENTS)
        self._apply()

    @property
    def gave_up(self) -> str:
        """Why going on would be a restart loop; empty as long as it would not."""
        return self._supervisor.gave_up

    @property
    def there(self) -> Mapping[str, ActorEvent]:
        """Actors that answer, by name."""
        return self._there

    @property
    def num_wanted(self) -> Mapping[str, int]:
        """How many there shall be, by role."""
        return {str(role): count for role, count in self._wanted.items()}

    @property
    def events(self) -> list[tuple[float, str, str]]:
        """What was decided, when, and why; the oldest first."""
        return sorted([*self._scalings, *((at, what, "") for at, what in self._supervisor.events)])

    @property
    def leaving(self) -> frozenset[str]:
        """Readers that are to hand out what they hold, and to begin nothing more."""
        return frozenset(self._leaving)

    def wanted(self) -> tuple[tuple[MakeOrder, ...], tuple[MakeOrder, ...]]:
        """Actors to make, and actors to end."""
        return tuple(self._orders.values()), tuple(self._kill.values())

    def take(self, event: ActorEvent, now: float, shard: str = "") -> bool:
        """Note what became of an actor, `shard` in its hands; whether it is gone."""
        if event.kind in ("made", "started"):
            self._supervisor.adopt(event.role, event.name, now)
        if event.kind == "made":
            self._orders.setdefault(event.name, MakeOrder(event.name, event.role))
            return False
        self._orders.pop(event.name, None)
        if event.kind == "started":
            self._there[event.name] = event
            self._supervisor.started(event.name, event.node, now)
            return False
        self._there.pop(event.name, None)
        self._supervisor.ended(event.name, self._cause(event), event.reason, now, shard)
        is_asked = event.name in self._leaving
        self._num_lost[event.role] += event.kind == "lost" and not is_asked
        if event.role == "trainer" and event.kind == "left" and not is_asked:
            self.close()  # it has trained to the end
        self._kill.pop(event.name, None)
        self._leaving.discard(event.name)
        return True

    def give_up(self, name: str, shard: str, now: float) -> None:
        """This one is dead, whatever it still does; it had `shard` in its hands."""
        if name in self._there and name not in self._kill:
            self._kill[name] = MakeOrder(name, self._there[name].role)
            self._supervisor.ended(name, "failure", "it hangs, or is silent", now, shard)

    def leave(self, name: str) -> None:
        """This one shall end its work and go; another takes its place if it is still wanted."""
        if name in self._there and name not in self._leaving:
            self._leaving.add(name)
            self._supervisor.leaving(name)

    def close(self) -> None:
        """The run ends: nobody is needed any more."""
        self._closed = True
        self._wanted = {"reader": 0, "trainer": 0}
        self._orders.clear()
        self._apply()

    def tick(self, now: float, nodes: Callable[[Role, int], Collection[str]]) -> None:
        """Order what is due. `nodes` of a role's pool could be used: where every one of them is to
        be avoided, there is no other place to go."""
        if self._closed:
            return
        for make in self._supervisor.orders(now):
            avoid = self._supervisor.avoided(nodes(make.role, make.pool), now)
            order = MakeOrder(make.name, make.role, make.pool, tuple(sorted(avoid)))
            self._orders[order.name] = order

    def scale(self, now: float, tally: Tally, beats: Collection[Beat], seen: "Seen") -> None:
        """Look at the rates since the last look, and decide how many readers there shall be."""
        world = [beat for beat in beats if beat.phase == "running"]
        there = _Before(
            now,
            tally.num_made,
            tally.busy_seconds,
            seen.committed,
            sum(beat.step_seconds for beat in world) / max(1, len(world)),
            sum(beat.wait_seconds for beat in world) / max(1, len(world)),
        )
        before, self._before = self._before, there
        if before is None or self._closed or now <= before.now:
            return
        new_failures = max(0, seen.num_failed - self._failed_launches)
        self._failed_launches = seen.num_failed
        self._num_failed_launches += new_failures
        decision = self._scaler.decide(
            Observation(
                now=now,
                seconds=now - before.now,
                num_trained=max(0, there.committed - before.committed) * seen.batch_size
                if before.committed >= 0
                else 0,
                step_seconds=max(0.0, there.step_seconds - before.step_seconds),
                wait_seconds=max(0.0, there.wait_seconds - before.wait_seconds),
                num_made=there.num_made - before.num_made,
                busy_seconds=there.busy_seconds - before.busy_seconds,
                ready=self._ready_readers(),
                starting=tuple(n for n, order in self._orders.items() if order.role == "reader"),
                num_failed=new_failures,
            )
        )
        self._decide(decision, now)

    def counters(self) -> dict[Key, float]:
        """What happened so far, by key."""
        found: dict[Key, float] = {
            (f"{role}s_lost",): self._num_lost[role] for role in self._wanted
        }
        found["node_launches_failed",] = self._num_failed_launches
        for (role, cause), count in self._supervisor.restarts.items():
            if cause != "let go":
                found["restarts", role, cause] = count
        for (direction, reason), count in self._num_scalings.items():
            found["scale_decisions", direction, reason] = count
        return found

    def _ready_readers(self) -> dict[str, str]:
        return {
            name: one.node
            for name, one in self._there.items()
            if one.role == "reader" and name not in self._leaving | self._kill.keys()
        }

    def _decide(self, decision: Decision, now: float) -> None:
        before = self.decision
        if (decision.target, decision.pool) != (before.target, before.pool):
            direction = "up" if decision.target > before.target else "down"
            direction = direction if decision.target != before.target else "pool"
            self._num_scalings[direction, decision.reason] += 1
            self._scalings.append((now, f"{decision.target} readers wanted", decision.reason))
        self.decision = decision
        for name in decision.drain:
            if name in self._orders:
                self._kill_unborn(name, now)
            self.leave(name)
        self._wanted["reader"] = decision.target
        self._apply()

    def _kill_unborn(self, name: str, now: float) -> None:
        """One that never answered need not be asked to leave."""
        self._kill[name] = self._orders.pop(name)
        self._supervisor.ended(name, "let go", "it is not needed", now)

    def _apply(self) -> None:
        self._supervisor.want("reader", self._wanted["reader"], self.decision.pool)
        self._supervisor.want("trainer", self._wanted["trainer"])

    def _cause(self, event: ActorEvent) -> Cause:
        if event.kind == "left" or event.name in self._leaving:
            return "let go"
        if event.preempted:
            return "preemption"
        return "node" if event.with_node else "failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What `scale` must know besides: steps finished, samples a step, launches that failed."""

    committed: int
    batch_size: int
    num_failed: int
