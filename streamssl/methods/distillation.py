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
from streamssl.config.methods.distillation_config import DistillationConfig, TeacherNetwork
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


def find_network(teacher: str, *, fresh: bool = True) -> TeacherNetwork:
    """Return the network of a fine-tuning run, as in its config.toml. Raises UserError.

    A resumed run, which is not `fresh`, has the weights, so that file is enough.
    """
    if fresh:
        return _read_network(checkpoint.find_settings(newest_checkpoint(teacher, "teacher")))
    folder = Path(teacher).expanduser()
    path = next((p for p in (folder, folder.parent.parent) if (p / "config.toml").exists()), None)
    if path is None:
        raise ConfigError(
            f"method.teacher={teacher!r} is gone; the checkpoints of this run have its weights, "
            "but an earlier version did not save the shape of its network with them: put the "
            f"config.toml of the teacher back as {folder}/config.toml, or give a new --out"
        )
    return _read_network(path / "config.toml")


def _read_network(path: Path) -> TeacherNetwork:
    try:
        tables = tomllib.loads(path.read_text())
        method = tables["method"]
        if method["name"] != "fine-tune":
            raise ConfigError(
                f"the teacher of {path} is of method {method['name']!r}; only a run of fine-tune "
                "has classes to teach: give the folder of such a run"
            )
        return TeacherNetwork(
            backbone=BackboneConfig(**tables["backbone"]).without_weights(),
            crop_size=max(group["size"] for group in tables["crops"]["groups"]),
            num_classes=method["num_classes"],
            head_layers=method["head_layers"],
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise_denied(error, path)
        raise ConfigError(
            f"{path} does not describe a teacher ({type(error).__name__}: {error}); give the "
            "folder of a run of fine-tune"
        ) from error


def build_teacher(network: TeacherNetwork) -> Classifier:
    """Build the classifier of a fine-tuning run, without its weights."""
    encoder = build_backbone(network.backbone, network.crop_size)
    return Classifier(encoder, network.num_classes, network.head_layers)


def load_teacher(place: Path, teacher: Classifier) -> None:
    """Load the weights of a teacher from a checkpoint. Raises ConfigError."""
    for name, part in teacher.named_children():
        checkpoint.load_part(place, name, part)


class Distillation(Method):
    """A student (backbone and linear map) and its teacher, which is not trained."""

    def __init__(self, config: DistillationConfig, context: BuildContext) -> None:
        super().__init__(context)
        check_single(context.num_views, "distillation")
        self.config = config
        network = config.network or find_network(config.teacher, fresh=context.fresh)
        teacher = build_teacher(network)
        if context.fresh:
            load_teacher(newest_checkpoint(config.teacher, "teacher"), teacher)
        student = Classifier(context.backbone, teacher.classes.out_features, head_layers=0)
        self.classes = student.classes
        self.classes.label_of_class = teacher.classes.label_of_class.clone()
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
