"""Settings of SupCon (arXiv:2004.11362)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from shards.errors import ConfigError
from streamssl.config.parts.method_config import MethodConfig, RunFacts, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class SupConConfig(MethodConfig):
    """The authors' settings for CIFAR-10 and ImageNet; the run's `label` names the labels.

    `anchors`: "all" crops search their positives among all crops, or only the first "one" of each
    image. The gradient is scaled by `temperature / base_temperature`, as theirs is.
    """

    lr_power: ClassVar[float] = 0.5  # as SimCLR

    dim: int = 128
    temperature: float = 0.1
    base_temperature: float = 0.07
    anchors: Literal["all", "one"] = "all"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"dim={self.dim}; it must be at least 1; the paper has 128")
        check_positive(self, "the authors have 0.1 and 0.07", "temperature", "base_temperature")

    def check(self, run: RunFacts) -> None:
        """Accept a run with labels and one without, which is SimCLR."""
