"""Settings of BYOL (arXiv:2006.07733)."""

from dataclasses import dataclass

from streamssl.config.parts.method_config import MethodConfig, check_min, check_momentum
from streamssl.optim.schedules import MomentumKind


@dataclass(frozen=True, kw_only=True, slots=True)
class BYOLConfig(MethodConfig):
    """The settings of the paper for 1,000 epochs (section 3.3); 300 epochs have momentum 0.99.

    `momentum_kind`: "cosine" raises the momentum of the target to 1 over the run; "constant" keeps
    it, for runs without an end.
    """

    dim: int = 256
    hidden_dim: int = 4096
    momentum: float = 0.996
    momentum_kind: MomentumKind = "cosine"

    def __post_init__(self) -> None:
        check_min(self, 1, "dim", "hidden_dim")
        check_momentum(self.momentum, "the paper has 0.996")
