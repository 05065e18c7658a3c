"""Norm of all gradients of an optimizer."""

import torch
from torch import Tensor
from torch.optim import Optimizer


@torch.no_grad()
def gradient_norm(optimizer: Optimizer) -> Tensor:
    """Return the 2-norm of all gradients together, before clipping.

    Gradients that `Method.after_backward` drops later, as of frozen prototypes, count.
    """
    gradients = [
        parameter.grad
        for entry in optimizer.param_groups
        for parameter in entry["params"]
        if parameter.grad is not None
    ]
    norms = torch._foreach_norm(gradients) if gradients else ()
    return torch.stack([norm.float() for norm in norms]).norm() if norms else torch.zeros(())
