"""What ranks tell each other; a group that is None is one process, and every call an identity.

Shape letters: N rows of this rank, W ranks, D anything that follows.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def world_size(group: ProcessGroup | None) -> int:
    """How many ranks share a global batch."""
    return 1 if group is None else group.size()


def rank(group: ProcessGroup | None) -> int:
    """This rank's place in the group, from 0."""
    return 0 if group is None else group.rank()


@torch.no_grad()
def all_reduce_sum(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of `x` over all ranks, the same on each. `x` itself is left alone; no gradient."""
    return _reduced(x, dist.ReduceOp.SUM, group)


@torch.no_grad()
def all_reduce_max(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The element-wise maximum of `x` over all ranks. `x` itself is left alone; no gradient."""
    return _reduced(x, dist.ReduceOp.MAX, group)


@torch.no_grad()
def all_gather_rows(x_ND: Tensor, group: ProcessGroup | None) -> Tensor:
    """Rows of all ranks, (W * N, D): rank 0's first. N is the same on every rank; no gradient.

    Rank r holds rows r * N ... of the global batch, so this is global sample order.
    """
    if group is None:
        return x_ND
    # Plain memory order: images come channels-last, and a collective copies bytes as they lie.
    rows_ND = x_ND.contiguous()
    parts = [torch.empty_like(rows_ND) for _ in range(world_size(group))]
    dist.all_gather(parts, rows_ND, group=group)
    return torch.cat(parts)


def gather_rows_with_gradient(x_ND: Tensor, group: ProcessGroup | None) -> Tensor:
    """As `all_gather_rows`; gradients of all ranks' losses flow back to the rank a row is from.

    So what a rank gets is the gradient of the sum of all ranks' losses. The trainer averages over
    ranks, which makes it that of their mean: what one process has on the global batch.
    """
    if group is None:
        return x_ND
    rows_MD: Tensor = _GatherRows.apply(x_ND, group)
    return rows_MD


class _GatherRows(torch.autograd.Function):
    """Forward gathers; backward sums over ranks and keeps the rank's own rows."""

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
    """What rank 0 has, on every rank. `x` itself is left alone; no gradient."""
    if group is None:
        return x
    # Gathered, since who rank 0 is among all processes only torch's own groups can say.
    return all_gather_rows(x[None], group)[0]


def _reduced(x: Tensor, op: dist.ReduceOp.RedOpType, group: ProcessGroup | None) -> Tensor:
    if group is None:
        return x
    result = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=op, group=group)
    return result
