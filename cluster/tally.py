"""What readers did, added up: counters that only rise, whoever comes and goes."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cluster.messages import ChunkHeader, ReaderReport


@dataclass(slots=True)
class _Heard:
    """What a reader said last."""

    finished: frozenset[tuple[int, int]] = frozenset()
    counts: Mapping[str, float] = field(default_factory=dict)
    held_bytes: int = 0


class Tally:
    """Totals over all readers that ever were. Readers say how much they did since they started."""

    def __init__(self) -> None:
        self.totals: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.num_made = 0  # samples that were cropped
        self.busy_seconds = 0.0
        self._heard: dict[str, _Heard] = {}

    def add(self, report: ReaderReport) -> None:
        """Count what is new in a report; one that comes twice adds nothing."""
        heard = self._heard.setdefault(report.reader, _Heard())
        for finished in report.finished:
            if (
                finished.header is not None
                and (finished.task, finished.epoch) not in heard.finished
            ):
                self._add_chunk(finished.header)
        heard.finished = frozenset((one.task, one.epoch) for one in report.finished)
        counts = {f"on {name}": seconds for name, seconds in report.blocked_seconds.items()}
        counts |= {"busy": report.busy_seconds, **report.counts}
        new = {name: value - heard.counts.get(name, 0) for name, value in counts.items()}
        heard.counts, heard.held_bytes = counts, report.held_bytes
        self.busy_seconds += new["busy"]
        self.totals["crop_bytes", ""] += new.get("crop_bytes", 0)
        self.totals["taken_bytes", ""] += new.get("taken_bytes", 0)
        for name in report.blocked_seconds:
            self.totals["reader_blocked_seconds", name] += new[f"on {name}"]

    @property
    def held_bytes(self) -> int:
        """Bytes of crops in the memory of readers."""
        return sum(heard.held_bytes for heard in self._heard.values())

    def forget(self, reader: str) -> None:
        """It is gone; what it did stays."""
        self._heard.pop(reader, None)

    def _add_chunk(self, header: ChunkHeader) -> None:
        num_kept = int(np.count_nonzero(header.kept))
        self.num_made += num_kept
        self.totals["samples", "read"] += len(header.offsets) + header.num_unselected
        self.totals["samples", "unselected"] += header.num_unselected
        self.totals["samples", "cropped"] += num_kept
        self.totals["busy_seconds", "read"] += header.read_seconds
        self.totals["busy_seconds", "crop"] += header.crop_seconds
