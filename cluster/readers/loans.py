"""Loans: crops that trainers of this node read in the memory of a reader."""

import os
import secrets
from collections.abc import Sequence

from cluster.readers.reader_state import Arrays


class Loans:
    """Keeps lent arrays, so that nothing is written over them, until their borrower is done.

    One thread calls at a time.
    """

    def __init__(self) -> None:
        self._lent: dict[int, tuple[int, tuple[Arrays, ...]]] = {}
        # A reader never takes the number of a loan of another one that had its name.
        self._number = secrets.randbits(60)

    def begin(self, borrower: int, arrays: Sequence[Arrays | None]) -> int:
        """Lend arrays to a process, and return the number of the loan."""
        self._number += 1
        self._lent[self._number] = borrower, tuple(array for array in arrays if array)
        return self._number

    def end(self, numbers: Sequence[int]) -> None:
        """End loans; those that are not known have ended before."""
        for number in numbers:
            self._lent.pop(number, None)

    def end_dead(self) -> None:
        """End the loans of processes that do not run any more."""
        dead = {pid for pid, _ in self._lent.values() if not os.path.exists(f"/proc/{pid}")}
        self.end([number for number, (pid, _) in self._lent.items() if pid in dead])
