"""Synthetic images: reproducible, balanced, and distinguishable by texture and shape only."""

import cv2
import numpy as np
import pytest

from shards.errors import ConfigError
from shards.samples.synthetic_images import (
    CLASS_NAMES,
    balanced_labels,
    encode_jpeg,
    iter_images,
    make_image,
)

NUM_CLASSES = len(CLASS_NAMES)


def decode(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def nearest_class(train, train_labels, test):
    """Return the class of the nearest training row for each test row."""
    distances = ((test[:, None] - train[None]) ** 2).sum(-1)
    return train_labels[distances.argmin(1)]


def colour_set(seed, num):
    """Return mean colours (num, 3) and labels (num,)."""
    labels = balanced_labels(num, seed=seed, num_classes=NUM_CLASSES)
    images = [make_image(seed, index, label, 32) for index, label in enumerate(labels)]
    return np.stack([image.mean((0, 1)) for image in images]), labels


def test_image_is_a_pure_function_of_seed_and_index_and_class():
    """An image would depend on the images drawn before, or neighbouring seeds share images."""
    first = make_image(3, 17, 5, 40)
    for other in [(3, 18, 5), (4, 17, 5), (4, 16, 5), (3, 17, 6)]:
        assert not np.array_equal(first, make_image(*other, 40))
    assert first.shape == (40, 40, 3) and first.dtype == np.uint8
    assert np.array_equal(first, make_image(3, 17, 5, 40))


def test_class_sizes_differ_by_one_at_most():
    """An unbalanced set would reward predicting the majority class."""
    counts = np.bincount(balanced_labels(1003, seed=1, num_classes=7))
    assert len(counts) == 7 and counts.max() - counts.min() <= 1


def test_labels_are_shuffled_by_the_seed():
    """Every batch of a stream in order would hold one class."""
    labels = balanced_labels(200, seed=1, num_classes=10)
    assert (labels[1:] == (labels[:-1] + 1) % 10).mean() < 0.3
    assert np.array_equal(labels, balanced_labels(200, seed=1, num_classes=10))
    assert not np.array_equal(labels, balanced_labels(200, seed=2, num_classes=10))


def test_iter_images_yields_the_images_as_jpegs():
    """Keys, labels and images would be shifted by a row."""
    rows = list(iter_images(30, seed=2, size=32))
    assert len({key for key, _, _ in rows}) == 30
    labels = balanced_labels(30, seed=2, num_classes=NUM_CLASSES)
    assert [label for _, _, label in rows] == labels.tolist()
    key, data, label = rows[7]
    image = make_image(2, 7, label, 32)
    assert key == "00000007" and data == encode_jpeg(image)
    assert np.abs(decode(data).astype(int) - image).mean() < 12


def test_mean_colour_does_not_predict_the_class():
    """A broken encoder would find classes by their colour."""
    train, train_labels = colour_set(0, 400)
    test, test_labels = colour_set(1, 400)
    accuracy = (nearest_class(train, train_labels, test) == test_labels).mean()
    assert accuracy < 0.18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0}, "0 synthetic images.*at least 1"),
        ({"num": 5, "num_classes": 0}, "0 synthetic classes.*1 to 10"),
        ({"num": 5, "num_classes": 11}, "11 synthetic classes.*1 to 10"),
        ({"num": 5, "size": 4}, "4 pixels.*need 16"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    """The user would get a division by zero or an index error."""
    with pytest.raises(ConfigError, match=message):
        next(iter_images(**arguments))
