"""Labelled images: right label, right central square, each once and in order."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from shards.crops.native import NativeEngine
from shards.errors import BudgetExceeded, ShardUnreadable, UserError
from shards.inspect.labelled_images import LabelledSet, iter_labelled
from shards.samples.synthetic_images import CLASS_NAMES, balanced_labels
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from tests.tars import make_tar


def png(array):
    return cv2.imencode(".png", array[..., ::-1])[1].tobytes()


def smooth(height, width, seed=0):
    """An image without fine detail, on which two good resizers nearly agree."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def parts_of(manifest, size, num_threads=2, label=""):
    data = LabelledSet(manifest=manifest, reader=RangeReader(), label=label)
    return list(iter_labelled(data, size, NativeEngine, num_threads))


def read_all(manifest, size, num_threads=2):
    """Images, labels, and rejects by reason."""
    parts = parts_of(manifest, size, num_threads)
    rejects = sum((Counter(part.rejects) for part in parts), Counter())
    images = np.concatenate([part.images for part in parts])
    return images, [label for part in parts for label in part.labels], rejects


def open_shard(path, members):
    path.write_bytes(make_tar(members))
    return open_manifest(str(path), RangeReader())


def test_every_image_comes_once_in_shard_order(synthetic_shards):
    """An evaluation would use other images than the shards hold, or depend on threads."""
    manifest = open_manifest(str(synthetic_shards), RangeReader())
    images, labels, rejects = read_all(manifest, 32)
    assert images.shape == (96, 32, 32, 3) and not rejects
    expected = balanced_labels(96, seed=0, num_classes=len(CLASS_NAMES))
    assert Counter(labels) == Counter(expected.tolist())
    again = read_all(manifest, 32, num_threads=1)
    assert np.array_equal(images, again[0]) and labels == again[1]


