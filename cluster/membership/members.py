"""What is known of the trainers of a run, and which of them make the next generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.membership.world_sizes import fitting_world
from cluster.protocol.messages import Beat
from shards.records import Cursor

# Within a generation a member only ever goes on in this order.
_ORDER = {"starting": 0, "joining": 1, "running": 2, "broken": 3, "ready": 3, "left": 4}


@dataclass(frozen=True, slots=True)
class Generation:
    """Ranks that train together, from `start` finished steps on.

    `source` has that state; if nobody has, everyone loads what Control kept. `cursor` is the place
    behind `start`, if it is known.
    """

    number: int
    members: tuple[str, ...]
    source: str
    start: int
    cursor: Cursor | None
    since: float


@dataclass(slots=True)
class Member:
    """What is known of a trainer: what it said last, and when."""

    beat: Beat
    arrived: int
    since: float
    heard: float
    draining: bool = False

    @property
    def name(self) -> str:
        return self.beat.member

    @property
    def is_under_way(self) -> bool:
        return self.beat.phase in ("joining", "running")

    def is_running(self, generation: Generation) -> bool:
        return self.beat.phase == "running" and self.beat.generation == generation.number


def place(beat: Beat) -> tuple[int, int, int, int]:
    """Where a member is in its life; of two beats the one with the smaller place is the older."""
    return beat.term, beat.generation, _ORDER[beat.phase], beat.committed


def alive(generation: Generation, members: Mapping[str, Member]) -> list[Member]:
    """Members of the generation that are not lost, in order of rank."""
    return [members[name] for name in generation.members if name in members]


def all_run(generation: Generation, members: Mapping[str, Member]) -> bool:
    """Every member of the generation has the state, and trains."""
    return all(name in members and members[name].is_running(generation)
               for name in generation.members)  # fmt: skip


def staying(members: Sequence[Member]) -> list[Member]:
    """Those whose nodes will not go away."""
    return [member for member in members if not member.draining]


def is_heir(member: Member, before: Generation | None) -> bool:
    """Whether it had the state of the generation before."""
    return (
        before is not None
        and member.name in before.members
        and member.beat.committed >= before.start
    )


def in_order(ready: Sequence[Member], before: Generation | None) -> list[Member]:
    """Members by their claim to the state: the newest first, then the oldest member.

    Who was in the generation before, and had its state, goes before all others: what somebody else
    has is of a history that was given up.
    """
    heirs = {member.name for member in ready if is_heir(member, before)}
    return sorted(
        ready,
        key=lambda member: (
            bool(heirs) and member.name not in heirs,
            -member.beat.committed,
            member.arrived,
        ),
    )


def choose(
    order: Sequence[Member], source: str, global_batch: int, num_wanted: int
) -> list[Member]:
    """The members of the next world, rank 0 first, out of those `in_order`.

    A member that has to go is taken only if nobody else has the state, or if there is nobody else.
    """
    pool = staying(order) or list(order)
    newest = next((member for member in order if member.name == source), None)
    if newest is not None and all(m.beat.committed != newest.beat.committed for m in pool):
        pool, num_wanted = [newest, *pool], max(num_wanted, 2)
    return pool[: fitting_world(global_batch, min(len(pool), num_wanted))]
