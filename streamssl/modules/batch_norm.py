"""Batch norm over all ranks, so that results do not depend on the number of ranks.

Shape letters: N rows of this rank, C channels, W ranks.
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from cluster.torch_internals import outside_graphs, sync_batch_norm
from shards.errors import ConfigError
from streamssl.distributed.collectives import all_gather_rows, all_reduce_sum
from streamssl.modules.losses import at_least_float32
from streamssl.modules.momentum import MomentumCopy


class RankBatchNorm(_BatchNorm):
    """Batch norm of torch with the statistics of the rows of all ranks of `group`.

    It shares parameters and buffers with the module that it replaces. Without a group its results
    are the same bit by bit.
    """

    group: ProcessGroup | None = None
    is_shared = False  # True with a group, which torch.compile cannot look at

    def __init__(self, replaced: _BatchNorm) -> None:
        nn.Module.__init__(self)
        # Parameters, buffers and settings, in the order of the state dict.
        self.__dict__.update(replaced.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.is_shared and self.training):
            return super().forward(x)
        return self._on_ranks(x)

    @outside_graphs
    def _on_ranks(self, x: Tensor) -> Tensor:
        assert self.group is not None
        momentum = self._count_batch()
        if x.is_cuda:
            return sync_batch_norm(x, self, momentum, self.group)
        return self._normalise(x, momentum)

    def _normalise(self, x: Tensor, momentum: float) -> Tensor:
        axes = [0, *range(2, x.ndim)]
        wide = at_least_float32(x.detach())
        mean_C = wide.mean(axes)
        square_C = (wide - _along(mean_C, x)).square().mean(axes)
        # All ranks have equally many rows, so the mean of their means is the mean of all.
        means_WC, squares_WC = all_gather_rows(
            torch.stack([mean_C, square_C])[None], self.group
        ).unbind(1)
        mean_C = means_WC.mean(0)
        var_C = (squares_WC + (means_WC - mean_C).square()).mean(0)
        num_values = x.numel() // x.shape[1] * len(means_WC)
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                unbiased_C = var_C * (num_values / max(1, num_values - 1))
                self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), momentum)
        scale_C = (var_C + self.eps).rsqrt()
        return _Normalise.apply(x, self.weight, self.bias, mean_C, scale_C, self.group)

    def _count_batch(self) -> float:
        """Count one more batch; return its weight in the running statistics."""
        if self.num_batches_tracked is not None and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum or 0.0

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept every input that the replaced module accepted."""


class RankBatchNormAct(RankBatchNorm):
    """Batch norm of timm that includes the activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.drop(super().forward(x)))
        return result


class _Normalise(torch.autograd.Function):
    """(x - mean) * scale * weight + bias, with the gradient through all ranks' statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean_C: Tensor,
        scale_C: Tensor,
        group: ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean_C, scale_C)
        ctx.group = group
        result = (at_least_float32(x) - _along(mean_C, x)) * _along(scale_C, x)
        if weight is not None:
            result = result * _along(weight, x)
        if bias is not None:
            result = result + _along(bias, x)
        return result.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_C, scale_C = ctx.saved_tensors
        axes = [0, *range(2, x.ndim)]
        wide, plain = at_least_float32(grad), at_least_float32(x)
        x_hat = (plain - _along(mean_C, x)) * _along(scale_C, x)
        mine_2C = torch.stack([wide.sum(axes), (wide * x_hat).sum(axes)])
        num_values = x.numel() // x.shape[1] * ctx.group.size()
        grad_C, grad_hat_C = all_reduce_sum(mine_2C, ctx.group) / num_values
        inner = wide - _along(grad_C, x) - x_hat * _along(grad_hat_C, x)
        factor_C = scale_C if weight is None else scale_C * weight
        grad_x = (inner * _along(factor_C, x)).to(x.dtype)
        grad_weight = mine_2C[1].to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = mine_2C[0].to(weight.dtype) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None, None


def _along(values_C: Tensor, x: Tensor) -> Tensor:
    """Return one value for each channel, in a shape that broadcasts with `x`."""
    return values_C.view(1, -1, *(1,) * (x.ndim - 2))


_REPLACEMENTS: dict[type[_BatchNorm], type[RankBatchNorm]] = {
    nn.BatchNorm1d: RankBatchNorm,
    nn.BatchNorm2d: RankBatchNorm,
    nn.BatchNorm3d: RankBatchNorm,
    BatchNormAct2d: RankBatchNormAct,
}


def share_batch_norm(network: nn.Module) -> None:
    """Replace every batch norm by a `RankBatchNorm`, in place; parameters stay the same.

    Momentum copies with `own_batch_norm` keep theirs.
    """
    for name, child in network.named_children():
        replacement = _REPLACEMENTS.get(type(child))  # type: ignore[arg-type]
        if replacement is not None:
            setattr(network, name, replacement(child))  # type: ignore[arg-type]
        elif not (isinstance(child, MomentumCopy) and child.own_batch_norm):
            share_batch_norm(child)


def enter_group(network: nn.Module, group: ProcessGroup | None) -> None:
    """Share statistics among these ranks. Raises ConfigError for an unknown batch norm."""
    own = {
        module
        for copy in network.modules()
        if isinstance(copy, MomentumCopy) and copy.own_batch_norm
        for module in copy.modules()
    }
    for name, module in network.named_modules():
        if isinstance(module, RankBatchNorm):
            module.group, module.is_shared = group, group is not None
        elif isinstance(module, _BatchNorm) and module not in own and group is not None:
            raise ConfigError(
                f"{name} is a {type(module).__name__}, a batch norm that trainers cannot share; "
                "give --trainers 1, or another backbone"
            )
