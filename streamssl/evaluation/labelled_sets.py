"""Labelled sets of an evaluation: features, and classes that mean the same in both sets."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from shards.crops.native import NativeEngine
from shards.errors import UserError
from shards.inspect.labelled_images import LabelledSet, iter_labelled
from shards.samples.labels import Label
from streamssl.evaluation.knn import Features, embed, raw_pixel_features
from streamssl.evaluation.set_options import SetCounts

_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class EmbeddedSet:
    """Features (N, D) of the images of a set, and their N labels as in `LabelledImages`."""

    which: str
    features: Features
    labels: tuple[Label, ...]
    names: tuple[Label, ...]
    counts: SetCounts


def embed_set(
    backbone: nn.Module | None, which: str, data: LabelledSet, size: int, max_left_out: float
) -> EmbeddedSet:
    """Return the features of all labelled images; images are not kept. Without a `backbone` they
    are raw pixels.

    Raises UserError if there is no label, or if more samples than `max_left_out` are unreadable.
    """
    labels: list[Label] = []
    names: list[Label] = []
    rejects: Counter[str] = Counter()
    num_unlabelled = 0

    def images() -> Iterator[NDArray[np.uint8]]:
        nonlocal num_unlabelled
        for part in iter_labelled(data, size, NativeEngine):
            labels.extend(part.labels)
            names.extend(part.names)
            rejects.update(part.rejects)
            num_unlabelled += part.num_unlabelled
            if len(part.labels):
                yield part.images

    if backbone is None:
        features = np.concatenate([raw_pixel_features(part) for part in images()])
    else:
        features = embed(backbone, images())
    is_named = names != labels or all(isinstance(label, str) for label in labels)
    counts = SetCounts(len(labels), dict(rejects), num_unlabelled, is_named=is_named)
    num_read = len(labels) + num_unlabelled
    if rejects.total() > max_left_out * (num_read + rejects.total()):
        raise UserError(
            f"{counts.describe(which)}; more than {max_left_out:.0%} of a set must not be "
            "unreadable, since a score of the rest is not one of the set: mend the shards, which "
            "`streamssl shards verify` explains, or raise --max-left-out"
        )
    return EmbeddedSet(which, features, tuple(labels), tuple(names), counts)


def number_classes(
    first: EmbeddedSet, second: EmbeddedSet
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the labels of both sets as numbers that mean the same class.

    Classes are matched by name if both sets have names, in `classes.txt` or as labels, else by
    number.
    """
    labels = _compared(first, second)
    known = {*labels[0], *labels[1]}
    order = sorted(known, key=lambda label: (isinstance(label, str), label))
    numbers = {label: number for number, label in enumerate(order)}
    first_N, second_N = (
        np.array([numbers[label] for label in each], dtype=np.int64) for each in labels
    )
    return first_N, second_N


def check_known(first: EmbeddedSet, second: EmbeddedSet) -> None:
    """Raise UserError unless each class of the second set is one of the first."""
    first_N, second_N = number_classes(first, second)
    unknown = np.isin(second_N, first_N, invert=True)
    if not unknown.any():
        return
    found, known = _compared(second, first)
    names = [name for name, is_unknown in zip(found, unknown, strict=True) if is_unknown]
    raise UserError(
        f"the {second.which} classes {_shown(names)} have no {first.which} image, whose classes "
        f"are {_shown(known)}; every {second.which} class needs one: name sets with the "
        "same classes, or another --label"
    )


def _compared(first: EmbeddedSet, second: EmbeddedSet) -> tuple[Sequence[Label], Sequence[Label]]:
    if first.counts.is_named and second.counts.is_named:
        return first.names, second.names
    return first.labels, second.labels


def _shown(names: Sequence[Label]) -> str:
    different = sorted(set(names), key=lambda label: (isinstance(label, str), label))
    more = len(different) - _MAX_SHOWN
    shown = ", ".join(map(str, different[:_MAX_SHOWN]))
    return f"{shown} and {more:,} more" if more > 0 else shown
