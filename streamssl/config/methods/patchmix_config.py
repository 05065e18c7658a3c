"""Settings of PatchMix (arXiv:2306.12243)."""

from dataclasses import dataclass
from typing import Literal

from shards.errors import ConfigError
from streamssl.config.parts.method_config import (
    MethodConfig,
    check_min,
    check_momentum,
    check_positive,
)
from streamssl.optim.schedules import MomentumKind


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchMixConfig(MethodConfig):
    """The settings of the paper's code for ViT-S and ViT-B.

    `patch_size` in pixels must divide the side of every view. `keys` come from a momentum copy, or
    from the encoder's "own" outputs, as for ViT-T. `identity_smoothing` smooths the targets of
    images that are not mixed; the authors' code has 0.1 by an oversight, and the published numbers
    were made with it.
    """

    patch_size: int = 16
    num_mixed: int = 2
    dim: int = 256
    hidden_dim: int = 4096
    temperature: float = 0.2
    keys: Literal["momentum", "own"] = "momentum"
    momentum: float = 0.996
    momentum_kind: MomentumKind = "cosine"
    smoothing: float = 0.0
    identity_smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_min(self, 1, "patch_size", "num_mixed", "dim", "hidden_dim")
        check_positive(self, "the paper has 0.2", "temperature")
        check_momentum(self.momentum, "the paper has 0.996")
        for name in ("smoothing", "identity_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must lie in [0, 1)")
