"""What cannot be worked out again, written down before it takes effect: an append-only file.

Which shards turned out to be irregular, which images killed a decoder, which weights were asked
for. Every entry holds from a block on, and whoever goes on from any place before that block finds
it there already; so a stream with its journal is as reproducible as one without.

Lines of JSON. The first names the order; a last line without an end is of a process that was
killed, and is dropped. Adding what is known does nothing.
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal

from shards.errors import CursorMismatch, UserError
from shards.records import Cursor, Turn
from shards.stream.mixture import Weights

_FORMAT = 1
_VALUES = {"irregular": "shard", "quarantine": "image", "weights": "weights"}


@dataclass(frozen=True, slots=True)
class Entry:
    """`value`: the row of a shard, the digest of an image, or weights such as "7/10 3/10"."""

    kind: Literal["irregular", "quarantine", "weights"]
    block: int
    value: int | str

    @property
    def known_after(self) -> int:
        """The block that had to be looked at to know this: nobody before it can have written it."""
        return self.block if self.kind == "quarantine" else self.block - 1

    def to_json(self) -> str:
        fields = {"kind": self.kind, "block": self.block, _VALUES[self.kind]: self.value}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str) -> "Entry":
        """What `to_json` gave. Raises ValueError or KeyError for anything else."""
        fields = json.loads(line)
        if "picture" in fields:  # the name of an image in journals of version 0.1
            fields["image"] = fields.pop("picture")
        return cls(fields["kind"], int(fields["block"]), fields[_VALUES[fields["kind"]]])


class Journal:
    """The entries of one order. In memory until `keep_in` names a file.

    One thread adds entries; another one may call `keep_in` meanwhile.
    """

    def __init__(self, manifest: str, order: str, entries: Iterable[Entry] = ()) -> None:
        self._header = {"kind": "journal", "format": _FORMAT, "manifest": manifest, "order": order}
        self._entries: list[Entry] = []
        self._irregular: dict[int, int] = {}
        self._quarantine: dict[str, int] = {}
        self._file: BinaryIO | None = None
        self._writing = threading.Lock()
        for entry in entries:
            self._know(entry)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    @property
    def weights(self) -> list[tuple[int, Weights]]:
        """From which block on which weights hold, blocks rising; empty if none were ever given.

        What was written last holds, whatever was planned before for the blocks behind it.
        """
        parts: list[tuple[int, Weights]] = []
        for entry in self._entries:
            if entry.kind == "weights":
                parts = [part for part in parts if part[0] < entry.block]
                weights = tuple(Fraction(text) for text in str(entry.value).split())
                parts.append((entry.block, weights))
        return parts

    def count(self, block: int, slot: int) -> int:
        """How many entries one knows who is at this place. Depends on nothing that comes later."""
        seen = block if slot else block - 1
        return sum(entry.known_after <= seen for entry in self._entries)

    def check(self, cursor: Cursor) -> None:
        """Raise CursorMismatch if this journal lacks entries that were there at `cursor`."""
        there = self.count(cursor.block, cursor.slot)
        if there < cursor.journal:
            raise CursorMismatch(
                f"the checkpoint knows {cursor.journal} entries of the journal, and {there} are "
                "there; without them other samples would follow: put journal.jsonl back, or remove "
                "this checkpoint to go on from the one before it"
            )

    def amend(self, block: int, turns: list[Turn]) -> list[Turn]:
        """The turns of a block as the entries want them."""
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
        """From `block` on the tar of row `shard` is walked. False if that was known."""
        since = self._irregular.get(shard)
        if since is not None and since <= block:
            return False
        return self._add(Entry("irregular", block, shard))

    def add_quarantine(self, image: str, block: int) -> bool:
        """From `block` on the image with this digest is not decoded. False if that was known."""
        return image not in self._quarantine and self._add(Entry("quarantine", block, image))

    def add_weights(self, weights: Weights, block: int) -> bool:
        """From `block` on these weights hold. False if they do already."""
        before = [part for part in self.weights if part[0] <= block]
        if before and before[-1][1] == weights and before[-1] == self.weights[-1]:
            return False
        return self._add(Entry("weights", block, " ".join(map(str, weights))))

    def _add(self, entry: Entry) -> bool:
        with self._writing:
            if self._file is not None:
                self._append(entry.to_json())
            self._know(entry)
        return True

    def _know(self, entry: Entry) -> None:
        self._entries.append(entry)
        if entry.kind == "irregular":
            since = self._irregular.get(int(entry.value), entry.block)
            self._irregular[int(entry.value)] = min(since, entry.block)
        elif entry.kind == "quarantine":
            self._quarantine.setdefault(str(entry.value), entry.block)

    @classmethod
    def read(cls, path: Path, manifest: str, order: str, *, anew: bool) -> "Journal":
        """The journal at `path`, if there is one; `anew`: one of another order is left aside.

        Raises CursorMismatch for one of another order, or one that is damaged.
        """
        journal = cls(manifest, order)
        lines = _whole_lines(path)
        if not lines or (anew and lines[0] != journal._lines()[0]):
            return journal
        if lines[0] != journal._lines()[0]:
            raise CursorMismatch(
                f"{path} is of other data or another order; put back the one that belongs to the "
                "run, or give a new --out"
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                journal._know(Entry.from_json(line))
            except (ValueError, KeyError, TypeError) as error:
                raise CursorMismatch(
                    f"{path} is damaged in line {number} ({line[:80]!r}); every line but the last "
                    "must be whole: put back a copy, or give a new --out"
                ) from error
        return journal

    @contextmanager
    def keep_in(self, path: Path) -> Iterator[None]:
        """From now on every entry lies on disk before it takes effect. Raises UserError."""
        with self._writing:
            self._file = self._open(path)
        with self._file:
            try:
                yield
            finally:
                self._file = None

    def _open(self, path: Path) -> BinaryIO:
        """A file that ends with all there is."""
        there, lines = _whole_lines(path), self._lines()
        if there[:1] == lines[:1] and there != lines[: len(there)]:
            raise UserError(
                f"{path} was written to by another process since this one started; a run has one "
                "trainer: start the same command again when the other one is done"
            )
        try:
            if there != lines or not path.read_bytes().endswith(b"\n"):
                draft = path.with_name(f".{path.name}.draft")
                draft.write_text("".join(f"{line}\n" for line in lines))
                _flush(draft)
                os.replace(draft, path)
                _flush(path.parent)
            return path.open("ab")
        except OSError as error:
            raise _cannot_write(path, error) from error

    def _append(self, line: str) -> None:
        assert self._file is not None
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(Path(self._file.name), error) from error

    def _lines(self) -> list[str]:
        return [json.dumps(self._header), *(entry.to_json() for entry in self._entries)]


def _whole_lines(path: Path) -> list[str]:
    """The lines that end; what a killed process left behind the last end is none."""
    if not path.exists():
        return []
    return path.read_bytes().decode(errors="replace").split("\n")[:-1]


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"the journal {path} cannot be written ({error}); what it says must be on disk before it "
        "takes effect: make room there, then start the same command again"
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
