"""Optimizers of the field: LARC (SwAV) and LARS in its three forms, beside SGD and AdamW.

All update lists of tensors at once and never wait for the device: norms stay tensors. A parameter
without a gradient is left alone in that step: no momentum, no decay.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from shards.errors import ConfigError
from streamssl.optim.schedules import cosine

OptimName = Literal["sgd", "adamw", "larc", "lars"]
MomentumForm = Literal["plain", "classic", "popular"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Which optimizer; the defaults are SwAV's for a batch of 4096 (arXiv:2006.09882, A.2).

    `base_lr` is the rate at this run's own batch size: scale it before (0.3 per 256 is usual).
    `trust_coefficient` belongs to LARC and LARS, `momentum_form` to LARS (see there), `betas` to
    AdamW, `momentum` to all but AdamW. Weight decay goes to `final_weight_decay` along half a
    cosine, if that is given.
    """

    name: OptimName = "larc"
    base_lr: float = 4.8
    weight_decay: float = 1e-6
    final_weight_decay: float | None = None
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    momentum_form: MomentumForm = "plain"
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adamw", "larc", "lars"):
            raise ConfigError(
                f"optimizer name={self.name!r}; sgd, adamw, larc and lars are known; choose one"
            )
        if self.momentum_form != "plain" and self.name != "lars":
            raise ConfigError(
                f"momentum_form={self.momentum_form!r} with name={self.name!r}; only lars has "
                "forms; remove the setting"
            )
        if self.final_weight_decay is not None and not (
            self.final_weight_decay >= 0 and self.weight_decay > 0
        ):
            raise ConfigError(
                f"final_weight_decay={self.final_weight_decay} with "
                f"weight_decay={self.weight_decay}; it must not be negative, and begins above 0"
            )
        for name in ("base_lr", "weight_decay", "momentum", "trust_coefficient"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}; it must not be negative")

    def set_rates(self, optimizer: Optimizer, lr: float, progress: float) -> None:
        """Learning rate and weight decay of a step, `progress` of the way through the run."""
        decay = self.weight_decay
        if self.final_weight_decay is not None:
            decay = cosine(progress, self.weight_decay, self.final_weight_decay)
        for group in optimizer.param_groups:
            group["lr"] = lr
            if group["weight_decay"]:
                group["weight_decay"] = decay

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer at `base_lr`; the trainer sets `group["lr"]` at every step.

        Biases and norms (ndim <= 1) are spared decay and scaling by LARS, and decay by AdamW. LARC
        and SGD treat all parameters alike, as SwAV and MoCo do.
        """
        chosen = list(parameters)
        lr, weight_decay, momentum = self.base_lr, self.weight_decay, self.momentum
        if self.name == "sgd":
            return SGD(chosen, lr, momentum=momentum, weight_decay=weight_decay)
        if self.name == "adamw":
            groups = spare_vectors(chosen, weight_decay=weight_decay)
            return AdamW(groups, lr, betas=self.betas, weight_decay=weight_decay)
        trust = self.trust_coefficient
        if self.name == "larc":
            return LARC(
                chosen, lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust
            )
        groups = spare_vectors(chosen, weight_decay=weight_decay)
        return LARS(
            groups,
            lr,
            momentum=momentum,
            trust_coefficient=trust,
            momentum_form=self.momentum_form,
        )


def spare_vectors(
    parameters: Iterable[nn.Parameter], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Two parameter groups: tensors, and what has at most one dimension (biases and norms).

    The second has no weight decay and `adapt=False`, which tells LARS not to scale it.
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
    """Tensors of one group that are updated together: what has a gradient, and its momentum."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    momenta: list[Tensor]


class _TrustOptimizer(Optimizer):
    """The frame of LARC and LARS: walks over the groups and keeps the momenta."""

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
    No parameter is spared. Where |p| or |g| is 0 the gradient is taken as it is, without decay.
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
    """Layer-wise adaptive rates, arXiv:1708.03888, in the forms that the field uses.

    u = g + decay p; trust = trust_coefficient |p| / |u|, 1 where a norm is 0. `momentum_form`:
      plain    v = m v + trust u;       p -= lr v     MoCo v3, BYOL
      classic  v = m v + lr trust u;    p -= v        SimCLR (differs when lr changes)
      popular  v = m v + u, trust from |v|;  p -= lr trust v
    `nesterov` looks one step ahead in the last two. A group with `adapt=False` has trust 1: see
    `spare_vectors`.
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
    """Euclidean norms as one vector, on the tensors' device."""
    return torch.stack(list(torch._foreach_norm(tensors)))
