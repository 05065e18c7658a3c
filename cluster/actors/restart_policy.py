"""Restart policy: when a dead actor is replaced, where not, and when to give up.

A replacement is created after a delay of 1 s, 2 s, 4 s ... at most a minute. Jitter keeps actors
that died together from starting together; a minute of health resets the delay. A node on which
actors die repeatedly is avoided. A death with a node, or by preemption, is not a failure of the
actor and has its own budget. Deaths over the same shard are attributed to the shard. If actors die
too often, one per minute is created; if none is left alive, the run ends with the reason.

Pure: times are `now` in seconds of a steady clock.
"""

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from cluster.protocol.messages import Role

# "node": the node died; "preemption": the provider took the node back.
Cause = Literal["failure", "node", "preemption"]
_MAX_EVENTS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartConfig:
    """Limits on deaths. Counts are of deaths within `window_seconds`.

    `max_in_a_row`: deaths in one place, none after a healthy minute, while no other actor lives.
    `max_at_start`: deaths in a row before an answer. `start_seconds`: time until the first actor of
    a role answers; machines may have to boot.
    """

    first_seconds: float = 1.0
    max_seconds: float = 60.0
    healthy_seconds: float = 60.0
    window_seconds: float = 300.0
    max_failures: int = 12  # of a role, or the number of its actors if that is larger
    max_preemptions: int = 100
    max_in_a_row: int = 8
    max_at_start: int = 4
    node_failures: int = 3
    node_seconds: float = 600.0
    shard_failures: int = 8
    start_seconds: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Unwanted end of an actor; `reason` is a phrase for people.

    `shard` is the shard that it cropped. `lived` is the time since it answered, None if it never
    did. `num_failures` counts its predecessors in the same place that failed in a row.
    """

    at: float
    name: str
    role: Role
    cause: Cause
    reason: str
    node: str = ""
    shard: str = ""
    lived: float | None = None
    num_failures: int = 0


def count_failures(config: RestartConfig, death: Death) -> int:
    """Return how many actors in the place of the dead one failed in a row, with this one."""
    if death.cause == "preemption":
        return death.num_failures
    healthy = death.lived is not None and death.lived >= config.healthy_seconds
    return 1 if healthy else death.num_failures + 1


def restart_delay(config: RestartConfig, death: Death, jitter: float) -> float:
    """Return the seconds until the replacement is created; `jitter` is a factor up to 1."""
    if death.cause == "preemption":
        return 0.0
    doublings = min(count_failures(config, death) - 1, 30)
    return jitter * min(config.max_seconds, config.first_seconds * 2.0**doublings)


class RestartPolicy:
    """History of deaths, and the decisions that follow from it."""

    def __init__(self, config: RestartConfig | None = None) -> None:
        self.config = config or RestartConfig()
        self.gave_up = ""  # why the run must end: going on would be a restart loop
        self.restarts: Counter[tuple[Role, Cause]] = Counter()
        self.events: deque[tuple[float, str]] = deque(maxlen=_MAX_EVENTS)
        self._deaths: deque[Death] = deque()
        self._num_at_start: Counter[Role] = Counter()
        self._avoided_until: dict[str, float] = {}  # by node

    def record_start(self, role: Role) -> None:
        """Note that an actor of this role answers: the image and the settings work."""
        self._num_at_start[role] = 0

    def record_death(self, death: Death, num_wanted: int, num_alive: int) -> None:
        """Add a death; `num_alive` actors of its role still answer."""
        self.restarts[death.role, death.cause] += 1
        self.events.append((death.at, f"{death.name} ended ({death.cause}): {death.reason}"))
        self._add(death)
        if death.lived is None and death.cause == "failure":
            self._num_at_start[death.role] += 1
        self._judge(death, num_wanted, num_alive)

    def check_start(self, role: Role, waited_seconds: float) -> None:
        """Give up if no actor of a role has answered for too long."""
        if waited_seconds > self.config.start_seconds and not self.gave_up:
            self.gave_up = (
                f"no {role} started in {self.config.start_seconds:.0f} s: the cluster had no room "
                "for one; add nodes, or ask for fewer actors"
            )

    def is_storm(self, role: Role, num_wanted: int, now: float) -> bool:
        """Return True if so many actors of a role die that they are replaced one at a time."""
        suspects = self.suspects(now)
        deaths = [death for death in self._deaths if death.role == role]
        num_preempted = sum(death.cause == "preemption" for death in deaths)
        num_failed = sum(
            death.cause != "preemption" and death.shard not in suspects for death in deaths
        )
        return num_failed >= max(self.config.max_failures, num_wanted) or num_preempted >= max(
            self.config.max_preemptions, num_wanted
        )

    def avoided(self, nodes: Collection[str], now: float) -> frozenset[str]:
        """Return the nodes to create nothing on.

        If these are all of `nodes`, the node that has been avoided longest is usable again.
        """
        avoided = {node for node, until in self._avoided_until.items() if until > now}
        if nodes and avoided.issuperset(nodes):
            avoided.discard(min(nodes, key=lambda node: (self._avoided_until[node], node)))
        return frozenset(avoided)

    def suspects(self, now: float) -> dict[str, int]:
        """Return the shards over which more than one actor died, with the number of deaths."""
        while self._deaths and self._deaths[0].at < now - self.config.window_seconds:
            self._deaths.popleft()
        deaths = Counter(death.shard for death in self._deaths if death.shard)
        return {shard: count for shard, count in deaths.items() if count > 1}

    def _add(self, death: Death) -> None:
        """Add a death to the history; the death of a node counts once for all its actors."""
        self.suspects(death.at)
        if death.cause != "failure" and any(
            (other.role, other.node, other.cause) == (death.role, death.node, death.cause)
            for other in self._deaths
        ):
            return
        self._deaths.append(death)
        if death.cause != "failure" or self.suspects(death.at).get(death.shard):
            return
        num_here = sum(
            bool(death.node) and other.node == death.node and other.cause == "failure"
            for other in self._deaths
        )
        if num_here >= self.config.node_failures:
            self._avoided_until[death.node] = death.at + self.config.node_seconds
            self.events.append(
                (death.at, f"node {death.node} is avoided: {num_here} actors died there")
            )

    def _judge(self, death: Death, num_wanted: int, num_alive: int) -> None:
        """Give up if nothing suggests that a replacement would fare better."""
        if self.gave_up:
            return
        suspects, role = self.suspects(death.at), death.role
        worst = max(suspects, key=lambda shard: (suspects[shard], shard), default="")
        if worst and suspects[worst] >= self.config.shard_failures:
            self.gave_up = (
                f"{suspects[worst]} actors died while they cropped {worst}; check the shard with "
                "`streamssl shards verify`, and the memory of the nodes"
            )
        elif num_alive:
            return
        elif self._num_at_start[role] >= self.config.max_at_start:
            self.gave_up = (
                f"{self._num_at_start[role]} {role}s died before they did anything "
                f"({death.reason}); fix that, then start the same command again"
            )
        elif death.num_failures + 1 >= self.config.max_in_a_row or self.is_storm(
            role, num_wanted, death.at
        ):
            num_deaths = sum(other.role == role for other in self._deaths)
            self.gave_up = (
                f"{role}s died again and again, {num_deaths} in the last "
                f"{self.config.window_seconds:.0f} s, and none is left (the last one: "
                f"{death.reason}); fix that, then start the same command again"
            )
