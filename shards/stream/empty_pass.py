"""Guard against epochs with nothing to train on: they end the run instead of repeating for ever."""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import BudgetExceeded, ConfigError
from shards.records import ChunkResult
from shards.stream.order import Order


@dataclass(slots=True)
class _EpochCounts:
    """Counts of one epoch of one source, over the chunks seen so far."""

    epoch: int
    num_chunks: int = 0
    num_kept: int = 0
    num_rejects: int = 0
    num_unselected: int = 0


class EmptyPassGuard:
    """Counts the samples of every epoch of every source that is read from its first chunk on."""

    def __init__(self, order: Order, batch_size: int) -> None:
        self._order, self._batch_size = order, batch_size
        self._current: dict[int, _EpochCounts] = {}
        self._complete: list[_EpochCounts] = []

    def add(self, result: ChunkResult) -> None:
        """Count the next chunk."""
        source = self._order.source(result.chunk.shard)
        counts = self._current.get(source)
        if counts is None or counts.epoch != result.epoch:
            counts = self._current[source] = _EpochCounts(result.epoch)
        counts.num_chunks += 1
        counts.num_kept += int(result.kept.sum())
        counts.num_rejects += len(result.rejects)
        counts.num_unselected += result.num_unselected
        if counts.num_chunks == self._order.num_chunks_of(source):
            self._complete.append(counts)

    def check(self, reasons: Mapping[str, int], first: Mapping[str, str]) -> None:
        """Raise BudgetExceeded or ConfigError if an epoch that ended has too few samples."""
        for counts in self._complete:
            if counts.num_kept == 0:
                self._refuse(counts, reasons, first)
            # One of several sources may be small, and repeat as often as its weight demands.
            if counts.num_kept < self._batch_size and self._order.num_sources == 1:
                raise ConfigError(
                    f"batch_size={self._batch_size}, but a pass over the data holds only "
                    f"{counts.num_kept} images{_rejected(counts.num_rejects, reasons)}; give more "
                    f"data, or --stream.batch-size of at most {counts.num_kept}"
                )
        self._complete.clear()

    def _refuse(
        self, counts: _EpochCounts, reasons: Mapping[str, int], first: Mapping[str, str]
    ) -> None:
        source = " of one of the sources" if self._order.num_sources > 1 else ""
        if counts.num_unselected and not counts.num_rejects:
            raise ConfigError(
                f"the subset list selects none of the {counts.num_unselected} samples{source}; a "
                "pass must hold at least one: compare the list's keys with those of the shards, or "
                "leave --subset out"
            )
        raise BudgetExceeded(
            f"every sample of the data{source} was rejected; a pass must hold at least one "
            "image; see the reasons, and check the shards with `streamssl shards verify`",
            reasons,
            first,
        )


def _rejected(num_rejects: int, reasons: Mapping[str, int]) -> str:
    if not num_rejects:
        return ""
    words = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
    return (
        f", and {num_rejects:,} rejected samples ({words}), which `streamssl shards verify` shows"
    )
