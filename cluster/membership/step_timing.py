"""StepTiming: seconds between finished steps, and seconds that a loss cost."""

from dataclasses import dataclass, replace
from statistics import median

_NUM_STEPS = 20


@dataclass(frozen=True, slots=True)
class Recovery:
    """The time from the notice of a loss to the next finished step."""

    at: float
    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """A loss that no finished step has followed yet."""

    at: float
    why: str


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Times of the newest steps. Immutable: every method returns the timing after an event."""

    recoveries: tuple[Recovery, ...] = ()
    trouble: Trouble | None = None
    step_seconds: tuple[float, ...] = ()
    start: int = -1
    newest: int = -1
    newest_at: float = 0.0

    @property
    def median_seconds(self) -> float:
        """Median seconds from one finished step to the next, waits included; 0 if unknown."""
        return median(self.step_seconds) if self.step_seconds else 0.0

    def begin(self, start: int) -> "StepTiming":
        """Note a generation that begins after `start` finished steps."""
        return replace(self, start=start, newest=start)

    def broke(self, why: str, now: float) -> "StepTiming":
        """Note a loss; of several losses in a row the first one counts."""
        return replace(self, trouble=self.trouble or Trouble(now, why))

    def finished(self, step: int, now: float) -> "StepTiming":
        """Note that a member finished `step`. A trouble before it is a recovery now."""
        if step <= self.newest:
            return self
        times = self.step_seconds
        if self.newest > self.start:
            seconds = (now - self.newest_at) / (step - self.newest)
            times = (*times, seconds)[-_NUM_STEPS:]
        recoveries, trouble = self.recoveries, self.trouble
        if trouble is not None:
            recoveries = (*recoveries, Recovery(trouble.at, now - trouble.at, trouble.why))
        return replace(
            self,
            recoveries=recoveries,
            trouble=None,
            step_seconds=times,
            newest=step,
            newest_at=now,
        )
