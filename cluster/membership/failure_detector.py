"""Which trainers keep a run from going on: they say nothing, or the others wait for them."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.membership.members import Generation, Member, alive, all_run


@dataclass(frozen=True, kw_only=True, slots=True)
class MembershipConfig:
    """How patient Control is with trainers, in seconds; `max_fruitless` counts generations."""

    silence_seconds: float = 5.0  # without a beat, or without rolling back after a break
    hang_seconds: float = 30.0  # at least, in a step for which the others wait, or before a join
    lone_seconds: float = 600.0  # at least, in a step for which nobody waits
    build_seconds: float = 600.0  # from the first beat to `ready`
    join_seconds: float = 120.0  # to meet, hand over the state and build what a group needs
    gather_seconds: float = 60.0  # until a run starts with fewer trainers than were asked for
    stop_seconds: float = 3.0  # for the step under way, when all stop and no data comes for it
    settle_seconds: float = 5.0  # until a run that goes on does so without those that are missing
    max_fruitless: int = 5  # in a row that break without a loss and without a finished step


class Patience:
    """Looked at regularly; after a pause it is taken for granted that Control was away."""

    def __init__(self, config: MembershipConfig) -> None:
        self._config = config
        self._looked: float | None = None
        self._awake = 0.0  # since when there was no pause

    def look(self, now: float) -> None:
        """Before anything else is asked: nobody can be blamed for what nobody listened to."""
        if self._looked is None or now - self._looked > self._config.silence_seconds / 2:
            self._awake = now
        self._looked = now

    def silent(self, members: Mapping[str, Member], now: float) -> list[str]:
        """Those that say nothing, and those that never get ready."""
        return [
            name
            for name, member in members.items()
            if (
                member.beat.phase != "left"
                and now - max(member.heard, self._awake) > self._config.silence_seconds
            )
            or (
                member.beat.phase == "starting"
                and now - max(member.since, self._awake) > self._config.build_seconds
            )
        ]

    def late(
        self, members: Mapping[str, Member], since: float, usual: float, now: float
    ) -> list[str]:
        """Those still under way in a generation that is over since then, or never was ours.

        `usual`: how long a step may take; 0 where the step under way is given up.
        """
        patience = max(self._config.silence_seconds, 3 * usual)
        return [
            name
            for name, member in members.items()
            if member.is_under_way and now - max(since, member.since, self._awake) > patience
        ]

    def stuck(
        self,
        generation: Generation,
        members: Mapping[str, Member],
        since: float,
        usual: float,
        now: float,
    ) -> tuple[list[str], str]:
        """Who keeps a generation from going on that did so last at `since`, and what it waits for.

        If that is nobody in particular, the generation must end: who cannot leave it will be late.
        Who waits for data is not blamed, nor who waits for him.
        """
        waited, config = now - max(since, self._awake), self._config
        if not all_run(generation, members):
            # Whoever still is in a step that was given up comes as soon as that ends.
            if waited > max(3 * usual, config.hang_seconds):
                names = _absent(generation, members)
                if names or waited > config.join_seconds:
                    return names, f"its members did not meet in {waited:.0f} s"
            return [], ""
        doings = {member.beat.doing for member in alive(generation, members)}
        patience = max(3 * usual, config.hang_seconds if "peers" in doings else config.lone_seconds)
        if waited <= patience:
            return [], ""
        names = _behind(generation, members)
        why = f"a step did not end in {patience:.0f} s"
        return names, why if names or doings == {"peers"} else ""


def _absent(generation: Generation, members: Mapping[str, Member]) -> list[str]:
    """Who keeps the others from meeting: has not begun to join, or is rank 0 and nowhere."""
    names, num_ranks = [], len(generation.members)
    for rank, member in enumerate(alive(generation, members)):
        has_begun = member.is_under_way and member.beat.generation == generation.number
        if not has_begun or (rank == 0 and rank + 1 < num_ranks and not member.beat.address):
            names.append(member.name)
    return names


def _behind(generation: Generation, members: Mapping[str, Member]) -> list[str]:
    """Who is in its own part of the step, or still in the collective of the step before."""
    beats = [member.beat for member in alive(generation, members)]
    newest = max((beat.committed for beat in beats), default=-1)
    return [
        beat.member
        for beat in beats
        if beat.doing == "step" or (beat.committed < newest and beat.doing == "peers")
    ]
