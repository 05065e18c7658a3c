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

    On ranks the constructor waits for the numbers: only then is it certain that all peers took
    part. Alone they are still on the device, and `begin` queues their copy behind the step.
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
        self._floats = {name: x for name, x in readings.items() if isinstance(x, float | int)}
        self._on_host = {name: x for name, x in readings.items() if isinstance(x, HostReading)}
        tensors = {name: x for name, x in readings.items() if isinstance(x, Tensor)}
        if group is not None:
            rows = {name: (x.rows.cpu(), x.function) for name, x in self._on_host.items()}
            self._floats |= {name: function(x).item() for name, (x, function) in rows.items()}
            self._on_host = {}
        self._names = [*sorted(tensors), *sorted(self._floats)]
        values = [loss, *(tensors[name] for name in sorted(tensors))]
        self._numbers = torch.stack([value.to(loss.device).double() for value in values])
        self._transfer: NumberTransfer | None = None
        if group is not None:
            self._reduce(group)

    def begin(self, begin: BeginTransfer) -> None:
        """Begin the transfer of the numbers to the host; does not wait."""
        self._transfer = begin([self._numbers, *(x.rows for x in self._on_host.values())])

    @property
    def is_here(self) -> bool:
        """True if `values` would not wait for the device."""
        return self._transfer is not None and self._transfer.is_done

    def wait(self) -> Sequence[Tensor]:
        """Return the numbers, and the rows of readings of the host, when they have come."""
        if self._transfer is None:
            self.begin(begin_transfer)
        assert self._transfer is not None
        return self._transfer.wait()

    def values(self) -> Numbers:
        """Return the mean loss and the mean readings. Waits for them if they are under way."""
        numbers, *rows = self.wait()
        loss, *means = numbers.tolist()
        computed = {
            name: reading.function(found).item()
            for (name, reading), found in zip(self._on_host.items(), rows, strict=True)
        }
        return loss, dict(zip(self._names, means, strict=False)) | self._floats | computed

    def _reduce(self, group: ProcessGroup) -> None:
        floats = [float(self._floats[name]) for name in sorted(self._floats)]
        votes = [self.vote == StopVote.REGROUP, self.vote == StopVote.STOP]
        more = torch.tensor([*floats, *self.counts, *votes], dtype=torch.float64)
        both = torch.cat([self._numbers, more.to(self._numbers.device, non_blocking=True)])
        dist.all_reduce(both, group=group)
        both = both.cpu()
        if isinstance(group, Ranks):
            group.check()
        *_, regroup, stop = both.tolist()
        num_means = len(self._names) + 1
        self._numbers, self._floats = both[:num_means] / group.size(), {}
        self.counts = tuple(both[num_means:-2].tolist())
        self.vote = StopVote.STOP if stop else StopVote.REGROUP if regroup else StopVote.CONTINUE


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
