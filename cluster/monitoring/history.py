"""History: the course of charted series since the run began, in bounded memory."""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.monitoring.steady_clock import steady_time

_NUM_POINTS = 600
# Ticks come unevenly: a point that is early by less than this is kept.
_TOLERANCE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """Series at one moment of the wall clock; series that were not measured are missing."""

    time: float
    values: Mapping[str, float]


class History:
    """Points at least `interval_seconds` apart. Thread-safe.

    A full history drops every second point and doubles the interval, so that it always reaches back
    to the beginning.
    """

    def __init__(self, num_points: int = _NUM_POINTS, interval_seconds: float = 1.0) -> None:
        self._max_points, self.interval_seconds = num_points, interval_seconds
        self._points: deque[HistoryPoint] = deque()
        self._lock = threading.Lock()

    def add(self, values: Mapping[str, float], now: float | None = None) -> None:
        """Add a point, unless the newest point is younger than an interval."""
        now = steady_time() if now is None else now
        with self._lock:
            if not self._is_due(now):
                return
            if len(self._points) >= self._max_points:
                self._points = deque(list(self._points)[::2])
                self.interval_seconds *= 2
            self._points.append(HistoryPoint(now, dict(values)))

    def _is_due(self, now: float) -> bool:
        after = self.interval_seconds - _TOLERANCE_SECONDS
        return not self._points or now - self._points[-1].time >= after

    def columns(self, since: float = 0.0) -> dict[str, list[float | None]]:
        """Return the points after `since` as columns of equal length: "time", and every series."""
        with self._lock:
            points = [point for point in self._points if point.time > since]
        names = dict.fromkeys(name for point in points for name in point.values)
        columns: dict[str, list[float | None]] = {"time": [point.time for point in points]}
        return columns | {name: [p.values.get(name) for p in points] for name in names}
