"""History: how series went since the run began, in bounded memory, for charts."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

_NUM_POINTS = 600
_SLACK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Point:
    """All series at a moment of the wall clock; those that were not measured are missing."""

    time: float
    values: Mapping[str, float]


class History:
    """Points, one every `interval_seconds`. When it is full, every second one goes, and points
    come half as often: it always reaches back to the beginning. Threads may share it."""

    def __init__(self, num_points: int = _NUM_POINTS, interval_seconds: float = 1.0) -> None:
        self._most, self.interval_seconds = num_points, interval_seconds
        self._points: deque[Point] = deque()
        self._lock = threading.Lock()

    def add(self, values: Mapping[str, float], now: float | None = None) -> None:
        """Keep these values, unless the newest point is younger than an interval."""
        now = time.time() if now is None else now
        with self._lock:
            if not self._is_due(now):
                return
            if len(self._points) >= self._most:
                self._points = deque(list(self._points)[::2])
                self.interval_seconds *= 2
            self._points.append(Point(now, dict(values)))

    def _is_due(self, now: float) -> bool:
        """Clocks tick unevenly: a little too early is in time."""
        after = self.interval_seconds - _SLACK_SECONDS
        return not self._points or now - self._points[-1].time >= after

    def columns(self, since: float = 0.0) -> dict[str, list[float | None]]:
        """A list for every series and one of times, equally long, of the points after `since`."""
        with self._lock:
            points = [point for point in self._points if point.time > since]
        names = dict.fromkeys(name for point in points for name in point.values)
        columns: dict[str, list[float | None]] = {"time": [point.time for point in points]}
        return columns | {name: [p.values.get(name) for p in points] for name in names}
