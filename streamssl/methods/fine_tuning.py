"""Fine-tuning on few labels: the second of SimCLR v2's three stages.

Chen et al., arXiv:2006.10029, section 2. A pretrained encoder learns classes from few labels. The
classifier starts after the first layer of the projection head (figure 5).

Shape letters: B samples of this rank, C classes, D feature.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from shards.samples.labels import FIRST_HASH
from streamssl import checkpoint
from streamssl.config.methods.fine_tuning_config import FineTuneConfig
from streamssl.distributed.collectives import all_gather_rows, all_reduce_sum, world_size
from streamssl.methods.base import BuildContext, Method, SampleInfo, StepOutput
from streamssl.modules.heads import simclr_head
from streamssl.modules.losses import at_least_float32

LAYERS_PER_HEAD_LAYER = 3  # linear, batch norm, ReLU


class ClassLayer(nn.Linear):
    """Linear map to classes, and the label of each class.

    `label_of_class` (C,) int64 is -1 for a class that no sample had so far. A class number is its
    own class. A word, which comes as a large number, takes the first class that is free, in the
    order of the samples; so all ranks, and a resumed run, give it the same one.
    """

    label_of_class: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        labels = torch.full((num_classes,), -1, dtype=torch.int64)
        self.register_buffer("label_of_class", labels)
        self._known_labels: list[int] | None = None  # copy on the host

    def number(self, labels_B: Tensor, group: ProcessGroup | None) -> Tensor:
        """Return the classes (B,) of labels on the CPU; negative ones stay. Raises ConfigError."""
        device = self.label_of_class.device
        labels_G = labels_B if group is None else all_gather_rows(labels_B.to(device), group)
        distinct = dict.fromkeys(labels_G.tolist())
        if self._known_labels is None:
            self._known_labels = self.label_of_class.tolist()
        known = list(self._known_labels)
        class_of = {label: number for number, label in enumerate(known) if label >= 0}
        new = [label for label in distinct if label >= 0 and label not in class_of]
        for label in sorted(new, key=lambda label: label >= FIRST_HASH):  # numbers come first
            class_of[label] = self._place(label, known)
            known[class_of[label]] = label
        if new:
            self.label_of_class.copy_(torch.tensor(known), non_blocking=True)
            self._known_labels = known
        classes_B = torch.tensor([class_of.get(x, x) for x in labels_B.tolist()])
        return classes_B.to(device, non_blocking=True)

    def _place(self, label: int, known: list[int]) -> int:
        """Return a free class for a label: its own one for a number, if no word has that."""
        size = len(known)
        if size <= label < FIRST_HASH:
            raise ConfigError(
                f"a label of {label} with num_classes={size}; labels are whole numbers below that, "
                "or words: raise --method.num-classes, or name another --label"
            )
        if label < size and known[label] < 0:
            return label
        if -1 not in known:
            raise ConfigError(
                f"the labels have {size + 1} values or more, and num_classes={size}; each word is "
                "a class: raise --method.num-classes, or name another --label"
            )
        return known.index(-1)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_labels = None


class Classifier(nn.Module):
    """Backbone, the first layers of a projection head, and a linear map to classes."""

    def __init__(self, backbone: nn.Module, num_classes: int, head_layers: int) -> None:
        super().__init__()
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.backbone = backbone
        whole = simclr_head(width, width, head_layers + 1)
        self.head = whole[: LAYERS_PER_HEAD_LAYER * head_layers]
        self.classes = ClassLayer(width, num_classes)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.zeros_(self.classes.bias)

    def forward(self, crops: Tensor) -> Tensor:
        logits_BC: Tensor = self.classes(self.head(self.backbone(crops)))
        return logits_BC

    def load_start(self, place: Path) -> None:
        """Load backbone and head from a checkpoint of SimCLR. Raises ConfigError."""
        checkpoint.load_part(place, "backbone", self.backbone)
        for number, layer in enumerate(self.head):
            if layer.state_dict():
                checkpoint.load_part(place, f"head.{number}", layer)


def newest_checkpoint(run: str, name: str) -> Path:
    """Return the checkpoint that the setting `name` means, a run or a checkpoint of one."""
    folder = Path(run).expanduser()
    if run and (folder / "state.json").exists():
        return folder
    found = checkpoint.list_checkpoints(folder) if run else []
    if not found:
        raise ConfigError(
            f"method.{name}={run!r} holds no checkpoint; it must be the folder of a run, or of one "
            f"of its checkpoints: give --method.{name} runs/a"
        )
    return found[-1]


def check_single(num_views: Sequence[int], purpose: str) -> None:
    """Raise ConfigError unless a sample has one view."""
    if sum(num_views) != 1:
        raise ConfigError(
            f"num_views={tuple(num_views)}; {purpose} takes one view of an image; give one group "
            "of one view"
        )


def classification_loss(logits_BC: Tensor, labels_B: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the cross entropy, the mean over the labelled samples of all ranks.

    Scaled so that the average over ranks is that mean, however labels are distributed over ranks.
    """
    count = all_reduce_sum((labels_B >= 0).sum(), group).clamp(min=1)
    targets_B = labels_B.clamp(min=-1)
    total = F.cross_entropy(logits_BC, targets_B, ignore_index=-1, reduction="sum")
    return total * world_size(group) / count


class FineTune(Method):
    """A classifier that is trained from its first layer to its last."""

    def __init__(self, config: FineTuneConfig, context: BuildContext) -> None:
        super().__init__(context)
        check_single(context.num_views, "fine-tuning")
        classifier = Classifier(context.backbone, config.num_classes, config.head_layers)
        if context.fresh:
            classifier.load_start(newest_checkpoint(config.start, "start"))
        self.head, self.classes = classifier.head, classifier.classes

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute the cross entropy. Raises ConfigError for a label that is no class."""
        if samples is None or samples.labels is None:
            raise ConfigError(
                "fine-tuning learns from labels, and the run has no label; give --label cls, or a "
                "field of the samples' JSON"
            )
        labels_B = self.classes.number(samples.labels, self.group)
        logits_BC = at_least_float32(self.classes(self.head(self.backbone(views[0]))))
        with torch.autocast(logits_BC.device.type, enabled=False):
            loss = classification_loss(logits_BC, labels_B, self.group)
        is_right_B = logits_BC.argmax(dim=1) == labels_B
        counts = torch.stack([is_right_B.sum(), (labels_B >= 0).sum()])
        num_right, num_labelled = all_reduce_sum(counts, self.group)
        readings: dict[str, Tensor | float] = {
            "accuracy": num_right / num_labelled.clamp(min=1),
            "labelled": num_labelled / (len(labels_B) * world_size(self.group)),
        }
        return StepOutput(loss, readings)
