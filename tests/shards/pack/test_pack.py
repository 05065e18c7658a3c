"""Packs of local images: readable by other libraries, equal bytes each time, nothing lost."""

import gc
import io
import json
import os
import tarfile
import warnings
from collections import Counter
from functools import cache

import pytest
import webdataset

from shards.errors import ConfigError, UserError
from shards.pack.fetch import ImageFetcher
from shards.pack.image_entries import entries_from_list, entries_from_synthetic
from shards.pack.pack import PackConfig, pack
from shards.pack.sources.folder_entries import entries_from_folder
from shards.samples.admission_config import AdmissionConfig
from shards.samples.synthetic_images import CLASS_NAMES, encode_jpeg, iter_images, make_image
from shards.stores.image_download import DownloadConfig
from shards.stores.shard_listing import list_shards
from tests.tars import samples_by_tarfile


@cache
def jpeg(index, label=0):
    return encode_jpeg(make_image(0, index, label, 32))


def make_folder(root, files):
    """Write `files`, path -> bytes, below `root`."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture
def pets(tmp_path):
    """Folder of eight images in two classes, one of them nested."""
    files = {f"cats/{i}.jpg": jpeg(i) for i in range(4)}
    files |= {f"dogs/big/{i}.JPEG": jpeg(10 + i) for i in range(4)}
    return make_folder(tmp_path / "pets", files)


def read_with_webdataset(out, read=iter):
    """Read the shards in `out` in order with the webdataset library."""
    urls = sorted(str(path) for path in out.glob("*.tar"))
    with warnings.catch_warnings():
        # The library does not close its files.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(read(webdataset.WebDataset(urls, shardshuffle=False)))
        gc.collect()
    return samples


def read_samples(out):
    """Read the shards in `out` in order with the standard library, as `webdataset` returns them."""
    return [
        {"__key__": key, **fields}
        for data in shard_bytes(out).values()
        for key, fields in samples_by_tarfile(data)
    ]


def shard_bytes(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def test_webdataset_reads_keys_bytes_and_labels(pets, tmp_path):
    """Shards that only our own reader understands would lock the user in."""
    report = pack(entries_from_folder(pets), tmp_path / "out", PackConfig(samples_per_shard=3))
    assert (report.num_samples, report.num_shards, report.skipped) == (8, 3, {})
    samples = read_with_webdataset(tmp_path / "out")
    assert {s["__key__"] for s in samples} == {f"{i:08d}-{i % 4}" for i in range(8)}
    for sample in samples:
        number = int(sample["__key__"][:8])
        extension, index, label = (
            ("jpg", number, b"0") if number < 4 else ("jpeg", number + 6, b"1")
        )
        assert sample[extension] == jpeg(index) and sample["cls"] == label
    rows = read_with_webdataset(
        tmp_path / "out", lambda dataset: dataset.decode("pil").to_tuple("jpg;jpeg", "cls")
    )
    assert Counter(label for _, label in rows) == {0: 4, 1: 4}
    assert all(image.size == (32, 32) for image, _ in rows)


def test_the_same_input_gives_the_same_bytes(pets, tmp_path):
    """A timestamp or a user name in a header would make each pack a new data set."""
    config = PackConfig(samples_per_shard=3)
    first = pack(entries_from_folder(pets), tmp_path / "a", config)
    second = pack(entries_from_folder(pets), tmp_path / "b", config)
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "b")
    assert first.digest == second.digest and len(first.digest) == 32
    assert first.num_bytes == sum(map(len, shard_bytes(tmp_path / "a").values()))
    data = (tmp_path / "a" / "shard-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as shard:
        members = shard.getmembers()
    found = {(m.type, m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members}
    assert found == {(tarfile.REGTYPE, 0, 0, 0, "", "", 0o444)}


def test_the_seed_decides_the_order(tmp_path):
    """In shards sorted by class, each batch would hold few classes."""
    source, orders = entries_from_synthetic(30, size=16), {}
    for seed in (0, 1, None):
        pack(source, tmp_path / str(seed), PackConfig(seed=seed))
        orders[seed] = [s["__key__"][:8] for s in read_samples(tmp_path / str(seed))]
    assert orders[None] == sorted(orders[0]) == sorted(orders[1])
    assert len({tuple(order) for order in orders.values()}) == 3


def test_a_shard_does_not_pass_its_maximum_size(tmp_path):
    """A sum without the headers would pass the limit; a larger image needs its own shard."""
    max_bytes = 20_000
    folder = make_folder(tmp_path / "in", {f"{i % 3}/{i}.jpg": jpeg(i) for i in range(50)})
    report = pack(entries_from_folder(folder), tmp_path / "out", PackConfig(max_bytes=max_bytes))
    sizes = [len(data) for data in shard_bytes(tmp_path / "out").values()]
    padding = tarfile.RECORDSIZE  # a tar ends with empty blocks up to a whole record
    assert report.num_shards == len(sizes) > 3
    assert max(sizes) <= max_bytes + padding and min(sizes[:-1]) > max_bytes / 2
    report = pack(entries_from_synthetic(5), tmp_path / "single", PackConfig(max_bytes=1))
    assert report.num_samples == report.num_shards == 5


def test_synthetic_shards_hold_the_synthetic_images(tmp_path):
    """The demo's k-NN would evaluate other images than it trained on."""
    pack(entries_from_synthetic(20, seed=4, size=24), tmp_path / "out", PackConfig(seed=None))
    samples = read_samples(tmp_path / "out")
    expected = [(data, str(label).encode()) for _, data, label in iter_images(20, seed=4, size=24)]
    assert [(s["jpg"], s["cls"]) for s in samples] == expected
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == list(CLASS_NAMES)


