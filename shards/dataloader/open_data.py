"""Data that is read without a run: settings, opened shards, and positions that can be saved.

A run keeps its cursor in a checkpoint and its journal in a file. Here both are one JSON value that
the caller saves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from shards.crops.chunk_cropper import check_subset
from shards.errors import ConfigError, CursorMismatch
from shards.member_names import Keys
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
    """Settings that determine the data and its order, and how it is read.

    With `weights` every pattern is one source. `sources` and `num_readers` (threads) only affect
    speed.
    """

    seed: int = 0
    stream: StreamConfig = field(default_factory=StreamConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    subset: Subset | None = None
    weights: tuple[str | float, ...] = ()
    keys: Keys = "auto"
    sources: SourceConfig = field(default_factory=SourceConfig)
    num_readers: int = 2

    def __post_init__(self) -> None:
        if self.num_readers < 1:
            raise ConfigError(f"num_readers={self.num_readers}; it must be at least 1; raise it")
        if self.weights:
            parse_weights(self.weights)


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """A position in a stream, and the journal entries that are known there."""

    cursor: Cursor
    entries: tuple[JournalEntry, ...] = ()

    def state(self) -> dict[str, Any]:
        """Return JSON values for `OpenData.position`. Under 2 kB if shards are regular."""
        journal = [entry.to_json() for entry in self.entries]
        return {"version": _VERSION, "cursor": self.cursor.to_json(), "journal": journal}


class OpenData:
    """The shards of some patterns in their order. Cheap to pickle.

    Raises ManifestError, ConfigError, ShardUnreadable.
    """

    def __init__(self, patterns: str | Sequence[str], config: ReadConfig) -> None:
        given = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        if config.weights and len(config.weights) != len(given):
            raise ConfigError(
                f"{len(config.weights)} weights for {len(given)} patterns; each pattern needs one: "
                "give as many weights, or none to read all shards as one source"
            )
        self.config = config
        reader = RangeReader(config.sources)
        self.manifest = open_manifest(
            given, reader, separate=bool(config.weights), keys=config.keys
        )
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
        """Return the position before the first sample."""
        return StreamPosition(Cursor(manifest=self.order.manifest, order=self.order.digest))

    def position(self, state: Mapping[str, Any]) -> StreamPosition:
        """Restore a position from `StreamPosition.state`. Raises CursorMismatch."""
        cursor, journal = state.get("cursor"), state.get("journal", [])
        if state.get("version") != _VERSION or not isinstance(cursor, Mapping):
            raise CursorMismatch(
                f"the state has the fields {', '.join(map(str, state))}, not those of a stream "
                "position of this version; give the unchanged state of a batch or a sample"
            )
        try:
            entries = tuple(map(JournalEntry.from_json, journal))
        except (ValueError, KeyError, TypeError) as error:
            raise CursorMismatch(
                f"the journal in this state cannot be read ({type(error).__name__}: {error}); give "
                "the unchanged state of a batch or a sample"
            ) from error
        position = StreamPosition(Cursor.from_json(cursor), entries)
        check_cursor(self.order, position.cursor)
        if (saved := self.journal(position).weights) and saved != self._weights:
            raise CursorMismatch(
                f"the state belongs to a stream with the weights {_show(saved)}, but now they are "
                f"{_show(self._weights)}; give the weights of that stream"
            )
        return position

    def journal(self, position: StreamPosition) -> Journal:
        """Return a journal in memory with the entries known at `position`."""
        journal = Journal(self.order.manifest, self.order.digest)
        for entry in position.entries:
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
