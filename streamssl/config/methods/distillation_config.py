"""Settings of distillation, the third stage of SimCLR v2 (arXiv:2006.10029)."""

from dataclasses import dataclass

from streamssl.config.parts.method_config import MethodConfig, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig(MethodConfig):
    """`teacher` is the folder of a fine-tuning run, or one of its checkpoints.

    The teacher is built as the config.toml of that run says.
    """

    teacher: str = ""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "the authors have 1", "temperature")
