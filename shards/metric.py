"""Metric: one row of the metric catalogue. A reading is named by its key: name, then label values.

Every plane declares its own rows; `streamssl` puts them together. Labels have few values that are
known in advance: no label holds a sample key, a shard or an actor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

PREFIX = "streamssl_"
# Label value that stands for all values beyond the allowed ones.
OTHER = "other"
# Bound on the values of an open label, whose values the data or the cluster choose.
MAX_OPEN_VALUES = 16

MetricKind = Literal["counter", "gauge", "histogram"]
Key = tuple[str, ...]
"""The name of a metric, without prefix and suffix, and a value for each of its labels."""
Readings = Mapping[Key, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. `help` is its line in /metrics; `how` says how to read the number.

    `group` is the section of docs/metrics.md. `labels` maps each label to its values; a label
    without values is open: only its first `MAX_OPEN_VALUES` values are kept apart. `buckets` are
    the bounds of a histogram. If `charted`, /state keeps the history of the metric. A gauge that
    is not finite is exposed if it `shows_nan`, otherwise it is absent.
    """

    name: str
    kind: MetricKind
    group: str
    help: str
    how: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    charted: bool = False
    shows_nan: bool = False

    @property
    def exposed(self) -> str:
        """The name on /metrics."""
        return f"{PREFIX}{self.name}" + ("_total" if self.kind == "counter" else "")

    @property
    def exposed_names(self) -> tuple[str, ...]:
        """The names of all series of the metric."""
        if self.kind != "histogram":
            return (self.exposed,)
        return tuple(f"{self.exposed}_{part}" for part in ("bucket", "sum", "count"))

    @property
    def is_closed(self) -> bool:
        """True if all series are known before anything is measured."""
        return all(self.labels.values())

    def all_keys(self) -> list[Key]:
        """Return the keys of a closed metric."""
        return [(self.name, *values) for values in product(*self.labels.values())]


@dataclass(frozen=True, slots=True)
class MetricGroup:
    """Makes the rows of one group."""

    group: str

    def counter(self, name: str, help: str, how: str, /, **labels: tuple[str, ...]) -> Metric:
        """Return a counter."""
        return Metric(
            name=name, kind="counter", group=self.group, help=help, how=how, labels=labels
        )

    def gauge(self, name: str, help: str, how: str, /, **labels: tuple[str, ...]) -> Metric:
        """Return a gauge."""
        return Metric(name=name, kind="gauge", group=self.group, help=help, how=how, labels=labels)


def charted(metrics: tuple[Metric, ...], names: str) -> tuple[Metric, ...]:
    """Return the rows with `charted` set for the metrics in `names`, which spaces separate."""
    wanted = set(names.split())
    unknown = wanted - {metric.name for metric in metrics}
    assert not unknown, f"no metrics: {unknown}"
    return tuple(replace(metric, charted=metric.name in wanted) for metric in metrics)
