"""Who trains with whom: trainers come and go, generations follow one another.

    nobody trains -- enough are ready, or some have waited long enough --> a generation joins
    joining ------ every member says `running` ------------------------> it runs
    running ------ a newcomer fits in, or a member has to go ----------> all leave after one step
    any ---------- a member is lost, or says `broken` -----------------> over: all roll back
    over --------- all survivors have said so, or are lost too --------> the next generation

Pure: times are `now` in seconds of a steady clock, and whoever owns this acts on what it says. The
newest finished step wins: the member that has it gives its state to the others. What a member says
of a generation that is not the current one, or of another term, counts for nothing.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.membership.failure_detector import MembershipConfig, Patience
from cluster.membership.members import (
    Generation,
    Member,
    alive,
    all_run,
    choose,
    in_order,
    is_heir,
    place,
    staying,
)
from cluster.membership.step_timing import Recovery, StepPace
from cluster.membership.world_sizes import fitting_world
from cluster.protocol.messages import Beat, Directive
from cluster.protocol.step_log import Records, StepLog
from shards.records import Cursor

# Generations are numbered within a term, and rise over the run.
GENERATIONS_PER_TERM = 1 << 32
_NUM_EVENTS = 200


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was decided, and why; for whoever watches."""

    at: float
    what: str
    why: str


