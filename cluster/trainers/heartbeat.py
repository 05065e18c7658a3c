"""The heartbeat of a trainer: tells Control where it is, and keeps what Control wants of it.

It runs on a thread of its own, so that a step which takes long is not taken for death, and so that
the training thread, which may be waiting for a dead peer, can be told to give up.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cluster.protocol.actor_rpc import Unreachable
from cluster.protocol.learner import Learner, Wish
from cluster.protocol.messages import Beat, Directive, Doing, Load, Phase, StepRecord
from cluster.trainers.rendezvous import GenerationOver

Speak = Callable[[Beat], Directive]
"""Asks Control; raises Unreachable."""

# Others may wait for what a trainer says right after a change, and it for the answer.
_HURRY_SECONDS: Final = 0.1
_HURRIED_SECONDS: Final = 5.0
_IMPATIENT: Final = ("ready", "joining", "broken")
_UNDER_WAY: Final = ("joining", "running")
# A training thread that was told of the end may be in the middle of a long step of its own.
_COME_OUT_SECONDS: Final = 1.0
# After a long silence of Control, what there is to report comes bit by bit.
_MAX_RECORDS: Final = 256


def _unknown() -> None:
    """Nobody asks what this trainer holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PulseConfig:
    """How often a trainer beats, and when it gives itself up because nobody hears it."""

    beat_seconds: float = 0.5
    orphan_seconds: float = 120.0


class Pulse:
    """What Control and the training thread of one trainer know of each other. Use as a context.

    `look` tells what the trainer holds. The training thread sets `doing`, and `interrupt`: that is
    called, on the thread of the pulse, when the generation under way is over.
    """

    def __init__(
        self,
        speak: Speak,
        first: Beat,
        config: PulseConfig | None = None,
        look: Callable[[], Load | None] = _unknown,
    ) -> None:
        self.doing: Doing = ""
        self.interrupt: Callable[[], None] = _nothing
        self._speak, self._said, self._look = speak, first, look
        self._config = config or PulseConfig()
        self._heard = Directive(term=first.term)
        self._records: list[StepRecord] = []
        self._changed = threading.Condition()
        self._must_tell = self._closed = self._interrupted = self._has_finished = False
        self._error: BaseException | None = None
        self._told = self._answered = time.monotonic()
        self._over_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="pulse", daemon=True)

    @property
    def member(self) -> str:
        """The name of this trainer."""
        return self._said.member

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """Those that Control has not acknowledged yet."""
        with self._changed:
            return tuple(self._records)

    @property
    def wish(self) -> Wish:
        """What Control wants to happen after the step under way."""
        heard = self._heard
        if heard.stop:
            return Wish.STOP
        return Wish.REGROUP if heard.regroup else Wish.GO_ON

    @property
    def is_over(self) -> bool:
        """Whether the generation under way cannot go on."""
        heard = self._heard
        return heard.over >= self._said.generation or heard.leave or self._error is not None

    def check(self) -> None:
        """Raise GenerationOver if the generation under way cannot go on."""
        if self.is_over:
            raise GenerationOver("Control gave the generation up")

    def say(self, phase: Phase, reason: str = "") -> None:
        """Tell Control at once where this trainer is."""
        with self._changed:
            self._change(replace(self._said, phase=phase, reason=reason))

    def enter(self, generation: int) -> None:
        """From now on this trainer is in this generation."""
        with self._changed:
            self._interrupted = self._has_finished = False
            self._over_since = None
            self._change(replace(self._said, generation=generation, phase="joining", reason=""))

    def hold(self, learner: Learner) -> None:
        """This is the state that counts; reports of later steps are of steps that never were."""
        with self._changed:
            self._said = replace(self._said, committed=learner.step, cursor=learner.cursor)
            self._records = [record for record in self._records if record.step <= learner.step]

    def inherit(self, records: tuple[StepRecord, ...]) -> None:
        """Reports of the state that was taken over: they may be lost with whoever had it."""
        with self._changed:
            self._records = list(records)

    def finished(self, record: StepRecord, step_seconds: float, wait_seconds: float) -> None:
        """A step is finished. Of a generation's first one Control hears at once."""
        with self._changed:
            said = self._said
            self._records.append(record)
            self._said = replace(
                said,
                committed=record.step,
                cursor=record.cursor,
                step_seconds=said.step_seconds + step_seconds,
                wait_seconds=said.wait_seconds + wait_seconds,
            )
            self._must_tell |= not self._has_finished
            self._has_finished = True
            self._changed.notify_all()

    def await_call(self) -> Directive | None:
        """Wait until Control wants this trainer in a new generation; None: it shall leave."""
        with self._changed:
            while True:
                heard = self._heard
                self._raise_error()
                if heard.leave or heard.stop:
                    return None
                is_new = heard.generation > max(self._said.generation, heard.over)
                if is_new and self._said.member in heard.members:
                    return heard
                self._changed.wait()

    def await_address(self, generation: int) -> str:
        """Where rank 0 of this generation waits. Raises GenerationOver."""
        with self._changed:
            while not (self._heard.generation == generation and self._heard.address):
                self.check()
                self._changed.wait()
            return self._heard.address

    def _change(self, beat: Beat) -> None:
        self._said, self._must_tell = beat, True
        self._told = time.monotonic()
        self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _loop(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                beat, is_last, self._must_tell = self._beat(), self._closed, False
            try:
                self._hear(self._speak(beat))
            except Unreachable as error:
                self._miss(error)
            except Exception as error:  # the training thread must hear of it: nobody waits here
                self._fail(error)
            with self._changed:
                self._changed.wait_for(lambda: self._must_tell or self._closed, self._pause())

    def _beat(self) -> Beat:
        """What to say now."""
        beat = replace(
            self._said,
            term=self._heard.term,
            doing=self.doing,
            load=self._look(),
            reports=tuple(self._records[:_MAX_RECORDS]),
        )
        since = self._over_since
        if since is None or time.monotonic() - since < _COME_OUT_SECONDS:
            return beat
        # Whatever the training thread does in its long step, it will be undone.
        return replace(beat, phase="broken", reason="Control gave the generation up")

    def _pause(self) -> float:
        is_recent = time.monotonic() - self._told < _HURRIED_SECONDS
        hurries = self._over_since is not None or self._said.phase in _IMPATIENT
        seconds = self._config.beat_seconds
        return min(seconds, _HURRY_SECONDS) if hurries and is_recent else seconds

    def _hear(self, directive: Directive) -> None:
        with self._changed:
            self._answered = time.monotonic()
            if directive.term < self._heard.term:
                return  # a Control that was replaced
            self._heard = directive
            self._records = [r for r in self._records if r.step > directive.acknowledged]
            self._changed.notify_all()
        self._interrupt()

    def _interrupt(self) -> None:
        """Once a generation: let go whatever the training thread waits for."""
        with self._changed:
            must = self.is_over and self._said.phase in _UNDER_WAY and not self._interrupted
            if must:
                self._interrupted = True
                self._over_since = self._told = time.monotonic()
        if must:
            self.interrupt()

    def _miss(self, error: Unreachable) -> None:
        seconds = self._config.orphan_seconds
        if time.monotonic() - self._answered > seconds:
            self._fail(Unreachable(f"nobody answered this trainer for {seconds:g} s ({error})"))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._interrupt()

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The last word is said once more, and Control's answer is awaited."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()


def _nothing() -> None:
    """Nobody waits for anything yet."""
