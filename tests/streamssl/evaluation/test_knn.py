"""Weighted k-NN against ten lines of NumPy; embedding leaves the encoder unchanged."""

import numpy as np
import pytest
import torch
from torch import nn

from shards.errors import ConfigError, UserError
from streamssl.evaluation.knn import KnnConfig, embed, knn_accuracy, raw_pixel_features


def make_rows(seed, num, num_features=12, num_classes=5):
    """Return features (num, 12) near the centre of their class, and labels (num,)."""
    rng = np.random.default_rng([7, seed])
    labels = np.arange(num) % num_classes
    centres = np.random.default_rng(3).standard_normal((num_classes, num_features))
    features = centres[labels] + 1.5 * rng.standard_normal((num, num_features))
    return features.astype(np.float32), labels


def reference_accuracy(train, train_labels, test, test_labels, k, temperature):
    """Return the accuracy, computed row by row in float64."""
    train = train.astype(np.float64) / np.linalg.norm(train, axis=1, keepdims=True)
    test = test.astype(np.float64) / np.linalg.norm(test, axis=1, keepdims=True)
    num_right = 0
    for row, label in zip(test, test_labels, strict=True):
        similarities = train @ row
        votes = np.zeros(train_labels.max() + 1)
        for neighbour in np.argsort(-similarities)[:k]:
            votes[train_labels[neighbour]] += np.exp(similarities[neighbour] / temperature)
        num_right += votes.argmax() == label
    return 100 * num_right / len(test)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_accuracy_equals_the_reference_for_every_k(temperature):
    """A vote without weights, or a distance in place of a cosine, shifts published numbers."""
    train, train_labels = make_rows(0, 400)
    test, test_labels = make_rows(1, 150)
    config = KnnConfig(ks=(1, 5, 20, 200, 400), temperature=temperature)
    found = knn_accuracy(train, train_labels, test, test_labels, config)
    assert list(found) == [1, 5, 20, 200, 400]
    for k, accuracy in found.items():
        expected = reference_accuracy(train, train_labels, test, test_labels, k, temperature)
        assert accuracy == pytest.approx(expected, abs=1e-9)
    assert 30 < found[20] < 100


def test_test_rows_of_several_searches_are_all_counted():
    """A block of test rows that is dropped or counted twice bends the percentage."""
    train, train_labels = make_rows(0, 60)
    test, test_labels = make_rows(1, 5000)
    found = knn_accuracy(train, train_labels, test, test_labels, KnnConfig(ks=(20,)))
    parts = [
        knn_accuracy(train, train_labels, test[i::2], test_labels[i::2], KnnConfig(ks=(20,)))[20]
        for i in (0, 1)
    ]
    assert found[20] == pytest.approx(np.mean(parts))


def test_equal_votes_go_to_the_smaller_class_every_time():
    """A tie broken by chance would change a result from run to run."""
    train = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    train_labels = np.tile([3, 1], 20)  # the ten copies of a point vote five to five
    test = np.eye(4, dtype=np.float32)
    for _ in range(3):
        found = knn_accuracy(train, train_labels, test, np.ones(4, int), KnnConfig(ks=(10,)))
        assert found == {10: 100.0}


def test_a_collapsed_encoder_is_no_better_than_chance():
    """Features of zeros have no direction: they must not divide by zero, nor look like skill."""
    labels = np.arange(100) % 4
    zeros = np.zeros((100, 6), np.float32)
    assert knn_accuracy(zeros, labels, zeros, labels, KnnConfig(ks=(100,))) == {100: 25.0}


def test_settings_that_cannot_work_are_refused():
    """A temperature of zero gives infinite weights; a clamped k reports a wrong name."""
    features, labels = make_rows(0, 50)
    with pytest.raises(ConfigError, match=r"k=200 on 50 training images.*such as --ks 12"):
        knn_accuracy(features, labels, features, labels)
    for settings, message in (
        ({"ks": ()}, r"ks=\(\)"),
        ({"ks": (0, 5)}, "1 or more"),
        ({"temperature": 0.0}, "above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            KnnConfig(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.full(50, -1)}, "training labels.*from -1.*without a label"),
        ({"test_labels": np.full(50, 9)}, r"test labels \[9\] have no training image"),
        ({"test_labels": np.zeros(50)}, "test labels of type float64"),
        ({"train_labels": np.zeros(49, int)}, r"\(50, 12\) with labels \(49,\)"),
        ({"test_features": np.zeros((50, 3), np.float32)}, "12 numbers and test features 3"),
        ({"test_features": np.full((50, 12), np.nan, np.float32)}, "50 of 50 test.*not finite"),
        ({"train_features": np.zeros((0, 12), np.float32)}, r"\(0, 12\) with labels"),
    ],
)
def test_labels_and_features_that_do_not_fit_are_refused(change, message):
    """A missing label taken for a class, or NaN in a feature, gives a meaningless number."""
    features, labels = make_rows(0, 50)
    arguments = {
        "train_features": features,
        "train_labels": labels,
        "test_features": features,
        "test_labels": labels,
    }
    with pytest.raises(UserError, match=message):
        knn_accuracy(**(arguments | change), config=KnnConfig(ks=(5,)))


def make_encoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def make_images(num, size=12):
    return np.random.default_rng(num).integers(0, 256, (num, size, size, 3), np.uint8)


def test_embedding_in_pieces_equals_embedding_at_once():
    """Batch statistics in use would make a feature depend on its neighbours in the batch."""
    images, encoder = make_images(10), make_encoder()
    whole = embed(encoder, [images])
    parts = embed(encoder, [images[:3], images[3:4], images[4:]])
    assert whole.shape == (10, 6) and whole.dtype == np.float32
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_embedding_normalises_as_training_does():
    """Pixels on another scale than in training give other features."""
    images = np.full((2, 4, 4, 3), 255, np.uint8)
    found = embed(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), [images])
    expected = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found, np.tile(expected, (2, 1)), rtol=1e-5)


def test_embedding_leaves_the_encoder_unchanged():
    """An evaluation that left eval mode on, or moved statistics, would change the run."""
    encoder = make_encoder().train()
    encoder[1].eval()  # frozen on purpose
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    embed(encoder, [make_images(4)])
    assert encoder.training and encoder[0].training and not encoder[1].training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    with pytest.raises(RuntimeError):
        embed(encoder, [np.zeros((1, 4, 4, 5), np.uint8)])
    assert encoder.training
    with pytest.raises(UserError, match="no image to embed"):
        embed(encoder, [])


def test_half_precision_and_read_only_images_give_float32_features():
    """Images that come from a reader are read-only views; bf16 arrays do not exist in NumPy."""
    images, encoder = make_images(4), make_encoder()
    images.flags.writeable = False
    found = embed(encoder, [images], precision="bfloat16")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, embed(encoder, [images]), atol=0.05)


def test_raw_pixels_become_small_rows():
    """The baseline of each comparison must be the pixels themselves, on one scale."""
    images = np.full((3, 40, 40, 3), 51, np.uint8)
    rows = raw_pixel_features(images, size=8)
    assert rows.shape == (3, 192) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, 0.2, atol=1e-6)
