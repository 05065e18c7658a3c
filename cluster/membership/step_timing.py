"""How quickly steps follow one another, and how long a loss held them up."""

from collections import deque
from dataclasses import dataclass
from statistics import median

_NUM_STEPS = 20


@dataclass(frozen=True, slots=True)
class Recovery:
    """From the moment a loss was noticed to the next finished step."""

    at: float
    seconds: float
    why: str


class StepPace:
    """Told of generations, finished steps and losses; tells what is usual."""

    def __init__(self) -> None:
        self.recoveries: list[Recovery] = []
        self._start = self._newest = -1
        self._newest_at = 0.0
        self._steps: deque[float] = deque(maxlen=_NUM_STEPS)
        self._trouble: tuple[float, str] | None = None

    @property
    def median_seconds(self) -> float:
        """From one finished step to the next, waits included; 0 as long as it is unknown."""
        return median(self._steps) if self._steps else 0.0

    @property
    def trouble(self) -> str:
        """What no finished step has followed yet."""
        return self._trouble[1] if self._trouble else ""

    def begin(self, start: int) -> None:
        """A generation goes on after `start` finished steps."""
        self._start = self._newest = start

    def breaks(self, why: str, now: float) -> None:
        """Something was lost; of several losses in a row the first one counts."""
        self._trouble = self._trouble or (now, why)

    def finished(self, step: int, now: float) -> Recovery | None:
        """Somebody finished this step; what it recovers from, if it does."""
        if step <= self._newest:
            return None
        if self._newest > self._start:
            self._steps.append((now - self._newest_at) / (step - self._newest))
        self._newest, self._newest_at = step, now
        if self._trouble is None:
            return None
        at, why = self._trouble
        self._trouble = None
        self.recoveries.append(Recovery(at, now - at, why))
        return self.recoveries[-1]
