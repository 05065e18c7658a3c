"""Clipping of gradients by their norm."""

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer


def clip_gradients(optimizer: Optimizer, norm: Tensor, max_norm: float | None) -> None:
    """Scale all gradients by min(1, `max_norm` / `norm`), in place; None leaves them as they are.

    `norm` is that of all gradients together, after the mean over ranks. As in
    `torch.nn.utils.clip_grad_norm_`, 1e-6 is added to it. Does not wait for a GPU.
    """
    if max_norm is not None:
        parameters = [entry for group in optimizer.param_groups for entry in group["params"]]
        clip_grads_with_norm_(parameters, max_norm, norm)