def test_small_images_are_used_whole(tmp_path):
    """The 32 pixels of CIFAR would be resized."""
    images = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(5)]
    members = [
        member
        for i, image in enumerate(images)
        for member in ((f"{i}.png", png(image)), (f"{i}.cls", b"%d" % i))
    ]
    found, labels, _ = read_all(open_shard(tmp_path / "a.tar", members), 32)
    assert np.array_equal(found, np.stack(images)) and labels == [*range(5)]


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 333), (256, 700), (225, 224)])
def test_large_images_equal_resize_and_center_crop(tmp_path, height, width):
    """A different square would make numbers incomparable; only the rounding of a box may differ."""
    image = smooth(height, width)
    manifest = open_shard(tmp_path / "a.tar", [("0.png", png(image)), ("0.cls", b"1")])
    found = read_all(manifest, 224)[0][0]
    reference = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    expected = reference(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.mean() < 2.5 and np.percentile(difference, 99) <= 8


@pytest.mark.parametrize(("height", "width"), [(60, 100), (101, 60), (48, 48)])
def test_small_images_keep_the_largest_square(tmp_path, height, width):
    """More of a small image would be cut than makes it square."""
    image = smooth(height, width, seed=3)
    manifest = open_shard(tmp_path / "a.tar", [("0.png", png(image)), ("0.cls", b"1")])
    found = read_all(manifest, 32)[0][0]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(image[top : top + side, left : left + side].copy())
    expected = v2.functional.resize(square.permute(2, 0, 1), [32, 32], antialias=True)
    difference = np.abs(found.astype(int) - expected.permute(1, 2, 0).numpy().astype(int))
    assert difference.max() <= 1


def test_images_inside_a_nested_tar_are_not_used(tmp_path):
    """They would count twice, or end the evaluation without a label."""
    image = png(smooth(32, 32))
    inner = make_tar([(f"{i}.png", image) for i in range(400)])
    members = []
    for index in range(200):
        members += [(f"{index}.png", image), (f"{index}.cls", b"%d" % index)]
        members += [(f"{index}.tar", inner)] if index == 100 else []
    manifest = open_shard(tmp_path / "a.tar", members)
    assert manifest.num_bytes > 3 * manifest.suggest_chunk_bytes()
    _, labels, rejects = read_all(manifest, 8)
    assert labels == list(range(200)) and not rejects


def test_rejects_are_counted_and_labels_stay_with_their_images(tmp_path):
    """After a reject, every label would belong to another image."""
    good = [np.full((16, 16, 3), 10 * i, np.uint8) for i in range(6)]
    members = []
    for i, image in enumerate(good):
        data = {1: b"no image", 4: png(image)[:80]}.get(i, png(image))
        members += [(f"{i}.png", data), (f"{i}.json", json.dumps({"label": i}).encode())]
    members += [("6.txt", b"only words")]
    images, labels, rejects = read_all(open_shard(tmp_path / "a.tar", members), 8)
    assert labels == [0, 2, 3, 5]
    assert images[:, 4, 4, 0].tolist() == [0, 20, 30, 50]
    assert rejects == {"not_an_image": 1, "truncated": 1, "no_image": 1}


def test_shards_without_any_image_end_with_the_reasons(tmp_path):
    """An accuracy over no images would be a division by zero."""
    manifest = open_shard(tmp_path / "a.tar", [(f"{i}.jpg", b"junk") for i in range(3)])
    with pytest.raises(
        BudgetExceeded, match=r"every sample .*verify`\n  not_an_image +3 .*'0\.jpg'"
    ):
        parts_of(manifest, 8)


def test_shards_without_labels_end_early_and_name_the_fields(tmp_path):
    """The user would learn it after an hour of reading, and search for the name of the label."""
    image = png(np.zeros((16, 16, 3), np.uint8))
    field = json.dumps({"meta": {"kind": 3}, "url": "x"}).encode()
    members = [m for i in range(1100) for m in ((f"{i}.png", image), (f"{i}.json", field))]
    manifest = open_shard(tmp_path / "a.tar", members)
    message = (
        r"a\.tar has a label \(cls, label or class.*could be labels are meta\.kind, url: name one"
    )
    with pytest.raises(UserError, match=message):
        parts_of(manifest, 8)
    with pytest.raises(UserError, match=r"has a label \(tag\)"):
        parts_of(manifest, 8, label="tag")
    found = [label for part in parts_of(manifest, 8, label="meta.kind") for label in part.labels]
    assert found == [3] * 1100


def test_samples_without_a_label_are_counted_and_left_out(tmp_path):
    """One missing label would end an evaluation of a million images."""
    image = png(np.zeros((16, 16, 3), np.uint8))
    members = []
    for i in range(12):
        members += [(f"{i:02}.png", image)]
        members += [(f"{i:02}.cls", [b"-1", b"cat\n", b"2"][i % 3])] if i < 9 else []
    parts = parts_of(open_shard(tmp_path / "a.tar", members), 8)
    assert [label for part in parts for label in part.labels] == ["cat", 2] * 3
    assert sum(part.num_unlabelled for part in parts) == 6


def test_class_numbers_have_the_names_of_the_file_beside_their_shard(tmp_path):
    """Number 1 means another class in each pack."""
    image = png(np.zeros((16, 16, 3), np.uint8))
    for name, classes in (("a", "cat\ndog\n"), ("b", "dog\nemu\n")):
        (tmp_path / name).mkdir()
        members = [m for i in (0, 1) for m in ((f"{i}.png", image), (f"{i}.cls", b"%d" % i))]
        (tmp_path / name / "0.tar").write_bytes(make_tar(members))
        (tmp_path / name / "classes.txt").write_text(classes)
    manifest = open_manifest([f"{tmp_path}/a", f"{tmp_path}/b"], RangeReader())
    parts = parts_of(manifest, 8)
    assert [label for part in parts for label in part.labels] == [0, 1, 0, 1]
    assert [name for part in parts for name in part.names] == ["cat", "dog", "dog", "emu"]


def test_missing_shard_ends_the_reading(tmp_path):
    """Half of a test set would give a wrong number."""
    image = png(np.zeros((16, 16, 3), np.uint8))
    manifest = open_shard(tmp_path / "a.tar", [("0.png", image), ("0.cls", b"1")])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ShardUnreadable, match="is gone"):
        parts_of(manifest, 8)
