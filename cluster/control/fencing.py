"""Term journal: a journal that only the newest Control can write; its term fences off all others.

A folder holds one file `term-<n>.jsonl` for each term. A term begins when its file is created,
which only one process can do, so each term has at most one Control. A process that sees the file of
a higher term is fenced: what it wanted to write was not decided. Lines are JSON; a last line
without an end comes from a process that was killed, and is dropped.

The first line of a file says how many lines of each older file count. So lines that a fenced
process writes later count for no reader, and all readers see the same entries.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import StreamSSLError, UserError
from shards.file_systems import cannot_write
from shards.files import DurableLines, flush_path, read_whole_lines

_FILE = re.compile(r"term-(\d+)\.jsonl")
_SEAL = "counts"  # key of the first line: how many lines of each older file count


class FencedError(StreamSSLError):
    """A newer Control exists; this one must not decide anything any more."""


class TermJournal:
    """The journal of a run, writable in one term. A context."""

    def __init__(self, folder: Path, term: int, file: BinaryIO) -> None:
        self.term = term
        self._folder = folder
        self._file = DurableLines(file, folder / f"term-{term}.jsonl")
        self._calls = {call for entry in self.read() if (call := entry.get("call")) is not None}

    @classmethod
    def open(cls, folder: Path) -> "TermJournal":
        """Begin a new term, higher than all before. Raises UserError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                term = newest_term(folder) + 1
                path = folder / f"term-{term}.jsonl"
                try:
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                except FileExistsError:
                    continue  # another process has that term
                flush_path(folder)
                return cls._begin(folder, term, os.fdopen(descriptor, "wb", buffering=0))
        except OSError as error:
            raise cannot_write(error, folder) from error

    @classmethod
    def _begin(cls, folder: Path, term: int, file: BinaryIO) -> "TermJournal":
        with ExitStack() as undo:
            undo.enter_context(file)
            journal = cls(folder, term, file)
            sealed = {str(n): size for n, size in _valid_lines(folder).items() if n < term}
            journal._write({_SEAL: sealed})
            undo.pop_all()
        return journal

    def append(self, entry: Mapping[str, Any], call: str | None = None) -> bool:
        """Write an entry to disk. Return False if one of the same `call` exists.

        Raises FencedError if there is a higher term, and UserError if the disk is full.
        """
        if call is not None and call in self._calls:
            return False
        self.check()
        self._write(dict(entry) if call is None else {**entry, "call": call})
        self.check()  # a term that began meanwhile may not have read the entry
        if call is not None:
            self._calls.add(call)
        return True

    def _write(self, fields: Mapping[str, Any]) -> None:
        try:
            self._file.append(json.dumps(fields).encode())
        except OSError as error:
            raise cannot_write(error, self._folder) from error

    def check(self) -> None:
        """Raise FencedError if there is a higher term."""
        newest = newest_term(self._folder)
        if newest > self.term:
            raise FencedError(
                f"term {newest} of this run has begun, and this is term {self.term}: another "
                "Control decides now"
            )

    def read(self) -> list[dict[str, Any]]:
        """Return the entries of all terms in order, each call once."""
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
    """Return the highest term that began in this folder; 0 if none did."""
    return max(_terms(folder), default=0)


def _terms(folder: Path) -> list[int]:
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))


def _lines(folder: Path, term: int) -> list[bytes]:
    return read_whole_lines(folder / f"term-{term}.jsonl")


def _valid_lines(folder: Path) -> dict[int, int]:
    """Return how many lines of each term's file count, by the newest term that says so."""
    files = {term: _lines(folder, term) for term in _terms(folder)}
    counts = {term: len(lines) for term, lines in files.items()}
    for term in sorted(files, reverse=True):
        if files[term]:
            sealed = _parse(folder, term, 1, files[term][0]).get(_SEAL)
            if not isinstance(sealed, dict) or not all(type(n) is int for n in sealed.values()):
                raise _damaged(folder, term, 1, files[term][0])
            return {n: sealed.get(str(n), 0) if n < term else counts[n] for n in counts}
    return counts


def _entries(folder: Path) -> Iterator[dict[str, Any]]:
    for term, count in _valid_lines(folder).items():
        for number, line in enumerate(_lines(folder, term)[1:count], start=2):
            yield _parse(folder, term, number, line)


def _parse(folder: Path, term: int, number: int, line: bytes) -> dict[str, Any]:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, term, number, line) from error
    if not isinstance(found, dict):
        raise _damaged(folder, term, number, line)
    return found


def _damaged(folder: Path, term: int, number: int, line: bytes) -> UserError:
    return UserError(
        f"{folder}/term-{term}.jsonl is damaged in line {number} ({line[:80]!r}); only a last line "
        "may be torn: put back a copy, or remove the folder to continue from the newest checkpoint"
    )
