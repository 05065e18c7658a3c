"""Settings of SimCLR v1 (arXiv:2002.05709) and v2 (arXiv:2006.10029)."""

from dataclasses import dataclass
from typing import ClassVar

from streamssl.config.parts.method_config import MethodConfig, check_min, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class SimCLRConfig(MethodConfig):
    """SimCLR as on ImageNet; v2 has `num_layers=3`, CIFAR-10 has `temperature=0.5`."""

    lr_power: ClassVar[float] = 0.5  # appendix B.1 of v1: better for small batches

    dim: int = 128
    num_layers: int = 2
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_min(self, 1, "dim", "num_layers")
        check_positive(self, "the paper has 0.1", "temperature")
