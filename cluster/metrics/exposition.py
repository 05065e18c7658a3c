"""The numbers as Prometheus reads them. The only file that knows prometheus_client."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cluster.metrics.catalogue import METRICS
from cluster.metrics.metric import PREFIX
from cluster.metrics.server import Answer
from cluster.metrics.values import Values


class RunCollector(Collector):
    """Reads `values` whenever somebody scrapes."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """A family for each metric of the catalogue that was measured."""
        numbers, histograms = self._values.snapshot()
        by_name: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for key, value in numbers.items():
            by_name.setdefault(key[0], []).append((key[1:], value))
        for metric in METRICS:
            name, labels = f"{PREFIX}{metric.name}", list(metric.labels)
            if metric.kind == "histogram":
                one = histograms[metric.name]
                bounds = [*map(str, one.bounds), "+Inf"]
                found = HistogramMetricFamily(name, metric.help, labels=labels)
                found.add_metric([], list(zip(bounds, one.counts, strict=True)), one.total)
                yield found
                continue
            made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = made(name, metric.help, labels=labels)
            for values, value in sorted(by_name.get(metric.name, [])):
                family.add_metric(list(values), value)
            if family.samples:
                yield family


def registry_of(values: Values) -> CollectorRegistry:
    """A registry of its own: two runs in one process count apart."""
    registry = CollectorRegistry()
    registry.register(RunCollector(values))
    return registry


def metrics_page(registry: CollectorRegistry) -> Answer:
    """What Prometheus scrapes."""
    return Answer(generate_latest(registry), CONTENT_TYPE_LATEST)
