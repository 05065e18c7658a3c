"""StepLog: reports of finished steps, until the writer of the run log has them."""

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.protocol.step_report import StepReport


@dataclass(frozen=True, slots=True)
class Records:
    """Reports of consecutive steps, beginning with `start + 1`, in history `history`.

    A new history begins when reported steps are trained again, because every trainer that had
    finished them is lost. The log then goes back to `start`.
    """

    history: int
    start: int
    records: tuple[StepReport, ...]

    @property
    def end(self) -> int:
        """The last step of the log when these are written."""
        return self.records[-1].step if self.records else self.start


class StepLog:
    """Takes reports in any order, repeated or not; returns each step once and in order."""

    def __init__(self) -> None:
        self._lost: set[int] = set()
        self._known = False  # True after the first `take`, which tells what the log has
        self._history, self._start = 0, 0
        self._acknowledged = -1
        self._reports: dict[int, StepReport] = {}
        self._lowest: tuple[int, int] | None = None  # start of a generation: step, number

    @property
    def acknowledged(self) -> int:
        """The step up to which trainers need not repeat their reports."""
        return self._acknowledged

    @property
    def num_lost(self) -> int:
        """Finished steps whose reports were lost with all trainers that had them."""
        return len(self._lost)

    def add(self, reports: Iterable[StepReport]) -> None:
        for report in reports:
            if report.step > self._acknowledged:
                self._reports.setdefault(report.step, report)

    def begin(self, step: int, generation: int) -> None:
        """Start a generation after `step`: reports of later steps become void."""
        self._reports = {n: report for n, report in self._reports.items() if n <= step}
        if not self._known:
            lowest = (step, generation)
            self._lowest = lowest if self._lowest is None else min(self._lowest, lowest)
        elif step < self._acknowledged:
            self._rewind(step, generation)

    def take(self, since: int, history: int, certain: int) -> Records:
        """Return the reports after step `since` of `history`; `since` and before are safe now.

        No further reports of steps up to `certain` will come. A missing one of these is counted as
        lost.
        """
        if not self._known:
            self._known, self._history, self._acknowledged = True, history, since
            if self._lowest is not None and self._lowest[0] < since:
                self._rewind(*self._lowest)
        if history != self._history:
            since = self._start
        self._acknowledged = max(self._acknowledged, since)
        self._reports = {n: report for n, report in self._reports.items() if n > since}
        return Records(self._history, since, tuple(self._following(since, certain)))

    def _rewind(self, step: int, generation: int) -> None:
        self._history, self._start, self._acknowledged = generation, step, step

    def _following(self, since: int, certain: int) -> Iterable[StepReport]:
        step = since + 1
        for number in sorted(self._reports):
            if number > certain and number != step:
                return
            self._lost.update(range(step, number))
            yield self._reports[number]
            step = number + 1
