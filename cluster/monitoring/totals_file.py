"""Totals file: the counters of a run over all its starts, in its folder.

A number that /metrics has shown is never taken back: the file is written before /metrics is
answered, once a second, before each checkpoint, and at the end. It is not flushed to disk, so the
last seconds may be lost with the machine, not with the process.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from cluster.monitoring.metric_values import MetricHistogram, MetricTotals, MetricValues
from shards.access import raise_denied
from shards.file_systems import explain_storage
from shards.files import write_atomic
from shards.metric import Key
from shards.validation import explain_invalid

_VERSION: Final = 1
_MAX_COUNT: Final = 1 << 53  # a float holds every number up to it
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
_Count = Annotated[int, Field(ge=0, le=_MAX_COUNT, strict=True)]
_Named = Annotated[Key, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class SavedHistogram:
    """A histogram as the file has it."""

    bounds: tuple[_Amount, ...]
    counts: tuple[_Count, ...]
    total: _Amount


@dataclass(frozen=True, slots=True)
class SavedTotals:
    """The content of the file: counters by key, and histograms by name."""

    version: int
    counters: tuple[tuple[_Named, _Amount], ...]
    histograms: dict[str, SavedHistogram]


class TotalsFile:
    """The file at `path`, written from `values` while `may_write` returns True.

    `tell` gets a sentence, once, if it cannot be written: a run goes on without it.
    """

    def __init__(
        self,
        path: Path,
        values: MetricValues,
        may_write: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._path, self._values = path, values
        self._may_write, self._tell = may_write, tell
        self._lock = threading.Lock()
        self._is_told = False

    def save(self) -> None:
        """Replace the file by the totals of this moment."""
        with self._lock:
            if not self._may_write():
                return
            found = self._values.totals()
            saved = SavedTotals(
                _VERSION,
                tuple(pair for pair in found.counters.items() if isfinite(pair[1])),
                {
                    name: SavedHistogram(one.bounds, tuple(one.counts), one.total)
                    for name, one in found.histograms.items()
                },
            )
            try:
                write_atomic(self._path, json.dumps(asdict(saved)))
            except OSError as error:
                self._tell_once(error)

    def _tell_once(self, error: OSError) -> None:
        if not self._is_told:
            self._is_told = True
            self._tell(
                f"warning: {self._path} cannot be written: {explain_storage(error, self._path)}; "
                "the run goes on, but the totals of /metrics will begin before this moment when it "
                "is started again"
            )


def read_totals(path: Path) -> MetricTotals | None:
    """Return the totals of earlier starts; None if there are none. Raises ValueError if damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise_denied(error, path)
        raise ValueError(str(error)) from error
    try:
        saved = TypeAdapter(SavedTotals).validate_json(content)
    except ValidationError as error:
        raise ValueError(explain_invalid(error)) from error
    if saved.version != _VERSION:
        raise ValueError(f"version {saved.version}, and this program reads {_VERSION}")
    return MetricTotals(dict(saved.counters), _histograms(saved.histograms))


def _histograms(saved: Mapping[str, SavedHistogram]) -> dict[str, MetricHistogram]:
    for name, one in saved.items():
        if len(one.counts) != len(one.bounds) + 1 or list(one.counts) != sorted(one.counts):
            raise ValueError(f"histograms.{name}: its counts do not fit its bounds")
    return {
        name: MetricHistogram(one.bounds, list(one.counts), one.total)
        for name, one in saved.items()
    }
