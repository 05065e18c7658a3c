"""Members: the trainers of a run as Control knows them, and the choice of the next generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.membership.world_sizes import fitting_world_size
from cluster.protocol.messages import HeartbeatMessage
from shards.records import Cursor

# Within a generation the phase of a member only ever changes in this order.
_ORDER = {"starting": 0, "joining": 1, "running": 2, "broken": 3, "ready": 3, "left": 4}


@dataclass(frozen=True, slots=True)
class Generation:
    """Ranks that train together, beginning after `start` finished steps.

    `source` has the state of that step; without a source all load the saved state. `cursor` is the
    position in the stream after `start`, if it is known.
    """

    number: int
    members: tuple[str, ...]
    source: str
    start: int
    cursor: Cursor | None


@dataclass(frozen=True, slots=True)
class Member:
    """A trainer: its newest heartbeat, its number in order of arrival, and when it was heard.

    `since` is the time of its first heartbeat. `draining`: its node will go.
    """

    heartbeat: HeartbeatMessage
    arrived: int
    since: float
    heard: float
    draining: bool = False

    @property
    def name(self) -> str:
        return self.heartbeat.member

    @property
    def is_under_way(self) -> bool:
        return self.heartbeat.phase in ("joining", "running")

    def is_running(self, generation: Generation) -> bool:
        heartbeat = self.heartbeat
        return heartbeat.phase == "running" and heartbeat.generation == generation.number


def progress(heartbeat: HeartbeatMessage) -> tuple[int, int, int, int]:
    """Return a value that only rises over the life of a member: older messages have less."""
    return (
        heartbeat.term,
        heartbeat.generation,
        _ORDER[heartbeat.phase],
        heartbeat.committed,
    )


def alive(generation: Generation, members: Mapping[str, Member]) -> list[Member]:
    """Return the members of the generation that are not lost, in order of rank."""
    return [members[name] for name in generation.members if name in members]


def all_run(generation: Generation, members: Mapping[str, Member]) -> bool:
    """Return True if every member of the generation has the state and trains."""
    return all(name in members and members[name].is_running(generation)
               for name in generation.members)  # fmt: skip


def staying(members: Sequence[Member]) -> list[Member]:
    """Return the members whose nodes stay."""
    return [member for member in members if not member.draining]


def is_heir(member: Member, before: Generation | None) -> bool:
    """Return True if the member had the state of the generation before."""
    return (
        before is not None
        and member.name in before.members
        and member.heartbeat.committed >= before.start
    )


def in_order(ready: Sequence[Member], before: Generation | None) -> list[Member]:
    """Sort members by their claim to the state: the newest state first, then the oldest member.

    Members of the generation before that had its state come first: the state of any other member
    belongs to a history that was given up.
    """
    heirs = {member.name for member in ready if is_heir(member, before)}
    return sorted(
        ready,
        key=lambda member: (
            bool(heirs) and member.name not in heirs,
            -member.heartbeat.committed,
            member.arrived,
        ),
    )


def choose(
    order: Sequence[Member], source: str, global_batch: int, num_wanted: int
) -> list[Member]:
    """Return the members of the next generation, rank 0 first, out of those `in_order`.

    A draining member is chosen only if no other one has the state, or if there is no other one.
    """
    pool = staying(order) or list(order)
    newest = next((member for member in order if member.name == source), None)
    if newest is not None and all(
        member.heartbeat.committed != newest.heartbeat.committed for member in pool
    ):
        pool, num_wanted = [newest, *pool], max(num_wanted, 2)
    return pool[: fitting_world_size(global_batch, min(len(pool), num_wanted))]
