"""Values of the metrics of a run by key. Counters only rise, even when processes are replaced.

A process reports its counters since it started, under a name that is never used again; the
increase since its last report is added. So a total neither falls nor counts anything twice when a
reader, a trainer or Control dies and another one takes its place.
"""

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.monitoring.metric_catalogue import MetricCatalogue
from cluster.protocol.process_counts import ProcessCounts
from shards.metric import MAX_OPEN_VALUES, OTHER, Key, Metric, Readings

# A source is forgotten when this many others have reported after it.
_MAX_SOURCES = 20_000


@dataclass(slots=True)
class MetricHistogram:
    """Observations up to each bound, cumulative; the last count is the count of all."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    def observe(self, value: float) -> None:
        self.total += value
        for index, bound in enumerate((*self.bounds, math.inf)):
            self.counts[index] += value <= bound


@dataclass(frozen=True, slots=True)
class MetricTotals:
    """Numbers that only rise: counters by key, and histograms by name."""

    counters: Mapping[Key, float]
    histograms: Mapping[str, MetricHistogram]


class MetricValues:
    """Numbers of one run. Thread-safe; the catalogue bounds the keys."""

    def __init__(self, catalogue: MetricCatalogue) -> None:
        self.catalogue = catalogue
        self._lock = threading.Lock()
        self._numbers: dict[Key, float] = {
            key: 0.0
            for metric in catalogue.values()
            if metric.kind == "counter" and metric.is_closed
            for key in metric.all_keys()
        }
        self._histograms = {
            metric.name: MetricHistogram(metric.buckets, [0] * (len(metric.buckets) + 1))
            for metric in catalogue.values()
            if metric.kind == "histogram"
        }
        self._reported: dict[str, dict[Key, float]] = {}
        self._open: dict[tuple[str, int], set[str]] = {}

    def count(self, key: Key, amount: float) -> None:
        """Add to a counter."""
        with self._lock:
            self._count(key, amount)

    def take(self, counted: ProcessCounts) -> None:
        """Add the increase since the last report of this source."""
        with self._lock:
            reported = self._reported.pop(counted.source, {})
            for key, value in counted.counts.items():
                before = reported.get(key)
                if before is None or value > before:  # a report that was overtaken is smaller
                    self._count(key, value - (before or 0.0))
                    reported[key] = value
            self._reported[counted.source] = reported
            if len(self._reported) > _MAX_SOURCES:
                del self._reported[next(iter(self._reported))]

    def take_all(self, source: str, readings: Readings) -> None:
        """Take counters of this source, and gauges."""
        kinds = {key: self.catalogue[key[0]].kind for key in readings}
        counts = {key: value for key, value in readings.items() if kinds[key] == "counter"}
        self.take(ProcessCounts(source, counts))
        self.set({key: value for key, value in readings.items() if kinds[key] == "gauge"})

    def set(self, readings: Readings) -> None:
        """Set gauges. A value that is not finite removes the gauge, unless it `shows_nan`."""
        with self._lock:
            for key, value in readings.items():
                key = self._bounded(key)
                if math.isfinite(value) or self.catalogue[key[0]].shows_nan:
                    self._numbers[key] = float(value)
                else:
                    self._numbers.pop(key, None)

    def remove(self, keys: Iterable[Key]) -> None:
        """Remove gauges that are no longer measured."""
        with self._lock:
            for key in keys:
                self._numbers.pop(self._bounded(key), None)

    def observe(self, name: str, value: float) -> None:
        """Add an observation to a histogram."""
        with self._lock:
            self._histograms[name].observe(value)

    def get(self, key: Key) -> float | None:
        """Return a number, or None if it was never measured."""
        with self._lock:
            return self._numbers.get(key)

    def snapshot(self) -> tuple[dict[Key, float], dict[str, MetricHistogram]]:
        """Return consistent copies of all numbers and all histograms."""
        with self._lock:
            copies = {
                name: MetricHistogram(one.bounds, list(one.counts), one.total)
                for name, one in self._histograms.items()
            }
            return dict(self._numbers), copies

    def totals(self) -> MetricTotals:
        """Return consistent copies of the counters and the histograms."""
        numbers, histograms = self.snapshot()
        kinds = {name: metric.kind for name, metric in self.catalogue.items()}
        counters = {key: value for key, value in numbers.items() if kinds[key[0]] == "counter"}
        return MetricTotals(counters, histograms)

    def add(self, totals: MetricTotals) -> None:
        """Add totals of earlier starts. Metrics that this version does not have are left out."""
        with self._lock:
            for key, value in totals.counters.items():
                metric = self.catalogue.get(key[0])
                if metric and metric.kind == "counter" and len(key) == 1 + len(metric.labels):
                    self._count(key, value)
            for name, one in totals.histograms.items():
                mine = self._histograms.get(name)
                if mine is not None and mine.bounds == one.bounds:
                    mine.total += one.total
                    both = zip(mine.counts, one.counts, strict=True)
                    mine.counts[:] = [now + before for now, before in both]

    def by_series(self) -> dict[str, float]:
        """Return the finite numbers by series name on /metrics; of histograms sum and count."""
        numbers, histograms = self.snapshot()
        found = {
            series_name(self.catalogue[key[0]], key[1:]): value
            for key, value in numbers.items()
            if math.isfinite(value)
        }
        for name, one in histograms.items():
            exposed = self.catalogue[name].exposed
            found |= {f"{exposed}_sum": one.total, f"{exposed}_count": float(one.counts[-1])}
        return found

    def _count(self, key: Key, amount: float) -> None:
        key = self._bounded(key)
        self._numbers[key] = self._numbers.get(key, 0.0) + amount

    def _bounded(self, key: Key) -> Key:
        """Return the key, with "other" for label values that are not in the catalogue."""
        metric = self.catalogue[key[0]]
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


def series_name(metric: Metric, values: tuple[str, ...]) -> str:
    """Return a line of /metrics without its number."""
    found = sorted(zip(metric.labels, values, strict=True))  # as /metrics sorts them
    pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in found)
    return f"{metric.exposed}{{{pairs}}}" if pairs else metric.exposed


def charted_series(catalogue: MetricCatalogue, values: Mapping[str, float]) -> dict[str, float]:
    """Return those of the values, by series, whose history is kept."""
    names = {
        name
        for metric in catalogue.values()
        if metric.charted
        for name in metric.exposed_names
        if not name.endswith("_bucket")
    }
    return {name: value for name, value in values.items() if name.partition("{")[0] in names}


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
