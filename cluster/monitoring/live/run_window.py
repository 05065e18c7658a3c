"""Run window: the state of a run and the growth of its counters in the last minute."""

from collections.abc import Mapping
from statistics import median
from typing import Any, Final

from cluster.monitoring.metric_catalogue import MetricCatalogue
from cluster.monitoring.metric_values import series_name

State = Mapping[str, Any]

WINDOW_SECONDS: Final = 60.0


class RunWindow:
    """A state of `/state`, and its last minute; of an ended run, the whole since its last start.

    The history of the state must reach back a minute, or to the beginning.
    """

    def __init__(self, catalogue: MetricCatalogue, state: State) -> None:
        self.catalogue, self.state = catalogue, state
        self.info: Mapping[str, Any] = state["run"] or {}
        self.status: Mapping[str, Any] | None = state["status"]
        self.ended = self.info.get("ended") is not None
        columns = state["history"]
        times = columns["time"]
        since = -1.0 if self.ended else state["now"] - WINDOW_SECONDS
        inside = (index for index, time in enumerate(times) if time >= since)
        self._first = next(inside, len(times) - 1) if times else None
        self._columns = columns
        first = state["now"] if self._first is None else times[self._first]
        self.seconds = max(0.0, (self.info.get("ended") or state["now"]) - first)

    def value(self, name: str, *labels: str) -> float | None:
        """Return the newest value of a series."""
        found: float | None = self.state["values"].get(series_name(self.catalogue[name], labels))
        return found

    def all_series(self, name: str) -> dict[str, float]:
        """Return the newest values of all series of a metric, by series name."""
        exposed = self.catalogue[name].exposed
        values = self.state["values"].items()
        return {key: value for key, value in values if key.partition("{")[0] == exposed}

    def counted(self, name: str, *labels: str) -> float:
        """Return the growth of a counter in the window."""
        return self._growth(series_name(self.catalogue[name], labels))

    def trend(self, name: str) -> tuple[float, float] | None:
        """Return the medians of a gauge in the first and in the last third of the window."""
        column = self._columns.get(self.catalogue[name].exposed, [])[self._first or 0 :]
        known = [one for one in column if one is not None]
        third = len(known) // 3
        if self._first is None or not third:
            return None
        return median(known[:third]), median(known[-third:])

    @property
    def num_steps(self) -> float:
        return self._growth(f"{self.catalogue['step_seconds'].exposed}_count")

    @property
    def step_seconds(self) -> float:
        return self._growth(f"{self.catalogue['step_seconds'].exposed}_sum")

    @property
    def wait_share(self) -> float | None:
        """The share of the time of steps that was spent waiting for images."""
        waited = self.counted("data_wait_seconds")
        return waited / (waited + self.step_seconds) if self.num_steps else None

    def _growth(self, series: str) -> float:
        now: float = self.state["values"].get(series, 0.0)
        column = self._columns.get(series)
        if self._first is None or column is None or self.ended:
            before: float = self.state.get("before", {}).get(series, 0.0)
            return now - before
        return max(0.0, now - (column[self._first] or 0.0))
