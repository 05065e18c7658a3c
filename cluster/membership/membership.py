"""Membership: holds the state of trainer membership, its log of steps, and its counters.

The decisions are those of `transitions.step`. Times are `now`, seconds of a steady clock.
"""

from collections import Counter, deque
from collections.abc import Mapping

from cluster.membership.directives import directive_for
from cluster.membership.failure_detector import MembershipConfig
from cluster.membership.members import Generation, Member, alive
from cluster.membership.membership_state import GENERATIONS_PER_TERM as GENERATIONS_PER_TERM
from cluster.membership.membership_state import (
    Decision,
    Drained,
    Finished,
    GaveUp,
    Looked,
    Lost,
    MembershipEvent,
    Received,
    Refused,
    Regrouping,
    Reported,
    Running,
    Saved,
    Started,
    StopAsked,
    Suspected,
    first_state,
)
from cluster.membership.step_timing import Recovery
from cluster.membership.transitions import step
from cluster.protocol.messages import Directive, HeartbeatMessage
from cluster.protocol.step_log import Records, StepLog
from shards.records import Cursor

_NUM_EVENTS = 200


class Membership:
    """Assigns trainers to generations. `num_trainers` are wanted; further ones stand by."""

    def __init__(
        self,
        term: int,
        global_batch: int,
        num_trainers: int,
        config: MembershipConfig | None = None,
    ) -> None:
        self._state = first_state(term, global_batch, num_trainers, config or MembershipConfig())
        self._log = StepLog()
        self.events: deque[Decision] = deque(maxlen=_NUM_EVENTS)
        self.refused: Counter[str] = Counter()
        self.num_generations = 0

    @property
    def members(self) -> Mapping[str, Member]:
        """Known trainers that are not lost."""
        return self._state.members

    @property
    def generation(self) -> Generation | None:
        """The newest generation; it may be over."""
        return self._state.generation

    @property
    def is_running(self) -> bool:
        """True if every member of the generation trains."""
        return isinstance(self._state.inner_stage, Running | Regrouping)

    @property
    def min_committed(self) -> int:
        """The step that every member of the generation has finished.

        It is needed again only if all members with a state are lost: a generation then starts
        before it.
        """
        generation = self.generation
        if generation is None:
            return -1
        steps = [member.heartbeat.committed for member in alive(generation, self.members)]
        return max(generation.start, min(steps, default=-1))

    @property
    def median_step_seconds(self) -> float:
        """Median seconds from one finished step to the next, waits included; 0 if unknown."""
        return self._state.timing.median_seconds

    @property
    def recoveries(self) -> list[Recovery]:
        return list(self._state.timing.recoveries)

    @property
    def gave_up(self) -> str:
        """Why the run must end; empty while it can go on."""
        stage = self._state.inner_stage
        return stage.reason if isinstance(stage, GaveUp) else ""

    @property
    def is_finished(self) -> bool:
        """True if a member trained to the last step, and no member trains any more."""
        is_done = isinstance(self._state.stage, Finished)
        return is_done and not any(member.is_under_way for member in self.members.values())

    @property
    def num_records_lost(self) -> int:
        """Finished steps whose reports were lost with all trainers that had them."""
        return self._log.num_lost

    def records(self, since: int, history: int = 0) -> Records:
        """Return the reports after step `since` of `history`, the last one in the log."""
        return self._log.take(since, history, self.min_committed if self.is_running else -1)

    def beat(self, heartbeat: HeartbeatMessage, now: float) -> Directive:
        """Take a heartbeat and return the answer."""
        self._step(Received(heartbeat), now)
        return directive_for(self._state, heartbeat, self._log.acknowledged)

    def lost(self, name: str, reason: str, now: float) -> None:
        """Note that a trainer is dead, or will be at once; later messages from it are refused."""
        self._step(Lost(name, reason), now)

    def draining(self, name: str, now: float) -> None:
        """Note that a node will go: continue without its trainer when another one has the state."""
        self._step(Drained(name), now)

    def restore(self, step: int, cursor: Cursor | None) -> None:
        """Note a saved state, for the case that no trainer has a newer one."""
        self._step(Saved(step, cursor), 0.0)

    def stop(self, now: float) -> None:
        """Ask all trainers to finish the step under way, save the state, and leave."""
        self._step(StopAsked("the user asked for it"), now)

    def stop_without_data(self, why: str, now: float) -> None:
        """Ask all trainers to save the state and leave: no data comes for another step."""
        self._step(StopAsked(why, starved=True), now)

    def silent(self, now: float) -> list[str]:
        """Return trainers that must be killed and then reported by `lost`.

        Call it at least four times in `silence_seconds`. After a longer pause Control itself was
        away, and all trainers get new time.
        """
        return self._step(Looked(), now)

    def _step(self, event: MembershipEvent, now: float) -> list[str]:
        """Change the state; return the suspected trainers."""
        self._state, outputs = step(self._state, event, now)
        suspected: list[str] = []
        for output in outputs:
            match output:
                case Decision():
                    self.events.append(output)
                case Refused(kind):
                    self.refused[kind] += 1
                case Reported(reports):
                    self._log.add(reports)
                case Started(generation):
                    self.num_generations += 1
                    self._log.begin(generation.start, generation.number)
                case Suspected(names):
                    suspected += names
        return suspected
