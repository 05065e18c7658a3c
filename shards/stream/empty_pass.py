"""A pass over the data that holds nothing to train on ends the run, instead of reading for ever."""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import BudgetExceeded, ConfigError
from shards.records import ChunkResult
from shards.stream.order import Order


@dataclass(slots=True)
class _Pass:
    """What one epoch of a source holds, as far as its chunks were seen."""

    epoch: int
    num_chunks: int = 0
    num_kept: int = 0
    num_rejects: int = 0
    num_unselected: int = 0


class Passes:
    """Judges every epoch of every source that was seen as a whole."""

    def __init__(self, order: Order, batch_size: int) -> None:
        self._order, self._batch_size = order, batch_size
        self._current: dict[int, _Pass] = {}
        self._whole: list[_Pass] = []

    def add(self, result: ChunkResult) -> None:
        """Count the chunk that comes next."""
        source = self._order.source(result.chunk.shard)
        found = self._current.get(source)
        if found is None or found.epoch != result.epoch:
            found = self._current[source] = _Pass(result.epoch)
        found.num_chunks += 1
        found.num_kept += int(result.kept.sum())
        found.num_rejects += len(result.rejects)
        found.num_unselected += result.num_unselected
        if found.num_chunks == self._order.num_chunks_of(source):
            self._whole.append(found)

    def judge(self, reasons: Mapping[str, int]) -> None:
        """Raise BudgetExceeded or ConfigError for an epoch that ended and was no good."""
        for found in self._whole:
            if found.num_kept == 0:
                self._refuse(found, reasons)
            # Of several sources a small one may repeat as often as its weight wants it to.
            if found.num_kept < self._batch_size and self._order.num_sources == 1:
                raise ConfigError(
                    f"batch_size={self._batch_size}, but a pass over the data holds only "
                    f"{found.num_kept} images; give more data, or --stream.batch-size of at most "
                    f"{found.num_kept}"
                )
        self._whole.clear()

    def _refuse(self, found: _Pass, reasons: Mapping[str, int]) -> None:
        source = " of one of the sources" if self._order.num_sources > 1 else ""
        if found.num_unselected and not found.num_rejects:
            raise ConfigError(
                f"the subset list selects none of the {found.num_unselected} samples{source}; a "
                "pass must hold at least one: compare the list's keys with those of the shards, or "
                "leave --subset out"
            )
        raise BudgetExceeded(
            f"every sample of the data{source} was rejected; a pass must hold at least one "
            "image; look at the reasons, and at the shards with `streamssl shards verify`",
            reasons,
        )
