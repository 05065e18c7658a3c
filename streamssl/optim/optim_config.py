"""Settings of the optimizer; `optimizers.build_optimizer` builds it."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from shards.errors import ConfigError
from streamssl.optim.schedules import cosine

OptimName = Literal["sgd", "adamw", "larc", "lars"]
MomentumForm = Literal["plain", "classic", "popular"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimizer and rates; the defaults are SwAV's for a batch of 4096 (arXiv:2006.09882, A.2).

    `base_lr` is the rate at this run's own batch size: scale it before (0.3 per 256 is usual).
    `trust_coefficient` belongs to LARC and LARS, `momentum_form` to LARS (see `optimizers.LARS`),
    `betas` to AdamW, `momentum` to all but AdamW. Weight decay follows half a cosine to
    `final_weight_decay`, if that is given. `clip_norm` bounds the norm of all gradients together;
    the reading `gradient_norm` is the norm before. LARC and LARS divide each layer's gradient by
    its own norm, so it changes little there.
    """

    name: OptimName = "larc"
    base_lr: float = 4.8
    weight_decay: float = 1e-6
    final_weight_decay: float | None = None
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    momentum_form: MomentumForm = "plain"
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None

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
        if self.clip_norm is not None and not 0 < self.clip_norm < inf:
            raise ConfigError(
                f"clip_norm={self.clip_norm}; it must be above 0 and finite, such as twice the "
                "usual gradient_norm of metrics.jsonl: give that, or leave --optim.clip-norm out"
            )
        for name in ("base_lr", "weight_decay", "momentum", "trust_coefficient"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}; it must not be negative")

    def weight_decay_at(self, progress: float) -> float:
        """Return the weight decay at a share `progress` of the run."""
        if self.final_weight_decay is None:
            return self.weight_decay
        return cosine(progress, self.weight_decay, self.final_weight_decay)
