"""FailureDetector: finds trainers that are silent, late, or that their peers wait for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.membership.members import Generation, Member, alive, all_run


@dataclass(frozen=True, kw_only=True, slots=True)
class MembershipConfig:
    """Time limits of trainers, in seconds; `max_fruitless` counts generations."""

    silence_seconds: float = 5.0  # without a heartbeat, or without undoing a step after a break
    hang_seconds: float = 30.0  # at least, in a step for which peers wait, or before a join
    lone_seconds: float = 600.0  # at least, in a step for which no peer waits
    build_seconds: float = 600.0  # from the first heartbeat to `ready`
    join_seconds: float = 120.0  # to meet, transfer the state and build what a group needs
    gather_seconds: float = 60.0  # until a run starts with fewer trainers than wanted
    stop_seconds: float = 3.0  # for the step under way, when all stop and no data comes for it
    settle_seconds: float = 5.0  # until a run goes on without its missing trainers
    max_fruitless: int = 5  # in a row that break without a loss and without a finished step


@dataclass(frozen=True, slots=True)
class FailureDetector:
    """Time limits, and the time since when Control has been awake.

    Call `look` regularly. After a pause Control itself was away, and no member is blamed for it.
    """

    config: MembershipConfig
    looked_at: float | None = None
    awake_since: float = 0.0

    def look(self, now: float) -> "FailureDetector":
        """Return the detector at `now`."""
        pause = self.config.silence_seconds / 2
        was_away = self.looked_at is None or now - self.looked_at > pause
        return replace(self, looked_at=now, awake_since=now if was_away else self.awake_since)

    def silent(self, members: Mapping[str, Member], now: float) -> list[str]:
        """Return members without a heartbeat, and members that never become ready."""
        return [
            name
            for name, member in members.items()
            if (
                member.heartbeat.phase != "left"
                and now - max(member.heard, self.awake_since) > self.config.silence_seconds
            )
            or (
                member.heartbeat.phase == "starting"
                and now - max(member.since, self.awake_since) > self.config.build_seconds
            )
        ]

    def late(
        self, members: Mapping[str, Member], since: float, step_seconds: float, now: float
    ) -> list[str]:
        """Return members that still train although their generation ended at `since`.

        `step_seconds` is the usual time of a step, or 0 where the step under way is undone.
        """
        limit = max(self.config.silence_seconds, 3 * step_seconds)
        return [
            name
            for name, member in members.items()
            if member.is_under_way and now - max(since, member.since, self.awake_since) > limit
        ]

    def stuck(
        self,
        generation: Generation,
        members: Mapping[str, Member],
        since: float,
        step_seconds: float,
        now: float,
    ) -> tuple[list[str], str]:
        """Return the members that hold a generation up, and a reason to end it.

        The generation made its last progress at `since`. If no member is to blame, it must end:
        a member that cannot leave is late then. Waiting for data is no fault, nor is waiting for a
        peer that does.
        """
        waited, config = now - max(since, self.awake_since), self.config
        if not all_run(generation, members):
            # A member that is still in an undone step comes as soon as that ends.
            if waited > max(3 * step_seconds, config.hang_seconds):
                names = _absent(generation, members)
                if names or waited > config.join_seconds:
                    return names, f"its members did not meet in {waited:.0f} s"
            return [], ""
        doings = {member.heartbeat.doing for member in alive(generation, members)}
        limit = config.hang_seconds if "peers" in doings else config.lone_seconds
        limit = max(3 * step_seconds, limit)
        if waited <= limit:
            return [], ""
        names = _behind(generation, members)
        why = f"a step did not end in {limit:.0f} s"
        return names, why if names or doings == {"peers"} else ""


def _absent(generation: Generation, members: Mapping[str, Member]) -> list[str]:
    """Return members that have not begun to join, and a rank 0 without an address."""
    names, num_ranks = [], len(generation.members)
    for rank, member in enumerate(alive(generation, members)):
        heartbeat = member.heartbeat
        has_begun = member.is_under_way and heartbeat.generation == generation.number
        if not has_begun or (rank == 0 and rank + 1 < num_ranks and not heartbeat.address):
            names.append(member.name)
    return names


def _behind(generation: Generation, members: Mapping[str, Member]) -> list[str]:
    """Return members in their own part of the step, or in the collective of the step before."""
    heartbeats = [member.heartbeat for member in alive(generation, members)]
    newest = max((one.committed for one in heartbeats), default=-1)
    return [
        one.member
        for one in heartbeats
        if one.doing == "step" or (one.committed < newest and one.doing == "peers")
    ]
