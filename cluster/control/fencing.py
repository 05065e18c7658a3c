"""A journal that only the newest Control can write to: the term it opens fences off all others.

A folder of files `term-<n>.jsonl`, one for every term. A term is opened by creating its file, which
only one can do, so there is at most one Control of a term. Whoever sees a file of a higher term is
fenced: what it wanted to write was not decided. Lines of JSON; a last line without an end is of a
process that was killed, and is dropped.

The first line of a file says how much of the files before it counts. So what a fenced process
writes after that is there for nobody, and all who ever read see the same entries.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import StreamSSLError, UserError

_FILE = re.compile(r"term-(\d+)\.jsonl")
_SEAL = "counts"  # the key of the first line: how many lines of every older file count


class Fenced(StreamSSLError):
    """There is a newer Control; this one must not decide anything any more."""


class TermJournal:
    """The journal of a run, as one term may write it. Use as a context."""

    def __init__(self, folder: Path, term: int, file: BinaryIO) -> None:
        self.term = term
        self._folder, self._file = folder, file
        self._calls = {call for entry in self.read() if (call := entry.get("call")) is not None}

    @classmethod
    def open(cls, folder: Path) -> "TermJournal":
        """The journal in a new term, higher than all that were there. Raises UserError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                term = newest_term(folder) + 1
                path = folder / f"term-{term}.jsonl"
                try:
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                except FileExistsError:
                    continue  # somebody else has that term
                _flush(folder)
                return cls._begun(folder, term, os.fdopen(descriptor, "wb", buffering=0))
        except OSError as error:
            raise _cannot_write(folder, error) from error

    @classmethod
    def _begun(cls, folder: Path, term: int, file: BinaryIO) -> "TermJournal":
        with ExitStack() as undo:
            undo.enter_context(file)
            journal = cls(folder, term, file)
            sealed = {str(n): size for n, size in _extents(folder).items() if n < term}
            journal._write({_SEAL: sealed})
            undo.pop_all()
        return journal

    def append(self, entry: Mapping[str, Any], call: str | None = None) -> bool:
        """Write an entry down, to disk. False if one of the same `call` is there already.

        Raises Fenced if there is a higher term, and UserError if it cannot be written.
        """
        if call is not None and call in self._calls:
            return False
        self.check()
        self._write(dict(entry) if call is None else {**entry, "call": call})
        self.check()  # a term that began meanwhile may not have read it
        if call is not None:
            self._calls.add(call)
        return True

    def _write(self, fields: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(fields).encode() + b"\n")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self._folder, error) from error

    def check(self) -> None:
        """Raise Fenced if there is a higher term."""
        newest = newest_term(self._folder)
        if newest > self.term:
            raise Fenced(
                f"term {newest} of this run has begun, and this is term {self.term}: another "
                "Control decides now"
            )

    def read(self) -> list[dict[str, Any]]:
        """All entries of all terms, in order; each call once."""
        calls: set[str] = set()
        entries = []
        for entry in _entries(self._folder):
            call = entry.get("call")
            if call is None or call not in calls:
                entries.append(entry)
                calls.update([call] if call is not None else [])
        return entries

    def __enter__(self) -> "TermJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def newest_term(folder: Path) -> int:
    """The highest term that was opened here; 0 if none was."""
    return max(_terms(folder), default=0)


def _terms(folder: Path) -> list[int]:
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))


def _lines(folder: Path, term: int) -> list[bytes]:
    """The lines that end; what a killed process left behind the last end is none."""
    return (folder / f"term-{term}.jsonl").read_bytes().split(b"\n")[:-1]


def _extents(folder: Path) -> dict[int, int]:
    """How many lines of every term's file count: as the newest term that says so has it."""
    files = {term: _lines(folder, term) for term in _terms(folder)}
    extents = {term: len(lines) for term, lines in files.items()}
    for term in sorted(files, reverse=True):
        if files[term]:
            sealed = json.loads(files[term][0])[_SEAL]
            return {n: int(sealed.get(str(n), 0)) if n < term else extents[n] for n in extents}
    return extents


def _entries(folder: Path) -> Iterator[dict[str, Any]]:
    for term, extent in _extents(folder).items():
        for number, line in enumerate(_lines(folder, term)[1:extent], start=2):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{folder}/term-{term}.jsonl is damaged in line {number} ({line[:80]!r}); only "
                    "a last line may be torn: put back a copy, or remove the folder to go on from "
                    "the newest checkpoint"
                ) from error


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"the journal in {folder} cannot be written ({error}); what it says must be on disk before "
        "it takes effect: make room there, then start the same command again"
    )


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
