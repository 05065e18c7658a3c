"""Gradient buckets: gradients are averaged over the ranks while backward computes earlier ones.

A bucket is summed over the ranks as soon as all its gradients are there. The buckets and their
order are those of the parameters alone, so that every rank sums the same ones in the same order,
whichever gradients it has. They travel on a connection of their own: batch norm and the losses have
collectives in backward, too, and these need not wait for a bucket.

Every rank has the same number of rows and the mean loss over them, so the mean of the gradients is
the gradient of the mean over all rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

_BUCKET_BYTES: Final = 25 << 20


@dataclass(slots=True)
class _Transfer:
    """A bucket under way: its gradients in a buffer, to which an abandoned transfer may write."""

    flat: Tensor
    work: Any


class GradientBuckets:
    """The averaging of one optimizer's gradients over a group, by hooks on its parameters.

    `order` are the parameters in the order of the forward pass: their gradients come in the
    opposite one. Used by the thread that calls backward.
    """

    def __init__(
        self, optimizer: Optimizer, order: Iterable[Tensor], group: ProcessGroup | None
    ) -> None:
        self._group = group
        self._parameters: list[Tensor] = []
        self._buckets: list[list[Tensor]] = []
        self._bucket_of: dict[Tensor, int] = {}
        self._passes_left: dict[Tensor, int] = {}
        self._incomplete: list[int] = []
        self._transfers: list[_Transfer] = []
        self._handles: list[Any] = []
        if group is None:
            return
        entries = (parameter for entry in optimizer.param_groups for parameter in entry["params"])
        self._parameters = [parameter for parameter in entries if parameter.requires_grad]
        place = {parameter: number for number, parameter in enumerate(order)}
        # A bucket is complete when the gradient of its earliest layer is.
        self._buckets = sorted(
            _cut(self._parameters), key=lambda bucket: min(place[x] for x in bucket), reverse=True
        )
        for number, bucket in enumerate(self._buckets):
            self._bucket_of.update(dict.fromkeys(bucket, number))
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._arrived)
            for parameter in self._parameters
        ]

    def begin(self, num_passes: int = 1) -> None:
        """Begin a step whose gradients are the sums of `num_passes` backward passes."""
        self._transfers = []
        self._passes_left = dict.fromkeys(self._parameters, num_passes)
        self._incomplete = [len(bucket) for bucket in self._buckets]

    @torch.no_grad()
    def finish(self) -> list[bool]:
        """Replace every gradient by its mean over all ranks, after backward.

        Return which parameters had a gradient here. Afterwards all have one; `drop_absent` removes
        those that no rank had.
        """
        has_gradient = [parameter.grad is not None for parameter in self._parameters]
        while len(self._transfers) < len(self._buckets):
            self._launch()
        for bucket, transfer in zip(self._buckets, self._transfers, strict=True):
            transfer.work.wait()
            assert self._group is not None
            transfer.flat /= self._group.size()
            parts = transfer.flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view(parameter.shape))
        self._transfers, self._passes_left = [], {}
        return has_gradient

    def drop_absent(self, num_ranks: Sequence[float]) -> None:
        """Remove the gradients that no rank had, by the number of ranks with each of them.

        An optimizer leaves a parameter without a gradient as it is: no momentum, no decay.
        """
        for parameter, number in zip(self._parameters, num_ranks, strict=True):
            if not number:
                parameter.grad = None

    def close(self) -> None:
        """Remove the hooks; a transfer under way is abandoned."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._transfers, self._passes_left = [], [], {}

    @torch.no_grad()
    def _arrived(self, parameter: Tensor) -> None:
        """Count a gradient, and launch the buckets that are complete, in their order."""
        if not self._passes_left:  # a backward pass outside of a step
            return
        self._passes_left[parameter] -= 1
        left = self._passes_left[parameter]
        assert left >= 0, "more backward passes than `begin` was told: a sum is under way"
        if left:
            return
        self._incomplete[self._bucket_of[parameter]] -= 1
        while self._transfers_left and not self._incomplete[len(self._transfers)]:
            self._launch()

    @property
    def _transfers_left(self) -> int:
        return len(self._buckets) - len(self._transfers)

    def _launch(self) -> None:
        """Begin to sum the next bucket; a gradient that this rank does not have counts as 0."""
        bucket = self._buckets[len(self._transfers)]
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in bucket]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        self._transfers.append(_Transfer(flat, work))


def _cut(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type, in order, about 25 MiB at a time."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        for tensor in tensors:
            if tensor.dtype is dtype:
                bucket.append(tensor)
                if sum(x.nbytes for x in bucket) >= _BUCKET_BYTES:
                    yield bucket
                    bucket = []
        if bucket:
            yield bucket
