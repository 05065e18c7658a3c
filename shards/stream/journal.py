"""Journal: an append-only file of facts about the stream that cannot be computed again.

It records irregular shards, images that crashed a decoder, and the weights of sources. Each entry
takes effect from a block on. A resume from any position before that block finds the entry in the
file, so a stream with its journal is as reproducible as one without discoveries.

The format is lines of JSON. The first line names the order. A last line without a newline comes
from a killed process and is dropped. Adding a known fact does nothing.
"""

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from shards.access import raise_denied
from shards.errors import CursorMismatch, UserError
from shards.file_systems import cannot_write
from shards.files import DurableLines, read_whole_lines, write_atomic
from shards.records import Cursor, Turn
from shards.stream.mixture import Weights

_FORMAT = 1
_WEIGHTS = re.compile(r"\d+(/[1-9]\d*)?( \d+(/[1-9]\d*)?)*", re.ASCII)
_VALUES = {"irregular": "shard", "quarantine": "image", "weights": "weights"}


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One fact; `value` is the row of a shard, an image digest, or weights like "7/10 3/10"."""

    kind: Literal["irregular", "quarantine", "weights"]
    block: int
    value: int | str

    @property
    def known_after(self) -> int:
        """The block that reveals this fact: no run can write the entry before it."""
        return self.block if self.kind == "quarantine" else self.block - 1

    def to_json(self) -> str:
        fields = {"kind": self.kind, "block": self.block, _VALUES[self.kind]: self.value}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str) -> "JournalEntry":
        """Parse a line of `to_json`. Raises ValueError, KeyError or TypeError for other text."""
        fields = json.loads(line)
        if "picture" in fields:  # the name of an image in journals of version 0.1
            fields["image"] = fields.pop("picture")
        value = fields[_VALUES[fields["kind"]]]
        if fields["kind"] == "weights" and not _WEIGHTS.fullmatch(value):
            raise ValueError(f"{value!r} are no weights")
        return cls(fields["kind"], int(fields["block"]), value)


class Journal:
    """The entries of one order, kept in memory until `keep_in` names a file.

    One thread adds entries; another thread may call `keep_in` at the same time.
    """

    def __init__(self, manifest: str, order: str, entries: Iterable[JournalEntry] = ()) -> None:
        self._header = {"kind": "journal", "format": _FORMAT, "manifest": manifest, "order": order}
        self._entries: list[JournalEntry] = []
        self._irregular: dict[int, int] = {}
        self._quarantine: dict[str, int] = {}
        self._path = Path()
        self._file: DurableLines | None = None
        self._writing = threading.Lock()
        for entry in entries:
            self._remember(entry)

    @property
    def entries(self) -> tuple[JournalEntry, ...]:
        return tuple(self._entries)

    @property
    def weights(self) -> list[tuple[int, Weights]]:
        """Pairs (first block, weights) in rising order of blocks; empty if none were given.

        A later entry replaces all that was planned for its block and the blocks after it.
        """
        parts: list[tuple[int, Weights]] = []
        for entry in self._entries:
            if entry.kind == "weights":
                parts = [part for part in parts if part[0] < entry.block]
                weights = tuple(Fraction(text) for text in str(entry.value).split())
                parts.append((entry.block, weights))
        return parts

    def count(self, block: int, slot: int) -> int:
        """Return how many entries are known at a position, whatever was found after it."""
        seen = block if slot else block - 1
        return sum(entry.known_after <= seen for entry in self._entries)

    def check(self, cursor: Cursor) -> None:
        """Raise CursorMismatch if this journal lacks entries that were known at `cursor`."""
        found = self.count(cursor.block, cursor.slot)
        if found < cursor.journal:
            raise CursorMismatch(
                f"the checkpoint knows {cursor.journal} entries of the journal, which has {found}; "
                "without them the order of samples would change: put journal.jsonl back, or remove "
                "this checkpoint to resume from the one before it"
            )

    def amend(self, block: int, turns: list[Turn]) -> list[Turn]:
        """Return the turns of a block with walked shards and quarantined images marked."""
        if not (self._irregular or self._quarantine):
            return turns
        images = frozenset(d for d, since in self._quarantine.items() if since <= block)
        return [self._amend(turn, block, images) for turn in turns]

    def _amend(self, turn: Turn, block: int, images: frozenset[str]) -> Turn:
        since = self._irregular.get(turn.chunk.shard)
        walked = since is not None and since <= block
        chunk = replace(turn.chunk, walked=True) if walked else turn.chunk
        return Turn(chunk, turn.epoch, images)

    def add_irregular(self, shard: int, block: int) -> bool:
        """Walk the tar of row `shard` from `block` on. Returns False if that was known."""
        since = self._irregular.get(shard)
        if since is not None and since <= block:
            return False
        return self._add(JournalEntry("irregular", block, shard))

    def add_quarantine(self, image: str, block: int) -> bool:
        """Do not decode the image of this digest from `block` on. Returns False if known."""
        if image in self._quarantine:
            return False
        return self._add(JournalEntry("quarantine", block, image))

    def add_weights(self, weights: Weights, block: int) -> bool:
        """Set the weights from `block` on. Returns False if they are in effect already."""
        before = [part for part in self.weights if part[0] <= block]
        if before and before[-1][1] == weights and before[-1] == self.weights[-1]:
            return False
        return self._add(JournalEntry("weights", block, " ".join(map(str, weights))))

    def _add(self, entry: JournalEntry) -> bool:
        with self._writing:
            if self._file is not None:
                try:
                    self._file.append(entry.to_json().encode())
                except OSError as error:
                    raise cannot_write(error, self._path) from error
            self._remember(entry)
        return True

    def _remember(self, entry: JournalEntry) -> None:
        self._entries.append(entry)
        if entry.kind == "irregular":
            since = self._irregular.get(int(entry.value), entry.block)
            self._irregular[int(entry.value)] = min(since, entry.block)
        elif entry.kind == "quarantine":
            self._quarantine.setdefault(str(entry.value), entry.block)

    @classmethod
    def read(cls, path: Path, manifest: str, order: str, *, replace_other: bool) -> "Journal":
        """Read the journal at `path`; a missing file gives an empty journal.

        If `replace_other`, a journal of another order counts as missing. Raises CursorMismatch for
        a journal of another order, or a damaged one.
        """
        journal = cls(manifest, order)
        lines, header = _read_lines(path), journal._lines()[0]
        if not lines or (replace_other and lines[0] != header):
            return journal
        if lines[0] != header:
            raise CursorMismatch(
                f"{path} belongs to other data or another order; put back the journal of this run, "
                "or give a new --out"
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                journal._remember(JournalEntry.from_json(line))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise CursorMismatch(
                    f"{path} is damaged in line {number} ({line[:80]!r}); every line but the last "
                    "must be whole: put back a copy, or give a new --out"
                ) from error
        return journal

    @contextmanager
    def keep_in(self, path: Path) -> Iterator[None]:
        """Keep the entries in a file: each is on disk before it takes effect. Raises UserError."""
        with self._writing:
            self._path, self._file = path, self._open(path)
        try:
            yield
        finally:
            with self._writing:
                self._file.close()
                self._file = None

    def restore(self) -> None:
        """Write the file again if it was removed while it was open, but its folder is there.

        Raises UserError.
        """
        with self._writing:
            if self._file is not None and self._file.is_lost and self._path.parent.is_dir():
                removed, self._file = self._file, self._open(self._path)
                removed.close()

    def _open(self, path: Path) -> DurableLines:
        """Write all entries to `path`, and open it for appending."""
        found, lines = _read_lines(path), self._lines()
        if found[:1] == lines[:1] and found != lines[: len(found)]:
            raise UserError(
                f"{path} was written by another process after this one started; a run has one "
                "trainer: start the same command again when the other process has ended"
            )
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            if not path.exists() or path.read_bytes() != content:
                write_atomic(path, content, durable=True)
            return DurableLines(path.open("ab", buffering=0), path)
        except OSError as error:
            raise cannot_write(error, path) from error

    def _lines(self) -> list[str]:
        return [json.dumps(self._header), *(entry.to_json() for entry in self._entries)]


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.decode(errors="replace") for line in read_whole_lines(path)]
    except OSError as error:
        raise_denied(error, path)
        raise CursorMismatch(
            f"{path} cannot be read ({error.strerror}); the order of samples depends on it: put "
            "back a copy, or give a new --out"
        ) from error
