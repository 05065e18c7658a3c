"""How the actors of a run reach each other: by name, in the namespace of their job.

The name of an actor is what the messages call it. Control dies and is made anew under the same
name, with a higher term; so nobody keeps a handle of it, but a `Link`.

What Control answers, all of it idempotent:

    exchange(ReaderReport) -> ReaderOrders      readers, every `seconds` of the last answer
    beat(Beat) -> Directive                     trainers, twice a second and at every change
    plans(member, first, count) -> Plans        feeds; raises what ended the stream
    missing(member, task, reader) -> None       feeds: this reader did not give the task's crops
    state() -> StateRef                         trainers whose directive names no source
    saved(member, step, [ref]) -> None          rank 0: a LearnerState, put into the object store

How actors are made by whoever runs them (`name` is also the actor's name, `control` that of
Control); `start` gets ready and raises ConfigError for what no other node would mend, and `left`
returns when the actor is done, so that whoever waits for it hears of its death at once:

    Reader.remote(name, control, job, config, ...)      start() -> Started      left() -> None
    Trainer.remote(name, control, build, config, ...)   start() -> Started      left() -> None
"""

from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from shards.records import Cursor

CONTROL: Final = "control"  # its name
_CALL_SECONDS = 10.0


class Unreachable(Exception):
    """Nobody answered to a name; it may be dead, or hang, or be made anew at this moment."""


@dataclass(frozen=True, slots=True)
class Started:
    """Where an actor runs: its process and its node, and where its own pages are, if it has any."""

    pid: int
    node: str
    pages: str = ""


@dataclass(frozen=True, slots=True)
class StateRef:
    """The state that counts when no trainer has one: finished steps, and the ref of a LearnerState.

    `cursor` is the place behind it. Without a ref it is what the learner is built as.
    """

    step: int
    refs: tuple[Any, ...] = ()
    cursor: Cursor | None = None


class Link:
    """A way to the actor of this name, and to its successor when it dies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._actor: Any = None

    def ask(self, method: str, *arguments: object) -> Any:
        """The ObjectRef of an answer. Raises Unreachable when there is no such actor."""
        if self._actor is None:
            try:
                self._actor = ray.get_actor(self.name)
            except ValueError as error:
                raise Unreachable(f"there is no actor {self.name}") from error
        return getattr(self._actor, method).remote(*arguments)

    def answer(self, ref: Any, seconds: float = _CALL_SECONDS) -> Any:
        """What an `ask` gave. Raises Unreachable, or what the method raised."""
        try:
            return ray.get(ref, timeout=seconds)
        except RayTaskError as error:
            raise error.cause from error
        except (RayError, GetTimeoutError) as error:  # it, its node or the answer is lost
            self._actor = None
            raise Unreachable(f"{self.name} does not answer ({type(error).__name__})") from error

    def call(self, method: str, *arguments: object, seconds: float = _CALL_SECONDS) -> Any:
        """Ask, and wait for the answer. Raises Unreachable, or what the method raised."""
        return self.answer(self.ask(method, *arguments), seconds)
