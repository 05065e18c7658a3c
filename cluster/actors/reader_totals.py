"""What readers did, added up, whoever comes and goes; and what each of them counted."""

from dataclasses import dataclass

import numpy as np

from cluster.protocol.messages import ReaderReport
from cluster.protocol.metric import Counted, Readings


@dataclass(slots=True)
class _Heard:
    """What a reader said last."""

    finished: frozenset[tuple[int, int]] = frozenset()
    busy_seconds: float = 0.0
    held_bytes: int = 0
    memory_bytes: int = 0


class Tally:
    """Totals over all readers that ever were. Readers say how much they did since they started."""

    def __init__(self) -> None:
        self.num_made = 0  # samples that were cropped
        self.busy_seconds = 0.0
        self._heard: dict[str, _Heard] = {}
        self._news: dict[str, Readings] = {}

    def add(self, report: ReaderReport) -> None:
        """Count what is new in a report; one that comes twice adds nothing."""
        heard = self._heard.setdefault(report.reader, _Heard())
        for finished in report.finished:
            if (
                finished.header is not None
                and (finished.task, finished.epoch) not in heard.finished
            ):
                self.num_made += int(np.count_nonzero(finished.header.kept))
        heard.finished = frozenset((one.task, one.epoch) for one in report.finished)
        self.busy_seconds += report.busy_seconds - heard.busy_seconds
        heard.busy_seconds, heard.held_bytes = report.busy_seconds, report.held_bytes
        heard.memory_bytes = report.memory_bytes
        if report.counts:
            self._news[report.reader] = report.counts

    def take_news(self) -> tuple[Counted, ...]:
        """What readers counted, of those that reported since this was asked last."""
        news, self._news = self._news, {}
        return tuple(Counted(name, counts) for name, counts in news.items())

    @property
    def held_bytes(self) -> int:
        """Bytes of crops in the memory of readers."""
        return sum(heard.held_bytes for heard in self._heard.values())

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the largest reader."""
        return max((heard.memory_bytes for heard in self._heard.values()), default=0)

    def forget(self, reader: str) -> None:
        """It is gone; what it did stays."""
        self._heard.pop(reader, None)
