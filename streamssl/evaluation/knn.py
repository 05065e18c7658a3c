"""Weighted k-NN on frozen features: the cheapest score of an encoder.

The protocol is that of Wu et al. 2018 (arXiv:1805.01978, section 3.4). Let s be the cosine
similarity to a training feature: the k nearest training images vote for their class with weight
exp(s / temperature), and the class with the largest sum wins.

Shape letters: N training images, M test images, D features, C classes, B batch, S pixels.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shards.crops.recipe import IMAGENET_MEAN, IMAGENET_STD
from shards.errors import ConfigError, UserError

Features = NDArray[np.float32]
Labels = NDArray[np.integer[Any]]

# Test rows in one search; bounds the votes, (rows, C) float64.
_ROWS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnConfig:
    """Numbers of neighbours, one accuracy for each; temperature of the vote weights."""

    ks: tuple[int, ...] = (20, 200)
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(
                f"k-NN with ks={self.ks}; it needs at least one k, each 1 or more: give --ks 20"
            )
        if not self.temperature > 0:
            raise ConfigError(
                f"k-NN with temperature={self.temperature}; it must be above 0: 0.1 is usual"
            )


def knn_accuracy(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    config: KnnConfig | None = None,
) -> dict[int, float]:
    """Return the top-1 accuracy in percent for each k.

    Features are (N, D) and (M, D), labels (N,) and (M,). The smaller of two classes with equal
    weight wins. Raises ConfigError when a k exceeds N, UserError for unusable features or labels.
    """
    config = config or KnnConfig()
    check_features(train_features, train_labels, "training")
    check_features(test_features, test_labels, "test")
    _check_pair(train_features, train_labels, test_features, test_labels, config)
    faiss.omp_set_num_threads(torch.get_num_threads())  # default: all cores of the machine
    index = faiss.IndexFlatIP(train_features.shape[1])
    index.add(unit_rows(train_features))
    queries = unit_rows(test_features)
    num_right = dict.fromkeys(config.ks, 0)
    for start in range(0, len(queries), _ROWS):
        rows = slice(start, start + _ROWS)
        similarities, neighbours = index.search(queries[rows], max(config.ks))
        # The index returns equal similarities in any order; sorting makes the sums repeatable.
        order = np.lexsort((neighbours, -similarities))
        weights = np.exp(np.take_along_axis(similarities, order, 1) / config.temperature)
        classes = train_labels[np.take_along_axis(neighbours, order, 1)]
        for k in config.ks:
            num_right[k] += int((_vote(weights[:, :k], classes[:, :k]) == test_labels[rows]).sum())
    return {k: 100.0 * right / len(test_labels) for k, right in num_right.items()}


def embed(
    backbone: nn.Module,
    batches: Iterable[NDArray[np.uint8]],
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Features:
    """Return features (N, D) float32 of uint8 RGB images (B, S, S, 3).

    The backbone stays on its device. It is in eval mode during the call; each module gets its
    previous mode back. Raises UserError if there is no image.
    """
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    with (
        _evaluating(backbone),
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        features = [backbone(_normalised_images(b, device)).float().cpu() for b in batches]
    if not features:
        raise UserError(
            "no image to embed; an evaluation needs at least one: name shards with images"
        )
    return torch.cat(features).numpy()


def raw_pixel_features(images: NDArray[np.uint8], size: int = 16) -> Features:
    """Return images (N, S, S, 3), resized to `size`, as features (N, size * size * 3), 0 to 1.

    They are the baseline without learning.
    """
    small = [cv2.resize(p, (size, size), interpolation=cv2.INTER_AREA) for p in images]
    return np.stack(small).reshape(len(small), -1).astype(np.float32) / np.float32(255)


def unit_rows(features: Features) -> Features:
    """Return rows of length 1, contiguous for the index; a row of zeros stays zero."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(norms, 1e-12), dtype=np.float32)


def _vote(weights: NDArray[np.floating[Any]], classes: Labels) -> NDArray[np.int64]:
    """Return the class with the largest sum of weights of each row; inputs are (rows, k)."""
    num_rows, num_classes = len(classes), int(classes.max()) + 1
    cells = np.arange(num_rows)[:, None] * num_classes + classes
    votes = np.bincount(cells.ravel(), weights.ravel(), num_rows * num_classes)
    return votes.reshape(num_rows, num_classes).argmax(1)


def _normalised_images(batch: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return (B, S, S, 3) uint8 as normalised (B, 3, S, S) float32 in channels-last format."""
    pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(device)
    mean = torch.tensor(IMAGENET_MEAN, device=device)
    std = torch.tensor(IMAGENET_STD, device=device)
    # Permuting gives the channels-last format without a copy.
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode. Modes are restored for each module: some may be frozen on purpose."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_features(features: Features, labels: Labels, which: str) -> None:
    """Raise UserError unless each image has a finite feature and a class."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise UserError(
            f"{which} features {features.shape} with labels {labels.shape}; they must be "
            "(N, D) and (N,) with N of 1 or more; check that every image has one feature and one "
            "label"
        )
    if not np.isfinite(features).all():
        raise UserError(
            f"{int((~np.isfinite(features)).any(1).sum())} of {len(features)} {which} features are "
            f"not finite; all must be; check the checkpoint"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError(
            f"{which} labels of type {labels.dtype} from {labels.min()} to {labels.max()}; class "
            f"numbers are whole and start at 0; leave out the images without a label"
        )


def _check_pair(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    config: KnnConfig,
) -> None:
    if train_features.shape[1] != test_features.shape[1]:
        raise UserError(
            f"training features have {train_features.shape[1]} numbers and test features "
            f"{test_features.shape[1]}; they must have as many; embed both with one encoder"
        )
    if max(config.ks) > len(train_labels):
        usable = max(1, min(20, len(train_labels) // 4))
        raise ConfigError(
            f"k-NN with k={max(config.ks)} on {len(train_labels)} training images; k may be up "
            f"to their number: choose smaller ones, such as --ks {usable}"
        )
    unknown = np.setdiff1d(test_labels, train_labels)
    if len(unknown):
        raise UserError(
            f"test labels {unknown[:5].tolist()} have no training image; every test class needs "
            f"one; check that both sets number their classes alike"
        )
