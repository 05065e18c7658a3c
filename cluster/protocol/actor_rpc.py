"""Calls between the actors of a run: by name, in the namespace of their job.

The name of an actor is the one in the messages. A dead Control is replaced under the same name,
with a higher term; so actors keep an `ActorClient`, not a handle.

Methods of Control, all of them idempotent:

    exchange(ReaderReport) -> ReaderOrders      readers, every `seconds` of the last answer
    beat(HeartbeatMessage) -> Directive         trainers, twice a second and at every change
    plans(member, first, count) -> Plans        feeds; raises the error that ended the stream
    missing(member, task, reader) -> None       feeds: this reader lacks the crops of the task
    state() -> StateRef                         trainers whose directive names no source
    saved(member, step, [ref]) -> None          rank 0: a LearnerState in the object store

The driver creates actors (`name` is the name of the actor, `control` that of Control). `start`
prepares the actor, and raises ConfigError for an error that would be the same on another node.
`left` returns when the actor is done: a caller that waits for it learns of a death at once.

    Reader.remote(name, control, job, config, ...)      start() -> ActorLocation   left() -> None
    Trainer.remote(name, control, build, config, ...)   start() -> ActorLocation   left() -> None
"""

from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from shards.records import Cursor

CONTROL: Final = "control"  # the name of Control
_CALL_SECONDS = 10.0


class Unreachable(Exception):
    """No answer from the actor of a name; it may be dead, hang, or be replaced right now."""


@dataclass(frozen=True, slots=True)
class ActorLocation:
    """Process and node of an actor, and the address of its own pages, if it has any."""

    pid: int
    node: str
    pages: str = ""


@dataclass(frozen=True, slots=True)
class StateRef:
    """State to use when no trainer has one: finished steps, and the ref of a LearnerState.

    `cursor` is the position after those steps. Without a ref, it is the initial state of a learner.
    `giver` is the trainer whose process owns the ref; it is lost with that process.
    """

    step: int
    refs: tuple[Any, ...] = ()
    cursor: Cursor | None = None
    giver: str = ""


class ActorClient:
    """Calls to the actor of this name, and to its successor after its death."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._actor: Any = None

    def submit(self, method: str, *arguments: object) -> Any:
        """Return the ObjectRef of an answer. Raises Unreachable if there is no such actor."""
        if self._actor is None:
            try:
                self._actor = ray.get_actor(self.name)
            except ValueError as error:
                raise Unreachable(f"there is no actor {self.name}") from error
        return getattr(self._actor, method).remote(*arguments)

    def result(self, ref: Any, seconds: float = _CALL_SECONDS) -> Any:
        """Wait for a submitted call. Raises Unreachable, or the error of the method."""
        try:
            return ray.get(ref, timeout=seconds)
        except RayTaskError as error:
            raise error.cause from error
        except (RayError, GetTimeoutError) as error:  # the actor, its node or the answer is lost
            self._actor = None
            raise Unreachable(f"{self.name} does not answer ({type(error).__name__})") from error

    def call(self, method: str, *arguments: object, seconds: float = _CALL_SECONDS) -> Any:
        """Submit a call and wait. Raises Unreachable, or the error of the method."""
        return self.result(self.submit(method, *arguments), seconds)
