"""Heartbeat of a trainer: sends its state to Control, and holds the newest directive of Control.

A thread of its own sends it. So a long step does not look like a dead process, and the training
thread can be interrupted while it waits for a dead peer.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cluster.protocol.actor_rpc import Unreachable
from cluster.protocol.learner import Learner, StopVote
from cluster.protocol.messages import Directive, Doing, HeartbeatMessage, Phase, TrainerUsage
from cluster.protocol.step_report import StepReport
from cluster.trainers.rendezvous import GenerationOver

SendHeartbeat = Callable[[HeartbeatMessage], Directive]
"""Sends a message to Control and returns its answer. Raises Unreachable."""

# Right after a change other trainers may wait for this message, and this one for the answer.
_FAST_SECONDS: Final = 0.1
_FAST_PERIOD_SECONDS: Final = 5.0
_FAST_PHASES: Final = ("ready", "joining", "broken")
_UNDER_WAY: Final = ("joining", "running")
# A training thread that was interrupted may be in the middle of a long step of its own.
_INTERRUPT_GRACE_SECONDS: Final = 1.0
# After a long absence of Control, the pending reports are sent in parts.
_MAX_REPORTS: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class HeartbeatConfig:
    """Seconds between two messages, and until a trainer without an answer gives up."""

    beat_seconds: float = 0.5
    orphan_seconds: float = 120.0


class Heartbeat:
    """The heartbeat thread of one trainer. Use as a context.

    `usage` returns the memory that the trainer holds. The training thread sets `doing` and
    `interrupt`; the heartbeat thread calls `interrupt` when the generation under way is over.
    """

    def __init__(
        self,
        send: SendHeartbeat,
        first: HeartbeatMessage,
        config: HeartbeatConfig | None = None,
        usage: Callable[[], TrainerUsage | None] = lambda: None,
    ) -> None:
        self.doing: Doing = ""
        self.interrupt: Callable[[], None] = lambda: None
        self._send, self._message, self._usage = send, first, usage
        self._config = config or HeartbeatConfig()
        self._directive = Directive(term=first.term)
        self._reports: list[StepReport] = []
        self._changed = threading.Condition()
        self._must_send = self._closed = self._interrupted = self._has_finished = False
        self._error: BaseException | None = None
        self._changed_at = self._answered_at = time.monotonic()
        self._over_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)

    @property
    def member(self) -> str:
        """The name of this trainer."""
        return self._message.member

    @property
    def reports(self) -> tuple[StepReport, ...]:
        """Reports that Control has not acknowledged yet."""
        with self._changed:
            return tuple(self._reports)

    @property
    def vote(self) -> StopVote:
        """The vote that Control wants from this rank for the step under way."""
        directive = self._directive
        if directive.stop:
            return StopVote.STOP
        return StopVote.REGROUP if directive.regroup else StopVote.CONTINUE

    @property
    def is_over(self) -> bool:
        """True if the generation under way cannot go on."""
        directive = self._directive
        is_over = directive.over >= self._message.generation
        return is_over or directive.leave or self._error is not None

    def check(self) -> None:
        """Raise GenerationOver if the generation under way cannot go on."""
        if self.is_over:
            raise GenerationOver("Control ended the generation")

    def report(self, phase: Phase, reason: str = "") -> None:
        """Send a new phase at once."""
        with self._changed:
            self._change(replace(self._message, phase=phase, reason=reason))

    def join(self, generation: int) -> None:
        """Report that this trainer joins this generation."""
        with self._changed:
            self._interrupted = self._has_finished = False
            self._over_since = None
            self._change(replace(self._message, generation=generation, phase="joining", reason=""))

    def hold_state(self, learner: Learner) -> None:
        """Report the state of `learner`, and drop reports of steps after it: they are void."""
        with self._changed:
            self._message = replace(self._message, committed=learner.step, cursor=learner.cursor)
            self._reports = [report for report in self._reports if report.step <= learner.step]

    def take_reports(self, reports: tuple[StepReport, ...]) -> None:
        """Hold the pending reports of another rank too, in case that rank is lost."""
        with self._changed:
            self._reports = list(reports)

    def finished(self, report: StepReport) -> None:
        """Add a finished step. The first one of a generation is sent at once."""
        with self._changed:
            before = self._message
            self._reports.append(report)
            self._message = replace(
                before,
                committed=report.step,
                cursor=report.cursor,
                step_seconds=before.step_seconds + report.step_seconds,
                wait_seconds=before.wait_seconds + report.data_wait_seconds,
            )
            self._must_send |= not self._has_finished
            self._has_finished = True
            self._changed.notify_all()

    def await_generation(self) -> Directive | None:
        """Wait for a new generation with this trainer; None: the trainer must leave."""
        with self._changed:
            while True:
                directive = self._directive
                if self._error is not None:
                    raise self._error
                if directive.leave or directive.stop:
                    return None
                is_new = directive.generation > max(self._message.generation, directive.over)
                if is_new and self.member in directive.members:
                    return directive
                self._changed.wait()

    def await_address(self, generation: int) -> str:
        """Wait for the address of rank 0 of this generation. Raises GenerationOver."""
        with self._changed:
            while not (self._directive.generation == generation and self._directive.address):
                self.check()
                self._changed.wait()
            return self._directive.address

    def _change(self, message: HeartbeatMessage) -> None:
        self._message, self._must_send = message, True
        self._changed_at = time.monotonic()
        self._changed.notify_all()

    def _loop(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                message, is_last, self._must_send = self._next_message(), self._closed, False
            try:
                self._receive(self._send(message))
            except Unreachable as error:
                self._miss(error)
            except Exception as error:  # the training thread raises it
                self._fail(error)
            with self._changed:
                self._changed.wait_for(lambda: self._must_send or self._closed, self._pause())

    def _next_message(self) -> HeartbeatMessage:
        message = replace(
            self._message,
            term=self._directive.term,
            doing=self.doing,
            usage=self._usage(),
            reports=tuple(self._reports[:_MAX_REPORTS]),
        )
        since = self._over_since
        if since is None or time.monotonic() - since < _INTERRUPT_GRACE_SECONDS:
            return message
        # The training thread is still in a long step, which will be undone.
        return replace(message, phase="broken", reason="Control ended the generation")

    def _pause(self) -> float:
        is_recent = time.monotonic() - self._changed_at < _FAST_PERIOD_SECONDS
        is_fast = self._over_since is not None or self._message.phase in _FAST_PHASES
        seconds = self._config.beat_seconds
        return min(seconds, _FAST_SECONDS) if is_fast and is_recent else seconds

    def _receive(self, directive: Directive) -> None:
        with self._changed:
            self._answered_at = time.monotonic()
            if directive.term < self._directive.term:
                return  # from a Control that was replaced
            self._directive = directive
            self._reports = [r for r in self._reports if r.step > directive.acknowledged]
            self._changed.notify_all()
        self._interrupt()

    def _interrupt(self) -> None:
        """Interrupt the training thread, once for each generation that is over."""
        with self._changed:
            must = self.is_over and self._message.phase in _UNDER_WAY and not self._interrupted
            if must:
                self._interrupted = True
                self._over_since = self._changed_at = time.monotonic()
        if must:
            self.interrupt()

    def _miss(self, error: Unreachable) -> None:
        seconds = self._config.orphan_seconds
        if time.monotonic() - self._answered_at > seconds:
            self._fail(Unreachable(f"nobody answered this trainer for {seconds:g} s ({error})"))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._interrupt()

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Send the last message once more and wait for the answer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
