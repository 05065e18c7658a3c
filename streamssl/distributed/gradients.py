"""Gradient averaging: the gradient of the global batch is the mean over the ranks, in buckets.

Every rank has the same number of rows and the mean loss over them, so the mean of the gradients is
the gradient of the mean over all rows.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

_BUCKET_BYTES: Final = 25 << 20


@torch.no_grad()
def average_gradients(optimizer: Optimizer, group: ProcessGroup | None) -> None:
    """Replace every gradient by its mean over all ranks. All ranks must have the same ones."""
    if group is None:
        return
    buckets = list(_buckets(_gradients(optimizer)))
    # Separate buffers: an abandoned transfer may still write to them.
    flats = [torch.cat([gradient.reshape(-1) for gradient in bucket]) for bucket in buckets]
    works = [dist.all_reduce(flat, group=group, async_op=True) for flat in flats]
    for bucket, flat, work in zip(buckets, flats, works, strict=True):
        work.wait()
        flat /= group.size()
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


@torch.no_grad()
def gradient_norm(optimizer: Optimizer) -> Tensor:
    """Return the 2-norm of all gradients together, as the optimizer will see them."""
    gradients = _gradients(optimizer)
    norms = torch._foreach_norm(gradients) if gradients else ()
    return torch.stack([norm.float() for norm in norms]).norm() if norms else torch.zeros(())


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [
        parameter.grad
        for entry in optimizer.param_groups
        for parameter in entry["params"]
        if parameter.grad is not None
    ]


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients of one type, in order, about 25 MiB at a time."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[Tensor] = []
        for gradient in gradients:
            if gradient.dtype is dtype:
                bucket.append(gradient)
                if sum(g.nbytes for g in bucket) >= _BUCKET_BYTES:
                    yield bucket
                    bucket = []
        if bucket:
            yield bucket
