"""Distillation without labels: the last of SimCLR v2's three stages.

Chen et al., arXiv:2006.10029, section 2. A student learns what a fine-tuned teacher believes of
images that nobody labelled. With a net of the same kind it is self-distillation; a smaller one
gets most of what the large one knows.

Shape letters: B samples of this rank, C classes.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl import checkpoint
from streamssl.methods.base import Samples, StepOutput
from streamssl.methods.fine_tuning import Classifier, check_single, newest_checkpoint
from streamssl.modules.backbones import BackboneConfig, build_backbone
from streamssl.modules.losses import at_least_float32


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """`teacher` is a run of fine-tuning, or one of its checkpoints; its settings say what it is."""

    teacher: str = ""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature}; it must be above 0; the authors have 1"
            )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        num_steps: int = 0,  # noqa: ARG002 - every method is built alike; this one never changes
        seed: int = 0,  # noqa: ARG002 - and draws nothing
        group: ProcessGroup | None = None,
    ) -> "Distillation":
        """`num_views`: one view; `backbone.num_features` its width. Raises ConfigError."""
        check_single(num_views, "distillation")
        teacher = load_teacher(newest_checkpoint(self.teacher, "teacher"))
        return Distillation(self, backbone, teacher, group)


def distillation_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """The student's logits learn the teacher's probabilities; no gradient to the teacher.

    Eq. 2: T^2 times the mean over the samples of the cross entropy of softmax(student / T) with
    softmax(teacher / T).
    """
    p_BC = (at_least_float32(teacher_BC.detach()) / temperature).softmax(dim=1)
    return F.cross_entropy(at_least_float32(student_BC) / temperature, p_BC) * temperature**2


def load_teacher(place: Path) -> Classifier:
    """The classifier of a run of fine-tuning, built as its config.toml says. Raises ConfigError."""
    path = place.parent.parent / "config.toml"
    try:
        tables = tomllib.loads(path.read_text())
        method, backbone = tables["method"], tables["backbone"]
        if method["name"] != "fine-tune":
            raise ConfigError(
                f"the teacher {place} is of method {method['name']!r}; only a run of fine-tune has "
                "classes to teach: give the folder of one"
            )
        crop_size = max(group["size"] for group in tables["crops"]["groups"])
        encoder = build_backbone(BackboneConfig(**backbone), crop_size)
        teacher = Classifier(encoder, method["num_classes"], method["head_layers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} does not say what the teacher is ({type(error).__name__}: {error}); give the "
            "folder of a run of fine-tune"
        ) from error
    for name, part in teacher.named_children():
        checkpoint.load_part(place, name, part)
    return teacher


class Distillation(nn.Module):
    """A student, backbone and linear map, and the teacher, which is never trained."""

    def __init__(
        self,
        config: DistillationConfig,
        backbone: nn.Module,
        teacher: Classifier,
        group: ProcessGroup | None,
    ) -> None:
        super().__init__()
        self.config, self.group = config, group
        student = Classifier(backbone, teacher.classes.out_features, head_layers=0)
        self.backbone, self.classes = backbone, student.classes
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Distillation":
        """The teacher's batch norm uses what it learned, whatever the student's does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(
        self,
        views: Sequence[Tensor],
        *,
        step: int,  # noqa: ARG002 - nothing changes from step to step
        samples: Samples | None = None,  # noqa: ARG002 - nobody's label is asked for
    ) -> StepOutput:
        """Both see the same crops."""
        student_BC = at_least_float32(self.classes(self.backbone(views[0])))
        with torch.no_grad():
            teacher_BC = at_least_float32(self.teacher(views[0]))
        with torch.autocast(student_BC.device.type, enabled=False):
            loss = distillation_loss(student_BC, teacher_BC, self.config.temperature)
        agree = student_BC.argmax(dim=1) == teacher_BC.argmax(dim=1)
        return StepOutput(loss, {"agreement": agree.float().mean()})

    def after_backward(self, step: int) -> None:
        """Nothing."""

    def after_step(self, step: int) -> None:
        """Nothing."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Those of the student."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