def test_unusual_file_names_become_safe_unique_keys(tmp_path):
    """A dot in a key starts the extension early; equal keys merge two images into one."""
    names = ["a/my cat.v2.final.jpg", "b/my cat.v2.final.jpg", "a/кот ä.jpg", "a/x..y.jpg"]
    names += ["a/" + "n" * 200 + ".jpg", "a/-.jpg", "a/quote'\"\n.jpg", "a/no text \udcff.jpg"]
    folder = make_folder(tmp_path / "in", {name: jpeg(i) for i, name in enumerate(names)})
    pack(entries_from_folder(folder), tmp_path / "out")
    samples = read_with_webdataset(tmp_path / "out")
    assert {s["jpg"] for s in samples} == {jpeg(i) for i in range(len(names))}
    keys = [s["__key__"] for s in samples]
    assert len(set(keys)) == len(names)
    assert all(key.replace("-", "").replace("_", "").isalnum() and key.isascii() for key in keys)
    assert sum(key.endswith("-my_cat_v2_final") for key in keys) == 2


def test_only_complete_sub_folders_are_labels(tmp_path, pets):
    """A label invented for some images would be trained on; sub-folders may also be dates."""
    assert all(e.label is None for e in entries_from_folder(pets, labels="none").entries)
    flat = make_folder(tmp_path / "flat", {"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    single = make_folder(tmp_path / "single", {"images/1.jpg": jpeg(1)})
    make_folder(pets, {"loose.jpg": jpeg(3)})
    for folder in (flat, single, pets):
        source = entries_from_folder(folder)
        assert not source.class_names and all(e.label is None for e in source.entries)
    pack(entries_from_folder(flat), tmp_path / "out")
    assert all("cls" not in sample for sample in read_samples(tmp_path / "out"))
    assert not (tmp_path / "out" / "classes.txt").exists()


def test_skipped_files_are_counted_by_reason(tmp_path, pets):
    """A file that is not counted would be lost silently."""
    bad = {"cats/readme.txt": b"hello", "cats/empty.jpg": b"", "dogs/page.jpg": b"<html>" * 50}
    make_folder(pets, bad)
    (pets / "cats" / "gone.png").symlink_to(tmp_path / "nowhere")
    (pets / "dogs" / "all").symlink_to(pets)
    os.mkfifo(pets / "dogs" / "pipe.jpg")
    report = pack(entries_from_folder(pets), tmp_path / "out")
    assert report.num_samples == 8
    assert report.skipped == {"empty": 1, "linked_folder": 1, "not_an_image": 2, "unreadable": 2}
    saved = json.loads((tmp_path / "out" / "pack.json").read_text())["report"]
    assert saved["skipped"] == report.skipped and saved["digest"] == report.digest


@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("a b.jpg\n\nsub/c.png\n", [None, None], ()),
        ("a b.jpg 7\nsub/c.png 2\n", [7, 2], ()),
        ("a b.jpg\ttabby cat\nsub/c.png\tdog\n", [1, 0], ("dog", "tabby cat")),
    ],
)
def test_a_list_of_files_is_relative_to_its_folder(tmp_path, text, labels, names):
    """A space in a path would start a label."""
    make_folder(tmp_path, {"a b.jpg": jpeg(1), "sub/c.png": jpeg(2), "list.txt": text.encode()})
    source = entries_from_list(tmp_path / "list.txt")
    assert [e.label for e in source.entries] == labels and source.class_names == names
    with ImageFetcher(DownloadConfig()) as fetcher:
        assert [e.read(fetcher) for e in source.entries] == [jpeg(1), jpeg(2)]


