"""Distillation without labels: the last of SimCLR v2's three stages.

Chen et al., arXiv:2006.10029, section 2. A student learns the class probabilities that a fine-tuned
teacher predicts for unlabelled images. With a network of the same kind it is self-distillation; a
smaller one learns most of what the large one knows.

Shape letters: B samples of this rank, C classes.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from shards.access import raise_denied
from shards.errors import ConfigError
from streamssl import checkpoint
from streamssl.config.methods.distillation_config import DistillationConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.methods.base import BuildContext, Method, SampleInfo, StepOutput
from streamssl.methods.fine_tuning import Classifier, check_single, newest_checkpoint
from streamssl.modules.backbones import build_backbone
from streamssl.modules.losses import at_least_float32


def distillation_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the loss of the student's logits against the teacher's, which get no gradient.

    Eq. 2: T^2 times the mean over the samples of the cross entropy of softmax(student / T) with
    softmax(teacher / T).
    """
    p_BC = (at_least_float32(teacher_BC.detach()) / temperature).softmax(dim=1)
    return F.cross_entropy(at_least_float32(student_BC) / temperature, p_BC) * temperature**2


def load_teacher(place: Path) -> Classifier:
    """Load the classifier of a fine-tuning run, as in its config.toml. Raises UserError."""
    path = checkpoint.find_settings(place)
    try:
        tables = tomllib.loads(path.read_text())
        method, backbone = tables["method"], tables["backbone"]
        if method["name"] != "fine-tune":
            raise ConfigError(
                f"the teacher {place} is of method {method['name']!r}; only a run of fine-tune has "
                "classes to teach: give the folder of such a run"
            )
        crop_size = max(group["size"] for group in tables["crops"]["groups"])
        encoder = build_backbone(BackboneConfig(**backbone).without_weights(), crop_size)
        teacher = Classifier(encoder, method["num_classes"], method["head_layers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_denied(error, path)
        raise ConfigError(
            f"{path} does not describe a teacher ({type(error).__name__}: {error}); give the "
            "folder of a run of fine-tune"
        ) from error
    for name, part in teacher.named_children():
        checkpoint.load_part(place, name, part)
    return teacher


class Distillation(Method):
    """A student (backbone and linear map) and its teacher, which is not trained."""

    def __init__(self, config: DistillationConfig, context: BuildContext) -> None:
        super().__init__(context)
        check_single(context.num_views, "distillation")
        self.config = config
        teacher = load_teacher(newest_checkpoint(config.teacher, "teacher"))
        student = Classifier(context.backbone, teacher.classes.out_features, head_layers=0)
        self.classes = student.classes
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Distillation":
        """Set the mode of the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute the loss of student and teacher on the same crops."""
        student_BC = at_least_float32(self.classes(self.backbone(views[0])))
        with torch.no_grad():
            teacher_BC = at_least_float32(self.teacher(views[0]))
        with torch.autocast(student_BC.device.type, enabled=False):
            loss = distillation_loss(student_BC, teacher_BC, self.config.temperature)
        agree = student_BC.argmax(dim=1) == teacher_BC.argmax(dim=1)
        return StepOutput(loss, {"agreement": agree.float().mean()})
