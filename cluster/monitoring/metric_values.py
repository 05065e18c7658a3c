"""Values: the numbers of a run by key. Counters only rise, whoever comes and goes.

Processes say how much they counted since they started, each under a name that is never used again;
what is new in that is added. So a total neither falls nor counts anything twice when a reader, a
trainer or Control dies and another one takes its place.
"""

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.monitoring.metric_catalogue import CATALOGUE, METRICS
from cluster.protocol.metric import MAX_OPEN_VALUES, OTHER, Counted, Key, Metric, Readings

# Names of processes that said nothing for so many others are forgotten.
_MAX_SOURCES = 20_000


@dataclass(slots=True)
class Histogram:
    """How many observations were at most as large as each bound; the last one is all of them."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    def observe(self, value: float) -> None:
        self.total += value
        for index, bound in enumerate((*self.bounds, math.inf)):
            self.counts[index] += value <= bound


class Values:
    """All numbers of one run. Any thread may call; keys are bounded by the catalogue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[Key, float] = {
            key: 0.0
            for metric in METRICS
            if metric.kind == "counter" and metric.is_closed
            for key in metric.all_keys()
        }
        self._histograms = {
            metric.name: Histogram(metric.buckets, [0] * (len(metric.buckets) + 1))
            for metric in METRICS
            if metric.kind == "histogram"
        }
        self._heard: dict[str, dict[Key, float]] = {}
        self._open: dict[tuple[str, int], set[str]] = {}

    def count(self, key: Key, amount: float) -> None:
        """Add to a counter."""
        with self._lock:
            self._count(key, amount)

    def take(self, counted: Counted) -> None:
        """Add what is new since this source said something last."""
        with self._lock:
            heard = self._heard.pop(counted.source, {})
            for key, value in counted.counts.items():
                before = heard.get(key)
                if before is None or value > before:  # a word that was overtaken says less
                    self._count(key, value - (before or 0.0))
                    heard[key] = value
            self._heard[counted.source] = heard
            if len(self._heard) > _MAX_SOURCES:
                del self._heard[next(iter(self._heard))]

    def take_all(self, source: str, readings: Readings) -> None:
        """Counters of this source, and gauges."""
        kinds = {key: CATALOGUE[key[0]].kind for key in readings}
        counts = {key: value for key, value in readings.items() if kinds[key] == "counter"}
        self.take(Counted(source, counts))
        self.set({key: value for key, value in readings.items() if kinds[key] == "gauge"})

    def set(self, readings: Readings) -> None:
        """Set gauges. What is no number takes the gauge away."""
        with self._lock:
            for key, value in readings.items():
                key = self._bounded(key)
                if math.isfinite(value):
                    self._numbers[key] = float(value)
                else:
                    self._numbers.pop(key, None)

    def remove(self, keys: Iterable[Key]) -> None:
        """Take gauges away: they are not measured any more."""
        with self._lock:
            for key in keys:
                self._numbers.pop(self._bounded(key), None)

    def observe(self, name: str, value: float) -> None:
        """Put an observation into a histogram."""
        with self._lock:
            self._histograms[name].observe(value)

    def get(self, key: Key) -> float | None:
        """A number; None where it was never measured."""
        with self._lock:
            return self._numbers.get(key)

    def snapshot(self) -> tuple[dict[Key, float], dict[str, Histogram]]:
        """Copies of all numbers and all histograms, of one moment."""
        with self._lock:
            copies = {
                name: Histogram(one.bounds, list(one.counts), one.total)
                for name, one in self._histograms.items()
            }
            return dict(self._numbers), copies

    def _count(self, key: Key, amount: float) -> None:
        key = self._bounded(key)
        self._numbers[key] = self._numbers.get(key, 0.0) + amount

    def _bounded(self, key: Key) -> Key:
        """The key, with "other" in the place of label values that are not in the catalogue."""
        metric = CATALOGUE[key[0]]
        pairs = zip(metric.labels.items(), key[1:], strict=False)
        values = (
            value if value in allowed else self._of_open(metric, index, allowed, value)
            for index, ((_, allowed), value) in enumerate(pairs)
        )
        return (metric.name, *values)

    def _of_open(self, metric: Metric, index: int, allowed: tuple[str, ...], value: str) -> str:
        if allowed:
            return OTHER
        seen = self._open.setdefault((metric.name, index), set())
        if value not in seen and len(seen) >= MAX_OPEN_VALUES:
            return OTHER
        seen.add(value)
        return value


def flat(numbers: Mapping[Key, float], histograms: Mapping[str, Histogram]) -> dict[str, float]:
    """The numbers by the name of their series on /metrics; of histograms sum and count."""
    found = {series(CATALOGUE[key[0]], key[1:]): value for key, value in numbers.items()}
    for name, one in histograms.items():
        exposed = CATALOGUE[name].exposed
        found |= {f"{exposed}_sum": one.total, f"{exposed}_count": float(one.counts[-1])}
    return found


def series(metric: Metric, values: tuple[str, ...]) -> str:
    """A line of /metrics without its number."""
    found = sorted(zip(metric.labels, values, strict=True))  # as /metrics has them
    pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in found)
    return f"{metric.exposed}{{{pairs}}}" if pairs else metric.exposed


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
