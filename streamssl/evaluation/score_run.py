"""Scores of the encoder of a run on labelled shards."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shards.crops.opencv import OpenCVEngine
from shards.errors import ConfigError
from shards.inspect.labelled_images import iter_labelled
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from streamssl import checkpoint
from streamssl.config.run_config import RunConfig, read_toml
from streamssl.evaluation.knn import Features, KnnConfig, embed, knn_accuracy, raw_pixel_features
from streamssl.evaluation.retrieval import RetrievalScore, retrieve
from streamssl.evaluation.scores import KnnScore
from streamssl.modules.backbones import build_backbone

Encoder = Literal["raw pixels", "untrained", "trained"]
_POLL_SECONDS = 1.0
_Embedded = tuple[Features, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class KnnResult:
    """Top-1 accuracy in percent by encoder and k, and the numbers of images."""

    accuracy: dict[Encoder, dict[int, float]]
    num_train: int
    num_test: int
    step: int

    @property
    def score(self) -> KnnScore:
        """Score of the trained encoder, in the form that is saved."""
        return KnnScore(self.step, self.accuracy["trained"], self.num_train, self.num_test)


def knn_of_run(
    run: Path,
    train: str,
    test: str,
    encoders: tuple[Encoder, ...] = ("trained",),
    config: KnnConfig | None = None,
    size: int | None = None,
) -> KnnResult:
    """Return the k-NN accuracy on the shards `test`, with neighbours from the shards `train`.

    `run` is a run folder (its newest checkpoint) or one checkpoint of it. `size` is in pixels, by
    default that of the run's largest crop. Raises UserError.
    """
    accuracy: dict[Encoder, dict[int, float]] = {}
    num_train = num_test = 0
    step, found = _features_of_run(run, (train, test), encoders, size)
    for encoder, ((train_x, train_y), (test_x, test_y)) in found:
        accuracy[encoder] = knn_accuracy(train_x, train_y, test_x, test_y, config)
        num_train, num_test = len(train_y), len(test_y)
    return KnnResult(accuracy, num_train, num_test, step)


def iter_checkpoints(run: Path) -> Iterator[Path]:
    """Yield the newest checkpoint of a run, then each newer one, up to that of the last step.

    A checkpoint that is no longer the newest when the caller asks for the next one is skipped. A
    run that stopped before its last step is waited for: it may be resumed. Raises ConfigError.
    """
    if not (run / "config.toml").exists():
        raise ConfigError(
            f"{run} is not the folder of a run (it has no config.toml), and only a run can be "
            "followed: name the --out of `streamssl pretrain` once it trains, or leave --follow out"
        )
    num_steps = read_toml(run / "config.toml").num_steps
    seen = -1
    while seen < num_steps:
        for newest in checkpoint.list_checkpoints(run)[-1:]:
            step = int(checkpoint.read_fields(newest)["step"])
            if step > seen:
                yield newest
                seen = step
                break
        else:
            time.sleep(_POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """Retrieval scores by encoder, and the number of images in the gallery."""

    by_encoder: dict[Encoder, RetrievalScore]
    num_gallery: int
    step: int


def retrieval_of_run(
    run: Path,
    query: str,
    gallery: str,
    encoders: tuple[Encoder, ...] = ("trained",),
    ranks: tuple[int, ...] = (1, 5, 10),
    size: int | None = None,
) -> RetrievalResult:
    """Return the retrieval scores of the images of `query` in the shards `gallery`.

    The other arguments are those of `knn_of_run`. Raises UserError.
    """
    by_encoder: dict[Encoder, RetrievalScore] = {}
    num_gallery = 0
    step, found = _features_of_run(run, (query, gallery), encoders, size)
    for encoder, ((query_x, query_y), (gallery_x, gallery_y)) in found:
        by_encoder[encoder] = retrieve(query_x, query_y, gallery_x, gallery_y, ranks)
        num_gallery = len(gallery_y)
    return RetrievalResult(by_encoder, num_gallery, step)


def _features_of_run(
    run: Path, patterns: tuple[str, str], encoders: tuple[Encoder, ...], size: int | None
) -> tuple[int, Iterator[tuple[Encoder, tuple[_Embedded, _Embedded]]]]:
    """Return the step of the checkpoint, and features and labels of both sets by encoder."""
    folder, newest = find_checkpoint(run)
    settings = read_toml(folder / "config.toml")
    step = int(checkpoint.read_fields(newest)["step"])
    reader = RangeReader()
    first, second = (open_manifest(pattern, reader) for pattern in patterns)
    pixels = size or settings.largest_crop

    def embed_both() -> Iterator[tuple[Encoder, tuple[_Embedded, _Embedded]]]:
        for encoder in encoders:
            backbone = _build(settings, encoder, newest)
            yield (
                encoder,
                (
                    _features(backbone, first, reader, pixels),
                    _features(backbone, second, reader, pixels),
                ),
            )

    return step, embed_both()


def find_checkpoint(run: Path) -> tuple[Path, Path]:
    """Return the run folder and the checkpoint for a path to either. Raises ConfigError."""
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
    torch.manual_seed(settings.seed)  # gives the initial weights of the run
    backbone = build_backbone(settings.backbone, settings.largest_crop)
    if encoder == "trained":
        checkpoint.load_backbone(newest, backbone)
    moved: nn.Module = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _features(
    backbone: nn.Module | None, manifest: Manifest, reader: RangeReader, size: int
) -> _Embedded:
    """Return features and labels of all labelled images; images are not kept."""
    labels: list[NDArray[np.int64]] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        for part in iter_labelled(manifest, reader, size, OpenCVEngine):
            if len(part.labels):
                labels.append(part.labels)
                yield part.images

    if backbone is None:
        features = np.concatenate([raw_pixel_features(part) for part in images()])
    else:
        features = embed(backbone, images())
    return features, np.concatenate(labels)
