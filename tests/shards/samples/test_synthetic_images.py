"""Images made by formula: repeatable, balanced, and told apart by texture and shape alone."""

import itertools

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
    """The class of the nearest training row for each test row."""
    distances = ((test[:, None] - train[None]) ** 2).sum(-1)
    return train_labels[distances.argmin(1)]


def colour_set(seed, num):
    """Mean colours (num, 3) and labels (num,) of images that are not encoded."""
    labels = balanced_labels(num, seed=seed, num_classes=NUM_CLASSES)
    images = [make_image(seed, index, label, 32) for index, label in enumerate(labels)]
    return np.stack([image.mean((0, 1)) for image in images]), labels


def test_an_image_is_a_function_of_its_arguments():
    """A drawing that depended on what was drawn before could not be made again."""
    first = make_image(3, 17, 5, 40)
    make_image(3, 18, 5, 40)
    assert first.shape == (40, 40, 3) and first.dtype == np.uint8
    assert np.array_equal(first, make_image(3, 17, 5, 40))


@pytest.mark.parametrize("other", [(3, 18, 5), (4, 17, 5), (4, 16, 5), (3, 17, 6)])
def test_another_seed_index_or_class_gives_another_image(other):
    """Seed + index as a key would repeat the images of the neighbouring seed."""
    assert not np.array_equal(make_image(3, 17, 5, 40), make_image(*other, 40))


def test_class_sizes_differ_by_one_at_most():
    """An unbalanced set would make the majority class look like learning."""
    counts = np.bincount(balanced_labels(1003, seed=1, num_classes=7))
    assert len(counts) == 7 and counts.max() - counts.min() <= 1


def test_labels_come_shuffled_and_the_seed_decides_how():
    """Labels in order would put one class into every batch of a stream read in order."""
    labels = balanced_labels(200, seed=1, num_classes=10)
    assert (labels[1:] == (labels[:-1] + 1) % 10).mean() < 0.3
    assert np.array_equal(labels, balanced_labels(200, seed=1, num_classes=10))
    assert not np.array_equal(labels, balanced_labels(200, seed=2, num_classes=10))


def test_iter_images_yields_the_images_as_jpegs():
    """A key, label or image that slipped by one row would spoil every evaluation."""
    rows = list(iter_images(30, seed=2, size=32))
    assert len({key for key, _, _ in rows}) == 30
    labels = balanced_labels(30, seed=2, num_classes=NUM_CLASSES)
    assert [label for _, _, label in rows] == labels.tolist()
    key, data, label = rows[7]
    image = make_image(2, 7, label, 32)
    assert key == "00000007" and data == encode_jpeg(image)
    assert np.abs(decode(data).astype(int) - image).mean() < 12


def test_the_mean_colour_says_nothing_about_the_class():
    """A class known by its colour would be found by a histogram, and by a broken encoder."""
    train, train_labels = colour_set(0, 500)
    test, test_labels = colour_set(1, 500)
    accuracy = (nearest_class(train, train_labels, test) == test_labels).mean()
    assert accuracy < 0.18


def test_the_same_background_is_drawn_for_every_class():
    """Nuisance that depended on the label would be a shortcut to it."""
    corners = np.stack([make_image(5, 11, label, 48)[:3, :3] for label in range(NUM_CLASSES)])
    other = np.stack([make_image(5, index, 0, 48)[:3, :3] for index in range(NUM_CLASSES)])
    assert np.median(corners.std(0)) < 5 < np.median(other.std(0))


def test_no_class_is_a_mirror_image_of_another():
    """Two classes that flipping exchanges could not be told apart after augmentation."""
    # Averages over many draws with one lightness order are close exactly when classes coincide.
    size, spectra = 32, []
    for label in range(NUM_CLASSES):
        greys = [make_image(0, index, label, size).mean(-1) for index in range(150)]
        spectrum = np.mean([np.abs(np.fft.fft2(grey - grey.mean())) for grey in greys], axis=0)
        spectra.append(spectrum / np.linalg.norm(spectrum))
    for a, b in itertools.combinations(spectra, 2):
        flipped = np.roll(b[:, ::-1], 1, axis=1)
        assert max((a * b).sum(), (a * flipped).sum()) < 0.995


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0}, "0 synthetic images.*at least 1"),
        ({"num": 5, "num_classes": 0}, "0 synthetic classes.*1 to 10"),
        ({"num": 5, "num_classes": 11}, "11 synthetic classes.*1 to 10"),
        ({"num": 5, "size": 4}, "4 pixels.*need 16"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(arguments, message):
    """A modulo by zero or an index error would not say what to change."""
    with pytest.raises(ConfigError, match=message):
        next(iter_images(**arguments))
