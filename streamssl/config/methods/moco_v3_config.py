"""Settings of MoCo v3 (arXiv:2104.02057)."""

from dataclasses import dataclass
from typing import Literal

from streamssl.config.parts.method_config import (
    MethodConfig,
    check_min,
    check_momentum,
    check_positive,
)
from streamssl.optim.schedules import MomentumKind


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCoV3Config(MethodConfig):
    """The authors' settings for a ResNet-50; a transformer has `head="vit", temperature=0.2`.

    `head`: "resnet" projects by two layers and predicts without a norm at the end; "vit" projects
    by three and predicts with one. `momentum_kind`: "cosine" raises the momentum to 1 over the run;
    "constant" keeps it, for runs without an end.
    """

    head: Literal["resnet", "vit"] = "resnet"
    dim: int = 256
    hidden_dim: int = 4096
    temperature: float = 1.0
    momentum: float = 0.99
    momentum_kind: MomentumKind = "cosine"

    def __post_init__(self) -> None:
        check_min(self, 1, "dim", "hidden_dim")
        check_positive(
            self, "the authors have 1.0 for ResNets and 0.2 for transformers", "temperature"
        )
        check_momentum(self.momentum, "the authors have 0.99")
