"""Settings of distillation, the third stage of SimCLR v2 (arXiv:2006.10029)."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.parts.method_config import MethodConfig, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherNetwork:
    """Network of a teacher: a backbone for crops of `crop_size` pixels, and the layers after it."""

    backbone: BackboneConfig
    crop_size: int
    num_classes: int
    head_layers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig(MethodConfig):
    """`teacher` is the folder of a fine-tuning run, or one of its checkpoints.

    The teacher is built as the config.toml of that run says. A run keeps that as `network`, and
    the weights in its checkpoints, so that it can be resumed when the folder is gone.
    """

    teacher: str = ""
    temperature: float = 1.0
    network: Annotated[TeacherNetwork | None, tyro.conf.Suppress] = None
    """Network of the teacher; a new run takes it from the teacher's folder."""

    def __post_init__(self) -> None:
        check_positive(self, "the authors have 1", "temperature")
