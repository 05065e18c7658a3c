"""Data that is read with no run around it: settings, what is opened, and places that can be kept.

A run keeps its cursor in a checkpoint and its journal in a file. Here both travel together, as a
few lines of JSON that the caller keeps wherever it likes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from shards.crops.chunk_cropper import check_subset
from shards.errors import ConfigError, CursorMismatch
from shards.records import Cursor
from shards.samples.admission_config import AdmissionConfig
from shards.samples.subset import Subset
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stream.batch_stream import build_order
from shards.stream.journal import Journal, JournalEntry
from shards.stream.manifest_listing import open_manifest
from shards.stream.mixture import Weights, parse_weights
from shards.stream.order import Order
from shards.stream.sample_slots import check_cursor
from shards.stream.stream_config import StreamConfig

_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadConfig:
    """What fixes the order and the data, and how it is read.

    With `weights` every pattern is a source of its own. `sources` and `num_readers`, which are
    threads, change nothing but speed.
    """

    seed: int = 0
    stream: StreamConfig = field(default_factory=StreamConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    subset: Subset | None = None
    weights: tuple[str | float, ...] = ()
    sources: SourceConfig = field(default_factory=SourceConfig)
    num_readers: int = 2

    def __post_init__(self) -> None:
        if self.num_readers < 1:
            raise ConfigError(
                f"num_readers={self.num_readers}; they are threads, and at least 1 must read"
            )
        if self.weights:
            parse_weights(self.weights)


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """A place in a stream, and what the shards had taught up to there (see `journal`)."""

    cursor: Cursor
    entries: tuple[JournalEntry, ...] = ()

    def state(self) -> dict[str, Any]:
        """As JSON, for `OpenData.start`. Under 2 kB where shards are regular."""
        journal = [entry.to_json() for entry in self.entries]
        return {"version": _VERSION, "cursor": self.cursor.to_json(), "journal": journal}


class OpenData:
    """The shards of some patterns in their order. Cheap to copy to another process.

    Raises ManifestError, ConfigError, ShardUnreadable.
    """

    def __init__(self, patterns: str | Sequence[str], config: ReadConfig) -> None:
        given = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        if config.weights and len(config.weights) != len(given):
            raise ConfigError(
                f"{len(config.weights)} weights for {len(given)} patterns; each needs one: give as "
                "many numbers, or none to take all shards alike"
            )
        self.config = config
        reader = RangeReader(config.sources)
        self.manifest = open_manifest(given, reader, separate=bool(config.weights))
        if config.subset is not None:
            check_subset(config.subset, self.manifest.shards, reader)

    @property
    def _weights(self) -> list[tuple[int, Weights]]:
        return [(0, parse_weights(self.config.weights))] if self.config.weights else []

    @cached_property
    def order(self) -> Order:
        config = self.config
        subset = config.subset.digest if config.subset else ""
        return build_order(
            self.manifest, config.stream, config.seed, subset=subset, weights=self._weights
        )

    def beginning(self) -> StreamPosition:
        """The place before the first sample."""
        return StreamPosition(Cursor(manifest=self.order.manifest, order=self.order.digest))

    def place(self, state: Mapping[str, Any]) -> StreamPosition:
        """The place that `StreamPosition.state` gave. Raises CursorMismatch."""
        cursor, journal = state.get("cursor"), state.get("journal", [])
        if state.get("version") != _VERSION or not isinstance(cursor, Mapping):
            raise CursorMismatch(
                f"this is no state of a place in a stream, or of another version (it has "
                f"{', '.join(map(str, state))}); give what a batch or a sample came with, as it was"
            )
        try:
            entries = tuple(map(JournalEntry.from_json, journal))
        except (ValueError, KeyError, TypeError) as error:
            raise CursorMismatch(
                f"the journal in this state cannot be read ({type(error).__name__}: {error}); give "
                "the state as it was saved"
            ) from error
        place = StreamPosition(Cursor.from_json(cursor), entries)
        check_cursor(self.order, place.cursor)
        if (there := self.journal(place).weights) and there != self._weights:
            raise CursorMismatch(
                f"the state is of a stream with the weights {_show(there)}, and now they are "
                f"{_show(self._weights)}; read on with the weights that it began with"
            )
        return place

    def journal(self, place: StreamPosition) -> Journal:
        """A journal in memory that knows what was known at `place`."""
        journal = Journal(self.order.manifest, self.order.digest)
        for entry in place.entries:
            if entry.kind == "irregular":
                journal.add_irregular(int(entry.value), entry.block)
            elif entry.kind == "quarantine":
                journal.add_quarantine(str(entry.value), entry.block)
            else:
                journal.add_weights(parse_weights(str(entry.value).split()), entry.block)
        return journal


def _show(weights: list[tuple[int, Weights]]) -> str:
    parts = (f"{' '.join(map(str, shares))} from block {block}" for block, shares in weights)
    return ", ".join(parts) or "none"
