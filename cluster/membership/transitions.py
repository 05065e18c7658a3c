"""The state machine of trainer membership: `step` is a pure function of state, event and time.

The newest finished step wins: its member gives its state to the others. A message of another term,
or of a generation that is not the current one, changes nothing but the record of its sender.
"""

from dataclasses import replace

from cluster.membership.directives import refusal
from cluster.membership.members import (
    Generation,
    Member,
    alive,
    all_run,
    choose,
    in_order,
    is_heir,
    progress,
    staying,
)
from cluster.membership.membership_state import (
    Active,
    Broken,
    Decision,
    Drained,
    Ending,
    Finished,
    Gathering,
    GaveUp,
    Joining,
    Looked,
    Lost,
    MembershipEvent,
    MembershipState,
    Output,
    Received,
    Refused,
    Regrouping,
    Reported,
    Running,
    Saved,
    Stage,
    Started,
    StopAsked,
    Stopping,
    Suspected,
)
from cluster.membership.world_sizes import fitting_world_size
from cluster.protocol.messages import HeartbeatMessage


def step(
    state: MembershipState, event: MembershipEvent, now: float
) -> tuple[MembershipState, tuple[Output, ...]]:
    """Return the state after an event at `now`, and what follows from it."""
    transition = _Transition(state, now)
    match event:
        case Received(heartbeat):
            transition.received(heartbeat)
        case Lost(name, reason):
            transition.lost(name, reason)
        case Drained(name):
            transition.drained(name)
        case Saved(saved_step, cursor):
            transition.saved(saved_step, cursor)
        case StopAsked(why, starved):
            transition.stop_asked(why, starved)
        case Looked():
            transition.looked()
    return transition.state, tuple(transition.outputs)


