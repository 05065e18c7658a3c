"""The encoder of a run, scored on labelled shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shards.errors import ConfigError
from shards.looking.labelled import iter_labelled
from shards.manifest import Manifest, open_manifest
from shards.stores.sources import RangeReader
from streamssl import checkpoint
from streamssl.backbones import build_backbone
from streamssl.config import RunConfig, read_toml
from streamssl.evaluation.knn import Features, KnnConfig, embed, knn_accuracy, raw_pixel_features

Encoder = Literal["raw pixels", "untrained", "trained"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Top-1 accuracy in percent by k for every encoder that was asked for, and on how much."""

    accuracy: dict[Encoder, dict[int, float]]
    num_train: int
    num_test: int
    step: int


def knn_of_run(
    run: Path,
    train: str,
    test: str,
    encoders: tuple[Encoder, ...] = ("trained",),
    config: KnnConfig | None = None,
    size: int | None = None,
) -> Scores:
    """k-NN accuracy on the shards of `test`, neighbours from those of `train`.

    `run` is a run folder (its newest checkpoint) or one checkpoint of it. `size` in pixels is that
    of the run's largest crop unless given. Raises UserError.
    """
    folder, newest = find_checkpoint(run)
    settings = read_toml(folder / "config.toml")
    step = int(checkpoint.read_fields(newest)["step"])
    reader = RangeReader()
    manifests = open_manifest(train, reader), open_manifest(test, reader)
    size = size or settings.largest_crop
    accuracy: dict[Encoder, dict[int, float]] = {}
    num_train = num_test = 0
    for encoder in encoders:
        backbone = _build(settings, encoder, newest)
        (train_x, train_y), (test_x, test_y) = (
            _features(backbone, manifest, reader, size) for manifest in manifests
        )
        accuracy[encoder] = knn_accuracy(train_x, train_y, test_x, test_y, config)
        num_train, num_test = len(train_y), len(test_y)
    return Scores(accuracy, num_train, num_test, step)


def find_checkpoint(run: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that `run` means. Raises ConfigError."""
    if (run / "state.json").exists():
        return run.parent.parent, run
    checkpoints = checkpoint.list_checkpoints(run)
    if not checkpoints:
        raise ConfigError(
            f"{run} holds no checkpoint; give the folder of a run that has saved one "
            "(--out of `streamssl pretrain`), or a folder such as runs/a/checkpoints/step-00001000"
        )
    return run, checkpoints[-1]


def _build(settings: RunConfig, encoder: Encoder, newest: Path) -> nn.Module | None:
    if encoder == "raw pixels":
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)  # the weights that the run began with
    backbone = build_backbone(settings.backbone, settings.largest_crop)
    if encoder == "trained":
        checkpoint.load_backbone(newest, backbone)
    moved: nn.Module = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _features(
    backbone: nn.Module | None, manifest: Manifest, reader: RangeReader, size: int
) -> tuple[Features, NDArray[np.int64]]:
    """Features and labels of every labelled picture; pictures pass through, they are not kept."""
    labels: list[NDArray[np.int64]] = []

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for part in iter_labelled(manifest, reader, size):
            if len(part.labels):
                labels.append(part.labels)
                yield part.pictures

    if backbone is None:
        features = np.concatenate([raw_pixel_features(part) for part in pictures()])
    else:
        features = embed(backbone, pictures())
    return features, np.concatenate(labels)
