"""What was reported of finished steps, until whoever keeps the log of the run has it."""

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.protocol.messages import StepRecord


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive steps from `start + 1` on, in history `history`.

    A new history begins when steps that were told already are trained again, because nobody
    survived who had finished them: the log goes back to `start`.
    """

    history: int
    start: int
    records: tuple[StepRecord, ...]


class StepLog:
    """Takes reports from anybody, repeated and in any order; gives each step once, in order."""

    def __init__(self) -> None:
        self._lost: set[int] = set()
        self._known = False  # whether the log's keeper has asked yet, and so said what it has
        self._history, self._start = 0, 0
        self._acknowledged = -1
        self._records: dict[int, StepRecord] = {}
        self._lowest: tuple[int, int] | None = None  # of the starts of generations: step, number

    @property
    def acknowledged(self) -> int:
        """Who trains need not repeat reports up to this step."""
        return self._acknowledged

    @property
    def num_lost(self) -> int:
        """Steps that were trained, and whose reports died with all who had them."""
        return len(self._lost)

    def add(self, records: Iterable[StepRecord]) -> None:
        for record in records:
            if record.step > self._acknowledged:
                self._records.setdefault(record.step, record)

    def begin(self, step: int, generation: int) -> None:
        """A generation goes on after `step`: what was reported of later steps is void."""
        self._records = {n: record for n, record in self._records.items() if n <= step}
        if not self._known:
            lowest = (step, generation)
            self._lowest = lowest if self._lowest is None else min(self._lowest, lowest)
        elif step < self._acknowledged:
            self._rewind(step, generation)

    def _rewind(self, step: int, generation: int) -> None:
        self._history, self._start, self._acknowledged = generation, step, step

    def take(self, since: int, history: int, certain: int) -> Records:
        """What follows step `since` of `history`; that step and those before it are safe now.

        All that will ever be reported of steps up to `certain` is here: if one of them is missing,
        those who knew it died, and it is counted as lost.
        """
        if not self._known:
            self._known, self._history, self._acknowledged = True, history, since
            if self._lowest is not None and self._lowest[0] < since:
                self._rewind(*self._lowest)
        if history != self._history:
            since = self._start
        self._acknowledged = max(self._acknowledged, since)
        self._records = {n: record for n, record in self._records.items() if n > since}
        return Records(self._history, since, tuple(self._following(since, certain)))

    def _following(self, since: int, certain: int) -> Iterable[StepRecord]:
        step = since + 1
        for number in sorted(self._records):
            if number > certain and number != step:
                return
            self._lost.update(range(step, number))
            yield self._records[number]
            step = number + 1
