"""Settings of fine-tuning, the second stage of SimCLR v2 (arXiv:2006.10029)."""

from dataclasses import dataclass

from shards.errors import ConfigError
from streamssl.config.parts.method_config import MethodConfig, RunFacts, check_min


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneConfig(MethodConfig):
    """`start` is the folder of a SimCLR run, or one of its checkpoints.

    The run's `label` names the classes. `head_layers` of the projection head are kept; 0 starts at
    the end of the encoder. Labels are whole numbers below `num_classes`, or that many words or
    fewer; samples without a label are skipped.
    """

    start: str = ""
    num_classes: int = 1000
    head_layers: int = 1

    def __post_init__(self) -> None:
        check_min(self, 2, "num_classes")
        check_min(self, 0, "head_layers")

    def check(self, run: RunFacts) -> None:
        if not run.label:
            raise ConfigError(
                "label='' with method fine-tune, which learns from labels; give --label cls, or a "
                "field of the samples' JSON"
            )