class _Transition:
    """One call of `step`: collects the new state and the outputs."""

    def __init__(self, state: MembershipState, now: float) -> None:
        self.state, self.outputs, self._now = state, list[Output](), now

    # Events.

    def received(self, heartbeat: HeartbeatMessage) -> None:
        refused = refusal(self.state, heartbeat)
        if refused:
            self.outputs.append(Refused(refused))
            return
        self._take(heartbeat)
        self._decide()

    def lost(self, name: str, reason: str) -> None:
        members = dict(self.state.members)
        member = members.pop(name, None)
        self._change(members=members, gone=self.state.gone | {name})
        if member is not None and member.heartbeat.phase != "left":
            self._tell(f"{name} is lost", reason)
            generation = self.state.generation
            if generation is not None and name in generation.members:
                self._break(f"{name} was lost: {reason}")
                if isinstance(stage := self.state.inner_stage, Broken):
                    self._enter(replace(stage, had_loss=True))
        self._decide()

    def drained(self, name: str) -> None:
        member = self.state.members.get(name)
        if member is not None and not member.draining:
            self._put(replace(member, draining=True))
            self._tell(f"{name} drains", "its node will go")
            self._decide()

    def saved(self, saved_step: int, cursor: object) -> None:
        if saved_step >= self.state.saved_step:
            self._change(saved_step=saved_step, saved_cursor=cursor)

    def stop_asked(self, why: str, starved: bool) -> None:
        if not isinstance(self.state.stage, Stopping | Finished):
            self._change(stage=Stopping(self.state.stage, self._now))
            self._tell("all stop", why)
            if starved and isinstance(self.state.inner_stage, Active):
                self._break("all stop, and no data comes for the step under way")

    def looked(self) -> None:
        self._change(detector=self.state.detector.look(self._now))
        self._decide()
        state, detector = self.state, self.state.detector
        stage, usual = state.inner_stage, state.timing.median_seconds
        names = set(detector.silent(state.members, self._now))
        if isinstance(stage, Active):
            generation = stage.generation
            found, why = detector.stuck(
                generation, state.members, stage.progress_at, usual, self._now
            )
            names.update(found)
            if not found and (why or self._starves(stage)):
                self._break(why or "all stop, and no data comes for the step under way")
        else:
            since = stage.since if isinstance(stage, Ending | Broken) else 0.0
            usual = 0.0 if state.is_broken else usual
            names.update(detector.late(state.members, since, usual, self._now))
        self.outputs.append(Suspected(tuple(sorted(names))))

    # Heartbeats.

    def _take(self, heartbeat: HeartbeatMessage) -> None:
        state = self.state
        known = state.members.get(heartbeat.member)
        if known is not None and progress(heartbeat) < progress(known.heartbeat):
            # A repeated or overtaken message is no sign of life.
            self.outputs.append(Refused("late"))
            return
        if known is None:
            arrived = len(state.members) + len(state.gone)
            member = Member(heartbeat, arrived, self._now, self._now)
        else:
            member = replace(known, heartbeat=heartbeat, heard=self._now)
        self._put(member)
        if heartbeat.term < state.term:
            self.outputs.append(Refused("term"))  # the answer tells it the new term
            return
        self.outputs.append(Reported(heartbeat.reports))
        is_end = heartbeat.phase == "left" and not member.draining
        if is_end and not isinstance(state.stage, Stopping | Finished):
            self._change(stage=Finished(state.stage))
        generation = state.generation
        if generation is not None and heartbeat.generation == generation.number:
            self._follow(generation, heartbeat)
            if known is not None and progress(heartbeat) > progress(known.heartbeat):
                self._note_progress()

    def _follow(self, generation: Generation, heartbeat: HeartbeatMessage) -> None:
        """Take a heartbeat of a member of the newest generation."""
        if not self.state.is_broken and heartbeat.committed > generation.start:
            self._note_step(heartbeat.committed)
        if heartbeat.phase == "broken":
            self._break(f"{heartbeat.member} gave up: {heartbeat.reason or 'no reason given'}")
            return
        stage = self.state.inner_stage
        if heartbeat.phase not in ("ready", "left") or not isinstance(stage, Active):
            return
        why = stage.why if isinstance(stage, Regrouping) else ""
        if why or isinstance(self.state.stage, Stopping) or heartbeat.phase == "left":
            self._enter(Ending(generation, self._now, why))
        else:
            self._break(f"{heartbeat.member} left the others unasked")

    def _note_step(self, committed: int) -> None:
        before = self.state.timing
        after = before.finished(committed, self._now)
        self._change(timing=after, num_fruitless=0)
        for recovery in after.recoveries[len(before.recoveries) :]:
            seconds = f"{recovery.seconds:.1f} s after a loss"
            self._tell(f"step {committed} is finished {seconds}", recovery.why)

    def _note_progress(self) -> None:
        stage = self.state.inner_stage
        if isinstance(stage, Active):
            stage = replace(stage, progress_at=self._now)
            if isinstance(stage, Joining) and all_run(stage.generation, self.state.members):
                stage = Running(stage.generation, self._now)
            self._enter(stage)

    # Decisions.

    def _decide(self) -> None:
        stage = self.state.stage
        if isinstance(stage, Running):
            self._consider_regroup(stage)
        if not isinstance(stage, Ending | Broken | Gathering):
            return
        if any(member.is_under_way for member in self.state.members.values()):
            return
        if isinstance(stage, Ending | Broken):
            self._gather(stage)
        if isinstance(self.state.stage, Gathering):
            self._consider_start(self.state.stage)

    def _gather(self, stage: Ending | Broken) -> None:
        """Begin to gather, unless too many generations came to nothing."""
        trouble = self.state.timing.trouble
        why = stage.why if isinstance(stage, Ending) else ""
        if isinstance(stage, Broken) and not stage.had_loss:
            self._change(num_fruitless=self.state.num_fruitless + 1)
        if self.state.num_fruitless >= self.state.config.max_fruitless:
            reason = (
                f"{self.state.num_fruitless} generations of trainers in a row broke before they "
                f"finished a step, although no trainer was lost ({trouble.why if trouble else ''})"
                "; mend that, then start the same command again"
            )
            self._enter(GaveUp(stage.generation, reason))
        else:
            self._enter(Gathering(stage.generation, trouble.why if trouble else why))

    def _consider_start(self, stage: Gathering) -> None:
        state, ready = self.state, self._ready()
        if not ready:
            self._enter(replace(stage, ready_since=None))
            return
        since = self._now if stage.ready_since is None else stage.ready_since
        self._enter(replace(stage, ready_since=since))
        goes_on = stage.previous is not None and alive(stage.previous, state.members)
        has_state = any(member.heartbeat.committed > 0 for member in ready)
        limit = state.config.settle_seconds if has_state else state.config.gather_seconds
        is_complete = len(staying(ready)) >= state.num_wanted
        if goes_on or is_complete or self._now - since >= limit:
            self._start(stage, ready)

    def _start(self, stage: Gathering, ready: list[Member]) -> None:
        state, order = self.state, in_order(ready, stage.previous)
        newest = order[0].heartbeat
        # Members of the previous generation go on from their state, even if a newer one was saved.
        if newest.committed >= state.saved_step or is_heir(order[0], stage.previous):
            source, start, cursor = newest.member, newest.committed, newest.cursor
        else:
            source, start, cursor = "", state.saved_step, state.saved_cursor
        chosen = choose(order, source, state.global_batch, state.num_wanted)
        names = tuple(member.name for member in chosen)
        if source not in names:  # it drains, and another member has the same state
            source = names[0] if source else ""
        generation = Generation(state.number + 1, names, source, start, cursor)
        self._change(number=generation.number, timing=state.timing.begin(start))
        self._enter(Joining(generation, self._now))
        label = self.state.label(generation.number)
        why = stage.why or f"{len(ready)} are ready"
        self._tell(f"generation {label} of {', '.join(names)} from step {start}", why)
        self.outputs.append(Started(generation))

    def _consider_regroup(self, stage: Running) -> None:
        """End a running generation when another one would be better."""
        state, generation = self.state, stage.generation
        inside = alive(generation, state.members)
        outside = [member for member in staying(self._ready()) if member not in inside]
        num_fresh = len(staying(inside)) + len(outside)
        size = fitting_world_size(state.global_batch, min(num_fresh, state.num_wanted))
        why, growing_since = "", stage.growing_since
        if len(staying(inside)) < len(inside):
            # The state passes within a generation: from its last member to a new one it needs two.
            if staying(inside) or fitting_world_size(state.global_batch, 1 + len(outside)) > 1:
                why = "a member has to go"
        elif size <= len(generation.members):
            growing_since = None
        else:
            growing_since = self._now if growing_since is None else growing_since
            is_complete = num_fresh >= state.num_wanted
            if is_complete or self._now - growing_since >= state.config.settle_seconds:
                why = f"{len(outside)} more are ready"
        if why:
            self._enter(Regrouping(generation, stage.progress_at, why))
            label = state.label(generation.number)
            self._tell(f"generation {label} ends after this step", why)
        else:
            self._enter(replace(stage, growing_since=growing_since))

    def _break(self, why: str) -> None:
        """End the newest generation at once: its step under way is undone."""
        generation = self.state.generation
        if generation is None or self.state.is_broken:
            return
        timing = self.state.timing.broke(why, self._now)
        self._change(over=generation.number, timing=timing)
        self._enter(Broken(generation, self._now))
        self._tell(f"generation {self.state.label(generation.number)} is over", why)

    def _ready(self) -> list[Member]:
        """Return the members that wait for a generation."""
        return [
            member
            for member in self.state.members.values()
            if member.heartbeat.phase in ("ready", "broken")
            and member.heartbeat.term == self.state.term
        ]

    def _starves(self, stage: Active) -> bool:
        """Return True if all must stop, and a member waits for data that may never come."""
        stopping = self.state.stage
        if not isinstance(stopping, Stopping):
            return False
        waited = self._now - max(stopping.since, stage.progress_at)
        members = alive(stage.generation, self.state.members)
        waits = any(member.heartbeat.doing == "data" for member in members)
        return waits and waited > self.state.config.stop_seconds

    # Changes.

    def _change(self, **fields: object) -> None:
        self.state = replace(self.state, **fields)  # type: ignore[arg-type]

    def _enter(self, stage: Stage) -> None:
        """Change the stage, also that inside of Stopping or Finished."""
        outer = self.state.stage
        wrapped = replace(outer, stage=stage) if isinstance(outer, Stopping | Finished) else stage
        self._change(stage=wrapped)

    def _put(self, member: Member) -> None:
        self._change(members={**self.state.members, member.name: member})

    def _tell(self, what: str, why: str) -> None:
        self.outputs.append(Decision(self._now, what, why))
