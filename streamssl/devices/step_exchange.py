"""Step exchange: the last collective of a step, and the transfer of its numbers to the host."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from cluster.protocol.learner import StopVote
from cluster.protocol.step_report import StepReport
from cluster.trainers.rendezvous import Ranks
from streamssl.devices.number_transfer import (
    BeginTransfer,
    HostReading,
    NumberTransfer,
    Reading,
    begin_transfer,
)

Numbers = tuple[float, dict[str, float]]


class StepExchange:
    """Means of loss and readings over the ranks, the strongest vote, and sums of `counts`.

    Nothing waits for a GPU before `values`. On ranks `vote` and `counts` are those of all ranks
    after it: only then is it certain that all peers took part.
    """

    def __init__(
        self,
        loss: Tensor,
        readings: Mapping[str, Reading],
        vote: StopVote,
        group: ProcessGroup | None,
        counts: Sequence[float] = (),
    ) -> None:
        self.vote, self.counts = vote, tuple(counts)
        self._group = group
        self._floats = {name: x for name, x in readings.items() if isinstance(x, float | int)}
        # All ranks hold the same rows.
        self._on_host = {name: x for name, x in readings.items() if isinstance(x, HostReading)}
        tensors = {name: x for name, x in readings.items() if isinstance(x, Tensor)}
        self._names = [*sorted(tensors), *sorted(self._floats)]
        values = [loss, *(tensors[name] for name in sorted(tensors))]
        self._numbers = torch.stack([value.to(loss.device).double() for value in values])
        self._transfer: NumberTransfer | None = None

    def begin(self, begin: BeginTransfer = begin_transfer) -> None:
        """Begin the collective, and the transfer of its numbers to the host."""
        if self._group is not None:
            self._reduce(self._group)
        self._transfer = begin([self._numbers, *(x.rows for x in self._on_host.values())])

    @property
    def is_here(self) -> bool:
        """True if `values` would not wait for the device."""
        return self._transfer is not None and self._transfer.is_done

    def wait(self) -> Sequence[Tensor]:
        """Return the numbers, and the rows of readings of the host, when they have come."""
        assert self._transfer is not None, "`begin` comes first"
        return self._transfer.wait()

    def values(self) -> Numbers:
        """Return the mean loss and the mean readings. Waits for them if they are under way.

        Raises GenerationOver if they may be invalid.
        """
        tensor, *rows = self.wait()
        numbers = tensor.tolist()
        floats = self._floats
        if self._group is not None:
            numbers, floats = self._of_all_ranks(numbers, self._group), {}
        loss, *means = numbers
        computed = {
            name: reading.function(found).item()
            for (name, reading), found in zip(self._on_host.items(), rows, strict=True)
        }
        return loss, dict(zip(self._names, means, strict=False)) | floats | computed

    def _reduce(self, group: ProcessGroup) -> None:
        floats = [float(self._floats[name]) for name in sorted(self._floats)]
        votes = [self.vote == StopVote.REGROUP, self.vote == StopVote.STOP]
        more = torch.tensor([*floats, *self.counts, *votes], dtype=torch.float64)
        more = more.to(self._numbers.device, non_blocking=True)
        self._numbers = torch.cat([self._numbers, more])
        dist.all_reduce(self._numbers, group=group)

    def _of_all_ranks(self, sums: list[float], group: ProcessGroup) -> list[float]:
        """Take votes and counts from the sums over the ranks; return the means."""
        if isinstance(group, Ranks):
            group.check()
        *_, regroup, stop = sums
        num_means = 1 + len(self._names)
        self.counts = tuple(sums[num_means:-2])
        self.vote = StopVote.STOP if stop else StopVote.REGROUP if regroup else StopVote.CONTINUE
        return [value / group.size() for value in sums[:num_means]]


class DeferredStep:
    """A `PendingReport`: a step that was begun, and whose numbers are on their way to the host.

    `finish` makes the report of its numbers, or raises if they are not finite.
    """

    def __init__(self, exchange: StepExchange, finish: Callable[[Numbers], StepReport]) -> None:
        self._exchange, self._finish = exchange, finish
        self._report: StepReport | None = None

    @property
    def is_read(self) -> bool:
        """True if the report was made."""
        return self._report is not None

    @property
    def is_ready(self) -> bool:
        return self._report is not None or self._exchange.is_here

    def wait(self) -> None:
        self._exchange.wait()

    def read(self) -> StepReport:
        if self._report is None:
            self._report = self._finish(self._exchange.values())
        return self._report
