"""Exposition: the numbers in the format of Prometheus. Only this file imports prometheus_client."""

from collections.abc import Callable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client import core as families
from prometheus_client.registry import Collector

from cluster.monitoring.http_server import HttpResponse
from cluster.monitoring.metric_catalogue import MetricCatalogue
from cluster.monitoring.metric_values import MetricValues
from cluster.protocol.process_counts import PROCESS_PREFIX
from shards.metric import PREFIX, Readings


class RunCollector(Collector):
    """Collects the values of a run at each scrape."""

    def __init__(self, values: MetricValues) -> None:
        self._values = values

    def collect(self) -> Iterator[families.Metric]:
        """Yield a family for each metric of the catalogue that was measured."""
        numbers, histograms = self._values.snapshot()
        catalogue = self._values.catalogue
        yield from _families(PREFIX, catalogue, numbers)
        for name, one in histograms.items():
            bounds = [*map(str, one.bounds), "+Inf"]
            found = families.HistogramMetricFamily(f"{PREFIX}{name}", catalogue[name].help)
            found.add_metric([], list(zip(bounds, one.counts, strict=True)), one.total)
            yield found


class ReadingsCollector(Collector):
    """Collects the readings of one process at each scrape."""

    def __init__(self, catalogue: MetricCatalogue, read: Callable[[], Readings]) -> None:
        self._catalogue, self._read = catalogue, read

    def collect(self) -> Iterator[families.Metric]:
        """Yield a family for each metric with a reading."""
        return _families(PROCESS_PREFIX, self._catalogue, self._read())


def _families(
    prefix: str, catalogue: MetricCatalogue, readings: Readings
) -> Iterator[families.Metric]:
    """Yield counters and gauges in the order of the catalogue."""
    by_name: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for key, value in readings.items():
        by_name.setdefault(key[0], []).append((key[1:], value))
    for metric in catalogue.values():
        if found := by_name.get(metric.name):
            is_counter = metric.kind == "counter"
            made = families.CounterMetricFamily if is_counter else families.GaugeMetricFamily
            family = made(f"{prefix}{metric.name}", metric.help, labels=list(metric.labels))
            for values, value in sorted(found):
                family.add_metric(list(values), value)
            yield family


def run_registry(values: MetricValues) -> CollectorRegistry:
    """Return a registry of its own: two runs in one process count separately."""
    registry = CollectorRegistry()
    registry.register(RunCollector(values))
    return registry


def process_registry(catalogue: MetricCatalogue, read: Callable[[], Readings]) -> CollectorRegistry:
    """Return a registry of the readings of a process and of its use of the machine."""
    registry = CollectorRegistry()
    registry.register(ReadingsCollector(catalogue, read))
    for collector in (ProcessCollector, GCCollector, PlatformCollector):
        collector(registry=registry)
    return registry


def metrics_response(registry: CollectorRegistry) -> HttpResponse:
    """Return the body of /metrics."""
    return HttpResponse(generate_latest(registry), CONTENT_TYPE_LATEST)
