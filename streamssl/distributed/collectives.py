"""Collectives over a group of ranks; with the group None (one process) each is the identity.

Shape letters: N rows of this rank, W ranks, D all other axes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def world_size(group: ProcessGroup | None) -> int:
    """Return the number of ranks that share a global batch."""
    return 1 if group is None else group.size()


def rank(group: ProcessGroup | None) -> int:
    """Return the number of this rank in the group, from 0."""
    return 0 if group is None else group.rank()


@torch.no_grad()
def all_reduce_sum(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the sum of `x` over all ranks, as a new tensor without gradient."""
    return _reduced(x, dist.ReduceOp.SUM, group)


@torch.no_grad()
def all_reduce_max(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the element-wise maximum of `x` over all ranks, as a new tensor without gradient."""
    return _reduced(x, dist.ReduceOp.MAX, group)


@torch.no_grad()
def all_gather_rows(x_ND: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the rows of all ranks, (W * N, D), rank 0's first, without gradient.

    N must be the same on every rank. Rank r holds rows r * N ... of the global batch, so this is
    global sample order.
    """
    if group is None:
        return x_ND
    # Images are channels-last, and a collective copies memory in its present order.
    rows_ND = x_ND.contiguous()
    parts = [torch.empty_like(rows_ND) for _ in range(world_size(group))]
    dist.all_gather(parts, rows_ND, group=group)
    return torch.cat(parts)


def gather_rows_with_gradient(x_ND: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return `all_gather_rows`, with the gradients of all ranks' losses to each rank's rows.

    A rank gets the gradient of the sum of all ranks' losses. The trainer averages over ranks, which
    gives that of their mean, as in one process on the global batch.
    """
    if group is None:
        return x_ND
    rows_MD: Tensor = _GatherRows.apply(x_ND, group)
    return rows_MD


class _GatherRows(torch.autograd.Function):
    """Gather in forward; in backward, sum over ranks and return the rank's own rows."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gather_rows(x_ND, group)

    @staticmethod
    def backward(ctx: Any, gradient_MD: Tensor) -> tuple[Tensor, None]:
        parts = all_reduce_sum(gradient_MD, ctx.group).chunk(world_size(ctx.group))
        return parts[rank(ctx.group)], None


@torch.no_grad()
def from_first_rank(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return rank 0's `x` on every rank, as a new tensor without gradient."""
    if group is None:
        return x
    # By a gather, since only torch's own groups know the global number of their rank 0.
    return all_gather_rows(x[None], group)[0]


def _reduced(x: Tensor, op: dist.ReduceOp.RedOpType, group: ProcessGroup | None) -> Tensor:
    if group is None:
        return x
    result = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=op, group=group)
    return result
