"""Finite guard: a step whose numbers are not finite must not reach a checkpoint or another rank.

On a CPU, on ranks, and with a budget of steps to leave out, its numbers are read before the
optimizer moves the weights. A GPU that trains alone moves them first; then the state is lost.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor
from torch.optim import Optimizer


@torch.no_grad()
def largest_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return a norm of floating point tensors that is finite if, and only if, each number is.

    It reads each number once, launches few kernels, and does not wait for a GPU.
    """
    kinds: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            kinds[tensor.device, tensor.dtype].append(tensor)
    if not kinds:
        return torch.zeros((), dtype=torch.float64)
    found = [_largest(kind) for kind in kinds.values()]
    device = found[0].device
    return torch.stack([number.to(device).double() for number in found]).amax()


def _largest(tensors: list[Tensor]) -> Tensor:
    """Return the largest norm of tensors of one kind."""
    if tensors[0].device.type == "cpu":
        # A sum of squares takes a tenth of the time there, but those of large numbers overflow.
        norm = torch.stack(torch._foreach_norm(tensors)).amax()
        if norm.isfinite():
            return norm
    return torch.stack(torch._foreach_norm(tensors, inf)).amax()


def optimized(optimizer: Optimizer) -> Iterable[Tensor]:
    """Yield everything that an optimizer changes: weights, and its state of them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter
            entries = optimizer.state.get(parameter, {})
            # Counts of steps, which have no dimension, are always finite.
            yield from (x for x in entries.values() if isinstance(x, Tensor) and x.ndim)


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """Numbers of a step that must be finite, the same on every rank.

    `changed` is the largest norm of all that the loss may change: statistics, queues, averages.
    `updated` is that of weights and momenta after the step before.
    """

    loss: float
    gradient_norm: float
    changed: float
    updated: float

    @property
    def are_finite(self) -> bool:
        return all(map(isfinite, (self.loss, self.gradient_norm, self.changed, self.updated)))

    @property
    def has_weights(self) -> bool:
        """True if the weights before the step are finite, so that it can be left out."""
        return isfinite(self.updated)

    def describe(self, step: int) -> str:
        """Return in words what is not finite in this step, counted from 1."""
        if not self.has_weights:
            return f"the weights are not finite after step {step - 1}: its update was too large"
        if isfinite(self.loss) and isfinite(self.gradient_norm):
            return f"step {step} makes statistics, a queue or an average {self.changed:g}"
        return (
            f"the loss is {self.loss:g} and the gradient norm {self.gradient_norm:g} at step {step}"
        )