class Membership:
    """Trainers to generations. `num_trainers` are wanted; those beyond a fitting world stand by."""

    def __init__(
        self,
        term: int,
        global_batch: int,
        num_trainers: int,
        config: MembershipConfig | None = None,
    ) -> None:
        self._term, self._batch, self._wanted = term, global_batch, num_trainers
        self._config = config or MembershipConfig()
        self._patience = Patience(self._config)
        self._number = self._over = term * GENERATIONS_PER_TERM
        self._members: dict[str, Member] = {}
        self._gone: set[str] = set()
        self._generation: Generation | None = None
        self._regroup = ""  # why the generation shall end after the step under way
        self._ended: float | None = None  # since when it is over, or being left
        self._broken = self._had_loss = False
        self._gathering: float | None = None  # since when somebody is ready and nobody trains
        self._growing: float | None = None  # since when the generation could be larger
        self._restored: tuple[int, Cursor | None] = (0, None)
        self._stop_at: float | None = None  # when everybody was asked to stop
        self._done = False
        self._progress = 0.0  # when a member of the generation went on last
        self._num_fruitless = 0
        self._gave_up = ""
        self._log, self._pace = StepLog(), StepPace()
        self.events: deque[Event] = deque(maxlen=_NUM_EVENTS)
        self.refused: Counter[str] = Counter()
        self.num_generations = 0

    @property
    def members(self) -> Mapping[str, Member]:
        """Trainers that were heard of and are not lost."""
        return self._members

    @property
    def generation(self) -> Generation | None:
        """The newest one; it may be over."""
        return self._generation

    @property
    def is_running(self) -> bool:
        """Every member of the generation trains."""
        generation = self._generation
        return generation is not None and self._ended is None and all_run(generation, self._members)

    @property
    def min_committed(self) -> int:
        """Finished by every member of the generation: no step up to this one is needed again.

        Unless all who have a state are lost: then a generation starts before it.
        """
        if self._generation is None:
            return -1
        steps = [member.beat.committed for member in alive(self._generation, self._members)]
        return max(self._generation.start, min(steps, default=-1))

    @property
    def median_step_seconds(self) -> float:
        """From one finished step to the next, waits included; 0 as long as it is unknown."""
        return self._pace.median_seconds

    @property
    def recoveries(self) -> list[Recovery]:
        return self._pace.recoveries

    @property
    def gave_up(self) -> str:
        """Why going on is pointless; empty as long as it is not."""
        return self._gave_up

    @property
    def is_finished(self) -> bool:
        """Somebody left unasked, having trained to the end, and nobody is under way any more."""
        return self._done and not any(member.is_under_way for member in self._members.values())

    @property
    def num_records_lost(self) -> int:
        """Finished steps of which no report is left."""
        return self._log.num_lost

    def records(self, since: int, history: int = 0) -> Records:
        """Reports of what follows step `since` of `history`, the last one that the log holds."""
        return self._log.take(since, history, self.min_committed if self.is_running else -1)

    def beat(self, beat: Beat, now: float) -> Directive:
        """Take what a trainer says; answer what it shall do."""
        refused = self._refuse(beat)
        if refused is not None:
            return refused
        self._hear(beat, now)
        self._decide(now)
        return self._directive(self._members[beat.member])

    def lost(self, name: str, reason: str, now: float) -> None:
        """This trainer is dead, or will be at once: nothing it says counts any more."""
        self._gone.add(name)
        member = self._members.pop(name, None)
        if member is not None and member.beat.phase != "left":
            self._tell(now, f"{name} is lost", reason)
            generation = self._generation
            if generation is not None and name in generation.members:
                self._had_loss = True
                self._break(f"{name} was lost: {reason}", now)
        self._decide(now)

    def draining(self, name: str, now: float) -> None:
        """This trainer will have to go: go on without it as soon as somebody else has the state."""
        member = self._members.get(name)
        if member is not None and not member.draining:
            member.draining = True
            self._tell(now, f"{name} drains", "its node will go")
            self._decide(now)

    def restore(self, step: int, cursor: Cursor | None) -> None:
        """A state of `step` finished steps is kept safe, for when nobody has a newer one."""
        if step >= self._restored[0]:
            self._restored = (step, cursor)

    def stop(self, now: float) -> None:
        """Everyone shall finish the step under way, hand in the state, and leave."""
        if self._stop_at is None:
            self._stop_at = now
            self._tell(now, "all stop", "asked to")

    def silent(self, now: float) -> list[str]:
        """Trainers that must be killed, and then told of as `lost`.

        Ask at least four times in `silence_seconds`: after a longer pause it is taken for granted
        that it was Control that was away, and everybody is given new time.
        """
        self._patience.look(now)
        self._decide(now)
        names = set(self._patience.silent(self._members, now))
        usual, generation = self.median_step_seconds, self._generation
        if generation is None or self._ended is not None:
            usual = 0.0 if self._broken else usual
            names.update(self._patience.late(self._members, self._ended or 0.0, usual, now))
        else:
            found, why = self._patience.stuck(generation, self._members, self._progress, usual, now)
            names.update(found)
            if not found and (why or self._starves(generation, now)):
                self._break(why or "all stop, and no data comes for the step under way", now)
        return sorted(names)

    @property
    def _stopping(self) -> bool:
        return self._stop_at is not None

    def _starves(self, generation: Generation, now: float) -> bool:
        """Whether all shall stop, and somebody waits for data that may never come."""
        if self._stop_at is None:
            return False
        waited = now - max(self._stop_at, self._progress)
        members = alive(generation, self._members)
        waits = any(member.beat.doing == "data" for member in members)
        return waits and waited > self._config.stop_seconds

    def _refuse(self, beat: Beat) -> Directive | None:
        """The answer to who must not be listened to."""
        if beat.member in self._gone:
            self.refused["gone"] += 1
            return Directive(term=self._term, over=self._over, leave=True)
        if beat.term > self._term:
            self.refused["term"] += 1
        elif beat.generation > self._number:
            self.refused["generation"] += 1
        else:
            return None
        return Directive(term=self._term, over=self._over)

    def _hear(self, beat: Beat, now: float) -> None:
        member = self._members.get(beat.member)
        if member is None:
            member = Member(beat, len(self._members) + len(self._gone), now, now)
            self._members[beat.member] = member
        elif place(beat) < place(member.beat):
            self.refused["late"] += 1  # came twice, or behind a newer one: no sign of life
            return
        goes_on = place(beat) > place(member.beat)
        member.beat, member.heard = beat, now
        if beat.term < self._term:
            self.refused["term"] += 1  # it learns of this term by the answer
            return
        self._log.add(beat.reports)
        self._done |= beat.phase == "left" and not member.draining and not self._stopping
        generation = self._generation
        if generation is not None and beat.generation == generation.number:
            self._hear_of(generation, beat, now)
            self._progress = now if goes_on else self._progress

    def _hear_of(self, generation: Generation, beat: Beat, now: float) -> None:
        """A member of the generation says how that goes."""
        if not self._broken and beat.committed > generation.start:
            self._num_fruitless = 0
            recovery = self._pace.finished(beat.committed, now)
            if recovery is not None:
                seconds = f"{recovery.seconds:.1f} s after a loss"
                self._tell(now, f"step {beat.committed} is finished {seconds}", recovery.why)
        if beat.phase == "broken":
            self._break(f"{beat.member} gave up: {beat.reason or 'no reason given'}", now)
        elif beat.phase in ("ready", "left") and self._ended is None:
            if self._regroup or self._stopping or beat.phase == "left":
                self._ended = now  # all leave after the same step
            else:
                self._break(f"{beat.member} left the others unasked", now)

    def _break(self, why: str, now: float) -> None:
        """The generation cannot go on."""
        if self._broken or self._generation is None:
            return
        self._broken, self._ended, self._over = True, now, self._generation.number
        self._pace.breaks(why, now)
        self._tell(now, f"generation {self._label} is over", why)

    def _decide(self, now: float) -> None:
        if self._stopping or self._done or self._gave_up:
            return
        if self._generation is not None and self._ended is None:
            if not self._regroup and all_run(self._generation, self._members):
                self._consider_regroup(self._generation, now)
        elif not any(member.is_under_way for member in self._members.values()):
            self._consider_start(now)

    def _ready(self) -> list[Member]:
        """Those that wait for a generation."""
        return [
            member
            for member in self._members.values()
            if member.beat.phase in ("ready", "broken") and member.beat.term == self._term
        ]

    def _consider_start(self, now: float) -> None:
        ready = self._ready()
        if not ready:
            self._gathering = None
            return
        self._gathering = now if self._gathering is None else self._gathering
        goes_on = self._generation is not None and alive(self._generation, self._members)
        has_state = any(member.beat.committed > 0 for member in ready)
        patience = self._config.settle_seconds if has_state else self._config.gather_seconds
        if (
            goes_on
            or len(staying(ready)) >= self._wanted
            or now - self._gathering >= patience
        ):  # fmt: skip
            self._check_fruitless()
            if not self._gave_up:
                self._start(ready, now)

    def _check_fruitless(self) -> None:
        """Count generations that nobody disturbed, and that came to nothing all the same."""
        self._num_fruitless += self._broken and not self._had_loss
        if self._num_fruitless >= self._config.max_fruitless:
            self._gave_up = (
                f"{self._num_fruitless} generations of trainers in a row broke before they "
                f"finished a step, although no trainer was lost ({self._pace.trouble}); mend that, "
                "then start the same command again"
            )

    def _start(self, ready: list[Member], now: float) -> None:
        before, (kept_step, kept_cursor) = self._generation, self._restored
        order = in_order(ready, before)
        newest = order[0].beat
        # Those who trained last go on from where they are, even if a newer state was kept.
        if newest.committed >= kept_step or is_heir(order[0], before):
            source, start, cursor = newest.member, newest.committed, newest.cursor
        else:
            source, start, cursor = "", kept_step, kept_cursor
        names = tuple(member.name for member in choose(order, source, self._batch, self._wanted))
        if source not in names:  # it has to go, and another one has the same state
            source = names[0] if source else ""
        self._number += 1
        self._generation = Generation(self._number, names, source, start, cursor, now)
        self.num_generations += 1
        why = self._pace.trouble or self._regroup or f"{len(ready)} are ready"
        self._tell(now, f"generation {self._label} of {', '.join(names)} from step {start}", why)
        self._log.begin(start, self._number)
        self._pace.begin(start)
        self._regroup, self._ended = "", None
        self._broken = self._had_loss = False
        self._gathering = self._growing = None
        self._progress = now

    def _consider_regroup(self, generation: Generation, now: float) -> None:
        """End a generation that runs when another one would be better."""
        inside = alive(generation, self._members)
        outside = [m for m in staying(self._ready()) if m not in inside]
        num_fresh = len(staying(inside)) + len(outside)
        world = fitting_world(self._batch, min(num_fresh, self._wanted))
        if len(staying(inside)) < len(inside):
            # The state passes within a world: from the last who has it to another it needs two.
            if staying(inside) or fitting_world(self._batch, 1 + len(outside)) > 1:
                self._regroup = "a member has to go"
        elif world <= len(generation.members):
            self._growing = None
        else:
            self._growing = now if self._growing is None else self._growing
            if num_fresh >= self._wanted or now - self._growing >= self._config.settle_seconds:
                self._regroup = f"{len(outside)} more are ready"
        if self._regroup:
            self._tell(now, f"generation {self._label} ends after this step", self._regroup)

    def _directive(self, member: Member) -> Directive:
        generation, stop = self._generation, self._stopping or self._done
        is_in = generation is not None and not self._broken and member.name in generation.members
        if generation is None or not is_in:
            return Directive(
                term=self._term,
                over=self._over,
                acknowledged=self._log.acknowledged,
                stop=stop,
                leave=member.draining and self.is_running,
            )
        first = self._members.get(generation.members[0])
        is_there = first is not None and first.beat.generation == generation.number
        return Directive(
            term=self._term,
            over=self._over,
            generation=generation.number,
            members=generation.members,
            source=generation.source,
            committed=generation.start if generation.source else -1,
            address=first.beat.address if first is not None and is_there else "",
            regroup=bool(self._regroup),
            acknowledged=self._log.acknowledged,
            stop=stop,
        )

    @property
    def _label(self) -> str:
        return f"{self._term}.{self._number - self._term * GENERATIONS_PER_TERM}"

    def _tell(self, now: float, what: str, why: str) -> None:
        self.events.append(Event(now, what, why))
