"""The states of trainer membership, and the events that change them. See `transitions`.

    Gathering  -- enough members are ready ---------------> Joining
    Joining    -- every member reports `running` ---------> Running
    Running    -- another generation would be better -----> Regrouping
    Regrouping -- the members leave after the same step --> Ending
    any of these three -- a member is lost or broken -----> Broken
    Ending, Broken -- no member trains any more ----------> Gathering, or GaveUp

Stopping and Finished hold one of these stages: it can still end or break, but nothing new begins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.membership.failure_detector import FailureDetector, MembershipConfig
from cluster.membership.members import Generation, Member
from cluster.membership.step_timing import StepTiming
from cluster.protocol.messages import HeartbeatMessage
from cluster.protocol.step_report import StepReport
from shards.records import Cursor

# Generations are numbered within a term, and rise over the run.
GENERATIONS_PER_TERM = 1 << 32


@dataclass(frozen=True, slots=True)
class Gathering:
    """No generation is under way. `ready_since`: when the first member became ready."""

    previous: Generation | None = None
    why: str = ""  # the previous generation ended
    ready_since: float | None = None


@dataclass(frozen=True, slots=True)
class Joining:
    """Members meet and receive the state. `progress_at`: when one of them got further."""

    generation: Generation
    progress_at: float


@dataclass(frozen=True, slots=True)
class Running:
    """Every member trains. `growing_since`: since when the generation could be larger."""

    generation: Generation
    progress_at: float
    growing_since: float | None = None


@dataclass(frozen=True, slots=True)
class Regrouping:
    """Every member trains, and leaves after the step under way."""

    generation: Generation
    progress_at: float
    why: str


@dataclass(frozen=True, slots=True)
class Ending:
    """Members leave after the same step; some still train it. `why` is empty after a stop."""

    generation: Generation
    since: float
    why: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The generation cannot go on; some members have not undone their step yet."""

    generation: Generation
    since: float
    had_loss: bool = False


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Too many generations came to nothing; the run must end for this reason."""

    previous: Generation
    reason: str


Active = Joining | Running | Regrouping
Stage = Gathering | Active | Ending | Broken | GaveUp


@dataclass(frozen=True, slots=True)
class Stopping:
    """The user asked all members to stop after the step under way, at `since`."""

    stage: Stage
    since: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A member has trained to the last step; the others are about to leave."""

    stage: Stage


@dataclass(frozen=True, slots=True)
class MembershipState:
    """Everything that membership knows. `number` and `over` are numbers of generations."""

    term: int
    global_batch: int
    num_wanted: int
    detector: FailureDetector
    number: int  # of the newest generation
    over: int  # this one and all before it cannot go on
    stage: Stage | Stopping | Finished = Gathering()
    members: Mapping[str, Member] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    saved_step: int = 0
    saved_cursor: Cursor | None = None
    num_fruitless: int = 0
    timing: StepTiming = field(default_factory=StepTiming)

    @property
    def config(self) -> MembershipConfig:
        return self.detector.config

    @property
    def inner_stage(self) -> Stage:
        """The stage, also that inside of Stopping or Finished."""
        stage = self.stage
        return stage.stage if isinstance(stage, Stopping | Finished) else stage

    @property
    def generation(self) -> Generation | None:
        """The newest generation; it may be over."""
        stage = self.inner_stage
        return stage.previous if isinstance(stage, Gathering | GaveUp) else stage.generation

    @property
    def is_broken(self) -> bool:
        """True if the newest generation broke."""
        generation = self.generation
        return generation is not None and self.over >= generation.number

    def label(self, number: int) -> str:
        """Return the name of a generation for people."""
        return f"{self.term}.{number - self.term * GENERATIONS_PER_TERM}"


def first_state(
    term: int, global_batch: int, num_wanted: int, config: MembershipConfig
) -> MembershipState:
    """Return the state of a new Control."""
    number = term * GENERATIONS_PER_TERM
    return MembershipState(
        term=term,
        global_batch=global_batch,
        num_wanted=num_wanted,
        detector=FailureDetector(config),
        number=number,
        over=number,
    )


# Events.


@dataclass(frozen=True, slots=True)
class Received:
    """A heartbeat came."""

    heartbeat: HeartbeatMessage


@dataclass(frozen=True, slots=True)
class Lost:
    """A trainer is dead, or will be at once; later messages from it are refused."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """The node of a trainer will go."""

    name: str


@dataclass(frozen=True, slots=True)
class Saved:
    """A state of `step` finished steps is saved."""

    step: int
    cursor: Cursor | None


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The run must end, for this reason. `starved`: no data comes for the step under way."""

    why: str
    starved: bool = False


@dataclass(frozen=True, slots=True)
class Looked:
    """Time has passed; Control looks for members that fail."""


MembershipEvent = Received | Lost | Drained | Saved | StopAsked | Looked


# Outputs.


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision or a notice, for people."""

    at: float
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was ignored: its sender is gone, its term or generation is wrong, or it is late."""

    kind: str


@dataclass(frozen=True, slots=True)
class Reported:
    """Members finished these steps; some may be known."""

    reports: tuple[StepReport, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """A generation began: steps after its start are trained again."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Suspected:
    """Trainers that must be killed; Control reports them as lost then."""

    names: tuple[str, ...]


Output = Decision | Refused | Reported | Started | Suspected
