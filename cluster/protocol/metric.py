"""Metric: one row of the catalogue. A reading is named by its key: name, then label values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

PREFIX = "streamssl_"
# Of what single processes serve: no rule that adds up over a run may meet it.
PROCESS_PREFIX = f"{PREFIX}process_"
OTHER = "other"
# Of a label whose values the data or the cluster choose: those beyond are "other".
MAX_OPEN_VALUES = 16

Kind = Literal["counter", "gauge", "histogram"]
Group = Literal["input", "training", "learning", "cluster"]
Key = tuple[str, ...]
"""The name of a metric, without prefix and suffix, and a value for each of its labels."""
Readings = Mapping[Key, float]


@dataclass(frozen=True, slots=True)
class Counted:
    """What a process counted since it started. `source` is never another one's name."""

    source: str
    counts: Readings


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What is measured. `help` is one line for /metrics; `how` says how to read it.

    `labels` gives every label its values; none: the data or the cluster choose them, and only
    the first `MAX_OPEN_VALUES` are kept apart. `buckets` are those of a histogram.
    """

    name: str
    kind: Kind
    group: Group
    help: str
    how: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    @property
    def exposed(self) -> str:
        """The name that Prometheus knows."""
        return f"{PREFIX}{self.name}" + ("_total" if self.kind == "counter" else "")

    @property
    def exposed_names(self) -> tuple[str, ...]:
        """All names of series of it."""
        if self.kind != "histogram":
            return (self.exposed,)
        return tuple(f"{self.exposed}_{part}" for part in ("bucket", "sum", "count"))

    @property
    def is_closed(self) -> bool:
        """Whether all series of it are known before anything was measured."""
        return all(self.labels.values())

    def all_keys(self) -> list[Key]:
        """The keys of a closed metric."""
        return [(self.name, *values) for values in product(*self.labels.values())]
