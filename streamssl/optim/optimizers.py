"""Optimizers: LARC (SwAV) and LARS in its three forms, besides torch's SGD and AdamW.

Each step updates lists of tensors at once and never waits for the device: norms stay tensors. A
parameter without a gradient does not change in that step: no momentum, no decay.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from shards.errors import ConfigError
from streamssl.optim.optim_config import MomentumForm, OptimConfig


def build_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimizer at `base_lr`; `set_rates` sets the rates of each step.

    Biases and norms (ndim <= 1) are excluded from decay and scaling by LARS, and from decay by
    AdamW. LARC and SGD treat all parameters alike, as SwAV and MoCo do. AdamW is fused: one pass
    over the memory on a CPU, few kernels on a GPU. SGD is not: its fused form fails for a parameter
    that gets its first gradient later than others, as a frozen one does.
    """
    chosen = list(parameters)
    lr, weight_decay, momentum = config.base_lr, config.weight_decay, config.momentum
    if config.name == "sgd":
        return SGD(chosen, lr, momentum=momentum, weight_decay=weight_decay)
    if config.name == "adamw":
        groups = split_vectors(chosen, weight_decay=weight_decay)
        return AdamW(groups, lr, betas=config.betas, weight_decay=weight_decay, fused=True)
    trust = config.trust_coefficient
    if config.name == "larc":
        return LARC(
            chosen, lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust
        )
    groups = split_vectors(chosen, weight_decay=weight_decay)
    return LARS(
        groups,
        lr,
        momentum=momentum,
        trust_coefficient=trust,
        momentum_form=config.momentum_form,
    )


def set_rates(optimizer: Optimizer, lr: float, weight_decay: float) -> None:
    """Set the learning rate of all parameters, and the decay of those that have one."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["weight_decay"]:
            group["weight_decay"] = weight_decay


def split_vectors(
    parameters: Iterable[nn.Parameter], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Return two parameter groups: tensors, and vectors of at most one dimension (biases, norms).

    The second has no weight decay, and `adapt=False`, so that LARS does not scale it.
    """
    chosen = list(parameters)
    tensors = [parameter for parameter in chosen if parameter.ndim > 1]
    vectors = [parameter for parameter in chosen if parameter.ndim <= 1]
    groups = [
        {"params": tensors, "weight_decay": weight_decay, "adapt": True},
        {"params": vectors, "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True, slots=True)
class _Layers:
    """Parameters of one group that have a gradient, with their momenta."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    momenta: list[Tensor]


class _TrustOptimizer(Optimizer):
    """Base of LARC and LARS: iterates over the groups and holds the momenta."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                gradients = [p.grad for p in parameters]
                self._update(group, _Layers(parameters, gradients, self._momenta(parameters)))
        return loss

    def _momenta(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]

    def _update(self, group: dict[str, Any], layers: _Layers) -> None:
        raise NotImplementedError


class LARC(_TrustOptimizer):
    """SGD with momentum on gradients scaled layer by layer, as SwAV uses it.

    You et al., arXiv:1708.03888, eq. 6, in the form of NVIDIA's apex: with decay d and trust t,
    rate = t |p| / (|g| + d |p| + 1e-8) and g <- (g + d p) rate; `clip` keeps rate / lr at most 1.
    No parameter is excluded. If |p| or |g| is 0, the gradient is used unscaled, without decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        clip: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "clip": clip,
        }
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], layers: _Layers) -> None:
        p, g = _norms(layers.parameters), _norms(layers.gradients)
        rate = group["trust_coefficient"] * p / (g + group["weight_decay"] * p + 1e-8)
        if group["clip"]:
            rate = (rate / group["lr"]).clamp(max=1.0)
        is_scaled = (p > 0) & (g > 0)
        decay = torch.where(is_scaled, rate * group["weight_decay"], 0.0)
        factors = list(torch.where(is_scaled, rate, 1.0).unbind())
        scaled = torch._foreach_mul(layers.gradients, factors)
        torch._foreach_add_(scaled, torch._foreach_mul(layers.parameters, list(decay.unbind())))
        torch._foreach_mul_(layers.momenta, group["momentum"])
        torch._foreach_add_(layers.momenta, scaled)
        torch._foreach_add_(layers.parameters, layers.momenta, alpha=-group["lr"])


class LARS(_TrustOptimizer):
    """Layer-wise adaptive rates, arXiv:1708.03888, in the three forms that papers use.

    u = g + decay p; trust = trust_coefficient |p| / |u|, or 1 if a norm is 0. `momentum_form`:
      plain    v = m v + trust u;       p -= lr v     MoCo v3, BYOL
      classic  v = m v + lr trust u;    p -= v        SimCLR (differs when lr changes)
      popular  v = m v + u, trust from |v|;  p -= lr trust v
    `nesterov` looks one step ahead in the last two. A group with `adapt=False` has trust 1: see
    `split_vectors`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        momentum_form: MomentumForm = "plain",
        nesterov: bool = False,
    ) -> None:
        if nesterov and momentum_form == "plain":
            raise ConfigError(
                "nesterov=True with momentum_form='plain'; only the classic and the popular form "
                "look ahead; choose one of them"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "momentum_form": momentum_form,
            "nesterov": nesterov,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], layers: _Layers) -> None:
        lr, momentum, form = group["lr"], group["momentum"], group["momentum_form"]
        parameters, momenta = layers.parameters, layers.momenta
        added = list(torch._foreach_add(layers.gradients, parameters, alpha=group["weight_decay"]))
        if form != "popular":
            _scale_by_trust_(added, parameters, group)
        if form == "classic":
            torch._foreach_mul_(added, lr)
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, added)
        update = momenta
        if group["nesterov"]:
            update = list(torch._foreach_add(added, momenta, alpha=momentum))
        if form == "popular":
            update = [tensor.clone() for tensor in update]
            _scale_by_trust_(update, parameters, group)
        torch._foreach_add_(parameters, update, alpha=-1.0 if form == "classic" else -lr)


def _scale_by_trust_(
    updates: list[Tensor], parameters: list[Tensor], group: dict[str, Any]
) -> None:
    if group["adapt"]:
        p, u = _norms(parameters), _norms(updates)
        trust = torch.where((p > 0) & (u > 0), group["trust_coefficient"] * p / u, 1.0)
        torch._foreach_mul_(updates, list(trust.unbind()))


def _norms(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norms as one vector, on the tensors' device."""
    return torch.stack(list(torch._foreach_norm(tensors)))
