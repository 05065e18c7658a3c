"""Borrowed crops: rows that lie in the memory of readers of this node are read there."""

import os
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from cluster.protocol.messages import Borrower, GroupRows, LentRows, Loan, Rows
from shards.shared_file import FileName


class BorrowedCrops:
    """Opens the shared files of readers of `node`, and notes which loans can be returned.

    Readers of other nodes send their rows, and all of them do without a node. One thread calls.
    """

    def __init__(self, node: str) -> None:
        self._me = Borrower(node, os.getpid()) if node else None
        self._files: dict[str, tuple[FileName, NDArray[np.uint8]]] = {}
        self._closed: set[str] = set()
        self._done: defaultdict[str, list[int]] = defaultdict(list)

    def borrower(self, reader: str) -> Borrower | None:
        """Return what to tell a reader; None if it must send its rows."""
        return None if reader in self._closed else self._me

    def is_lending(self, reader: str) -> bool:
        """Return True if this process has read the memory of a reader."""
        return reader in self._files

    def look(self, reader: str, rows: Rows) -> tuple[GroupRows, ...] | None:
        """Return the crops of an answer. They are valid until its loan is done.

        None: this process cannot read the memory of the reader, which must send them.
        """
        try:
            return tuple(
                self._views(reader, rows.loan, group) if isinstance(group, LentRows) else group
                for group in rows.crops
            )
        except OSError:
            self._closed.add(reader)
            return None

    def done(self, reader: str, rows: Rows) -> None:
        """Note that rows were copied, or are not wanted."""
        if rows.loan is not None:
            self._done[reader].append(rows.loan.number)

    def pop_done(self, reader: str) -> tuple[int, ...]:
        """Return the loans of a reader that can be returned, once."""
        return tuple(self._done.pop(reader, ()))

    def waiting(self) -> list[str]:
        """Return the readers to which something can be returned."""
        return list(self._done)

    def forget(self, reader: str) -> None:
        """Forget the memory of a reader that is lost; it ends when nobody has it open."""
        self._files.pop(reader, None)
        self._closed.discard(reader)

    def _views(
        self, reader: str, loan: Loan | None, rows: LentRows
    ) -> tuple[NDArray[np.uint8], ...]:
        assert loan is not None  # rows are lent as one
        name, memory = self._files.get(reader) or (loan.file, loan.file.open())
        if name != loan.file:
            name, memory = loan.file, loan.file.open()
        self._files[reader] = name, memory
        return tuple(
            np.ndarray(rows.shape, np.uint8, memory, place) for place in rows.places.tolist()
        )
