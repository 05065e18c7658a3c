"""The numbers as Prometheus reads them. The only file that knows prometheus_client."""

from collections.abc import Callable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cluster.monitoring.http_server import Answer
from cluster.monitoring.metric_catalogue import CATALOGUE, METRICS
from cluster.monitoring.metric_values import Values
from cluster.protocol.metric import PREFIX, PROCESS_PREFIX, Readings


class RunCollector(Collector):
    """Reads `values` whenever somebody scrapes."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """A family for each metric of the catalogue that was measured."""
        numbers, histograms = self._values.snapshot()
        yield from _families(PREFIX, numbers)
        for name, one in histograms.items():
            bounds = [*map(str, one.bounds), "+Inf"]
            found = HistogramMetricFamily(f"{PREFIX}{name}", CATALOGUE[name].help)
            found.add_metric([], list(zip(bounds, one.counts, strict=True)), one.total)
            yield found


class ProcessReadings(Collector):
    """Asks one process for its own readings, whenever somebody scrapes it."""

    def __init__(self, read: Callable[[], Readings]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """A family for each metric that it has a reading of."""
        return _families(PROCESS_PREFIX, self._read())


def _families(prefix: str, readings: Readings) -> Iterator[Metric]:
    """Counters and gauges, in the order of the catalogue."""
    by_name: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for key, value in readings.items():
        by_name.setdefault(key[0], []).append((key[1:], value))
    for metric in METRICS:
        if found := by_name.get(metric.name):
            made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = made(f"{prefix}{metric.name}", metric.help, labels=list(metric.labels))
            for values, value in sorted(found):
                family.add_metric(list(values), value)
            yield family


def registry_of(values: Values) -> CollectorRegistry:
    """A registry of its own: two runs in one process count apart."""
    registry = CollectorRegistry()
    registry.register(RunCollector(values))
    return registry


def process_registry(read: Callable[[], Readings]) -> CollectorRegistry:
    """What a process counted itself, and what it takes of its machine."""
    registry = CollectorRegistry()
    registry.register(ProcessReadings(read))
    for collector in (ProcessCollector, GCCollector, PlatformCollector):
        collector(registry=registry)
    return registry


def metrics_page(registry: CollectorRegistry) -> Answer:
    """What Prometheus scrapes."""
    return Answer(generate_latest(registry), CONTENT_TYPE_LATEST)