def test_missing_paths_and_labels_are_named(tmp_path):
    """An empty pack, or an evaluation on some of the labels, would hide a typing error."""
    make_folder(tmp_path, {"list.txt": b"a.jpg 1\nb.jpg\nc.jpg 2\n"})
    with pytest.raises(UserError, match=r"1 of 3 lines .* have no label, such as 'b\.jpg'"):
        entries_from_list(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"nowhere is not a folder.*check the path"):
        entries_from_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere cannot be read \(No such file"):
        entries_from_list(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"image.png is no text; .* the name of its folder"):
        make_folder(tmp_path, {"image.png": b"\x89PNG\r\n\x1a\n\0\0"})
        entries_from_list(tmp_path / "image.png")


def test_a_source_without_images_is_refused_and_leaves_no_files(tmp_path):
    """The first training step would wait for a sample forever."""
    folder = make_folder(tmp_path / "in", {"a.txt": b"a", "b.jpg": b""})
    with pytest.raises(UserError, match=r"no image found in .*in \(1 empty, 1 not_an_image\)"):
        pack(entries_from_folder(folder), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_complete_pack_of_the_same_input_is_reused(pets, tmp_path):
    """A second run of the demo would draw all images again."""
    first = pack(entries_from_folder(pets), tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = pack(entries_from_folder(pets), tmp_path / "out")
    assert second.reused and not first.reused
    assert (second.num_samples, second.digest) == (first.num_samples, first.digest)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("change", ["image", "settings", "missing shard", "foreign", "file"])
def test_an_output_that_holds_something_else_is_refused(pets, tmp_path, change):
    """Two data sets would be mixed."""
    out, config = tmp_path / "out", PackConfig()
    if change == "file":
        out.write_text("mine")
    elif change == "foreign":
        make_folder(out, {"notes.txt": b"mine"})
    else:
        pack(entries_from_folder(pets), out)
    if change == "image":
        make_folder(pets, {"cats/new.jpg": jpeg(50)})
    elif change == "settings":
        config = PackConfig(seed=9)
    elif change == "missing shard":
        (out / "shard-000000.tar").unlink()
    with pytest.raises(UserError, match=r"out exists and is not a complete pack.*name another"):
        pack(entries_from_folder(pets), out, config)
    assert not list(tmp_path.rglob(".*"))


def test_a_file_that_changes_before_it_is_read_is_left_out(pets, tmp_path):
    """The digest of the input would not match the bytes in the shards."""
    source = entries_from_folder(pets)
    (pets / "cats" / "1.jpg").write_bytes(jpeg(99) + b" ")
    (pets / "cats" / "2.jpg").unlink()
    report = pack(source, tmp_path / "out")
    assert report.num_samples == 6 and report.skipped == {"changed": 1, "unreadable": 1}
    sidecar = json.loads((tmp_path / "out" / "shard-000000.json").read_text())
    assert sidecar["left_out"] == {"changed": ["cats/1.jpg"], "unreadable": ["cats/2.jpg"]}


def test_a_shard_without_images_keeps_its_number(tmp_path):
    """A gap in the numbers would look like a deleted shard."""
    folder = make_folder(tmp_path / "in", {"a.jpg": jpeg(1), "b.jpg": b"<html>", "c.jpg": jpeg(2)})
    config = PackConfig(samples_per_shard=1, seed=None)
    report = pack(entries_from_folder(folder), tmp_path / "out", config)
    assert (report.num_samples, report.num_shards) == (2, 3)
    assert [s["jpg"] for s in read_samples(tmp_path / "out")] == [jpeg(1), jpeg(2)]
    assert len(list_shards(str(tmp_path / "out"))) == 3


def test_admission_leaves_images_out(tmp_path):
    """Images that a run rejects in each epoch need not be stored."""
    images = {f"{i}.jpg": encode_jpeg(make_image(0, i, 0, 16 + 16 * (i % 2))) for i in range(6)}
    source = entries_from_folder(make_folder(tmp_path / "in", images))
    report = pack(source, tmp_path / "out", admission=AdmissionConfig(min_side=20))
    assert report.num_samples == 3 and report.skipped == {"too_small": 3}
    with pytest.raises(UserError, match="is not a complete pack"):
        pack(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_per_shard": 0}, "samples_per_shard=0"),
        ({"max_bytes": 0}, "max_bytes=0"),
        ({"pattern": "shard.tar"}, "does not number the shards"),
        ({"pattern": "../{:06d}.tar"}, "does not number the shards"),
        ({"pattern": "{:06d}.zip"}, "does not number the shards"),
        ({"pattern": "{}-{}.tar"}, "does not number the shards"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    """A pattern without a number would write all shards to one file."""
    with pytest.raises(ConfigError, match=message):
        PackConfig(**settings)
