"""Folders of images: side-cars, labels, splits, metadata, and files that are no images."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from shards.pack.pack import PackConfig, pack
from shards.pack.sources.folder_entries import entries_from_folder
from tests.shards.pack.test_pack import jpeg, make_folder, read_samples


def packed(folder, out, labels="auto", **columns):
    """Pack a folder in its order, and return the source and the samples."""
    source = entries_from_folder(folder, labels, **columns)
    pack(source, out, PackConfig(seed=None))
    return source, read_samples(out)


def classes_in(out):
    return (out / "classes.txt").read_text("utf-8").splitlines()


def images(*names):
    return {name: jpeg(number) for number, name in enumerate(names)}


def test_side_cars_become_members_of_their_image(tmp_path):
    """Labels and captions beside the images would stay behind."""
    files = images("a/1.jpg", "a/2.v2.jpg", "3.seg.jpg", "4.jpg")
    files |= {"a/1.cls": b"\xef\xbb\xbf7\r\n", "a/1.TXT": b"one", "a/2.v2.json": b'{"x": 1}'}
    files |= {"3.caption": b"three", "4.jpg.txt": b"four", "3.cls": b"2", "5.txt": b"nobody"}
    folder = make_folder(tmp_path / "in", files | {"a/b.xml": b"<x/>", "c.xml": b"<x/>"})
    source, samples = packed(folder, tmp_path / "out")
    found = {sample["jpg"]: sample for sample in samples}
    first, second, third, fourth = (found[jpeg(number)] for number in range(4))
    assert (first["cls"], first["txt"]) == (b"7", b"one")
    assert second["json"] == b'{"x": 1}' and "cls" not in second
    assert (third["cls"], third["caption"]) == (b"2", b"three") and fourth["txt"] == b"four"
    assert source.skipped == {"not_an_image": 3}
    assert "not taken: 2 .xml, 1 .txt" in source.notes
    assert "2 of 4 images have no label of .cls files" in source.notes


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        ((b"4", b"2.0", b"4"), ["4", "2", "4"], None),
        (("cät".encode(), b"ant\n", b"7"), ["2", "1", "0"], ["7", "ant", "cät"]),
        ((b"-1", b"0", b""), [None, "0", None], None),
    ],
)
def test_labels_of_side_cars_win_over_folders(tmp_path, labels, numbers, names):
    """Words need numbers and names; an image would get the class of its folder instead."""
    files = images("x/1.jpg", "y/2.jpg", "y/3.jpg")
    files |= {f"{n}.cls": data for n, data in zip(("x/1", "y/2", "y/3"), labels, strict=True)}
    source, samples = packed(make_folder(tmp_path / "in", files), tmp_path / "out")
    found = [s["cls"].decode() if "cls" in s else None for s in samples]
    assert found == numbers
    if names:
        assert classes_in(tmp_path / "out") == names
    assert "the labels of .cls files are taken, not the names of the folders" in source.notes


def test_hidden_files_are_never_packed_nor_classes(tmp_path):
    """__MACOSX would be class 0, and halves of files would be images."""
    files = images("cat/1.jpg", "dog/2.jpg", "__MACOSX/cat/._1.jpg", "__MACOSX/x.jpg", ".git/a.jpg")
    files |= images("cat/._1.jpg", "@eaDir/3.jpg") | {"Thumbs.db": b"x", "dog/.DS_Store": b"x"}
    source, samples = packed(make_folder(tmp_path / "in", files), tmp_path / "out")
    assert len(samples) == 2 and source.class_names == ("cat", "dog")
    assert source.skipped == {"hidden": 7}


def test_the_first_bytes_decide_where_a_name_does_not(tmp_path):
    """Downloads have names such as 000001.png?w=640, or none at all."""
    names = ("000", "1.png?w=640", "2.JPG", "3.jpg_large", "4.jpg.1", "v1.5")
    files = images(*names) | {"README": b"text", "x.dat": b"\0" * 99, "y.json": jpeg(9)}
    source, samples = packed(make_folder(tmp_path / "in", files), tmp_path / "out")
    assert sorted(s["jpg"] for s in samples) == sorted(map(jpeg, range(6)))
    assert source.skipped == {"not_an_image": 3}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("a/1.jpg", "b/2.jpg"), ("a", "b")),
        (("v/car/1.jpg", "w/cat/2.jpg", "w/dog/3.jpg"), ("v/car", "w/cat", "w/dog")),
        (("images/a/1.jpg", "images/b/2.jpg"), ("a", "b")),
        (("a/images/1.jpg", "b/images/2.jpg"), ("a", "b")),
        (("a/1.jpg", "b/x/y/2.jpg", "b/3.jpg"), ("a", "b")),
        (("train/a/1.jpg", "train/b/2.jpg"), ("a", "b")),
        (("a/1.jpg", "2.jpg"), ()),
        (("a/1.jpg", "a/2.jpg"), ()),
        (("train/1.jpg", "bus/2.jpg"), ("bus", "train")),
    ],
)
def test_classes_are_the_folders_that_hold_the_images(tmp_path, names, classes):
    """Classes would be merged, or a folder above them would be the only class."""
    source = entries_from_folder(make_folder(tmp_path / "in", images(*names)))
    assert source.class_names == classes
    if classes:
        assert source.notes[0].startswith(f"{len(classes)} classes: {', '.join(classes)} (sub-")


@pytest.mark.parametrize(
    "names",
    [
        ("train/a/1.jpg", "test/a/2.jpg"),
        ("x y/Training/1.jpg", "x y/validation/2.jpg", "x y/test_images/3.jpg"),
        ("train2017/1.jpg", "val2017/2.jpg", "unlabeled2017/3.jpg"),
        ("cat/train/1.jpg", "dog/test/2.jpg"),
        ("train/a/1.jpg", "test/2.jpg", "logo.jpg"),
    ],
)
def test_splits_are_refused_with_commands_that_work(tmp_path, names, monkeypatch):
    """Trained on together with the training images, test images would prove nothing."""
    make_folder(tmp_path / "my in", images(*names))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"splits .*must not be mixed.*--labels none`") as error:
        entries_from_folder("my in")
    for command in re.findall(r"shards pack ('.*?'|\S+) OUT", str(error.value)):
        place = command.strip("'")
        labels = "none" if place == "my in" else "auto"
        assert len(entries_from_folder(place, labels).entries) >= 1


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_of_an_imagefolder_is_read(tmp_path, kind):
    """Labels and captions of sets in the layout of Hugging Face would be lost."""
    rows = [{"file_name": f"{n}.jpg", "label": "äb"[n % 2], "text": f"t{n}"} for n in range(3)]
    rows.append({"file_name": "gone.jpg", "label": "c", "text": "?"})
    folder = make_folder(tmp_path / "in", images("0.jpg", "1.jpg", "2.jpg", "more.jpg"))
    file = folder / f"metadata.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        file.write_text("\n".join(lines), "utf-8-sig")
    else:
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    source, samples = packed(folder, tmp_path / "out")
    assert [s.get("cls") for s in samples] == [b"1", b"0", b"1", None]
    assert classes_in(tmp_path / "out") == ["b", "ä"]
    assert [s.get("txt") for s in samples] == [b"t0", b"t1", b"t2", None]
    assert [json.loads(s["json"]) for s in samples[:3]] == rows[:3] and "json" not in samples[3]
    assert f"3 images have a row in metadata.{kind}" in source.notes
    assert "1 rows name a file that is not there, such as gone.jpg" in source.notes
    assert source.skipped == {}


def test_metadata_of_a_sub_folder_and_named_columns(tmp_path):
    """Paths are relative to the file; the usual columns may mean something else."""
    rows = [{"image_file_name": "sub/1.jpg", "kind": 5, "label": 0, "said": "x"}]
    folder = make_folder(tmp_path / "in", images("a/sub/1.jpg", "a/2.jpg"))
    (folder / "a" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"label_column": "kind", "caption_column": "said"}
    _, samples = packed(folder, tmp_path / "out", **columns)
    found = {s["jpg"]: (s.get("cls"), s.get("txt")) for s in samples}
    assert found == {jpeg(0): (b"5", b"x"), jpeg(1): (None, None)}
    with pytest.raises(UserError, match=r"columns\.label='no'.*has no such column; it has image_f"):
        entries_from_folder(folder, label_column="no")


@pytest.mark.parametrize("text", ["{", '["a"]', '{"name": "1.jpg"}'])
def test_metadata_that_cannot_be_used_is_refused(tmp_path, text):
    """The labels would be missing without a word."""
    folder = make_folder(tmp_path / "in", images("1.jpg") | {"metadata.jsonl": text.encode()})
    with pytest.raises(UserError, match=r"metadata\.jsonl (cannot be|has no column file_n)"):
        entries_from_folder(folder)


def test_required_labels_and_no_labels(tmp_path):
    """A missing label would show in the evaluation; an unwanted one would be trained on."""
    folder = make_folder(tmp_path / "in", images("1.jpg", "2.jpg"))
    with pytest.raises(UserError, match=r"--labels required, but .* has no labels; .*leave --lab"):
        entries_from_folder(folder, "required")
    make_folder(folder, {"1.cls": b"3", "1.txt": b"text"})
    assert [e.label for e in entries_from_folder(folder, "required").entries] == [3, None]
    source, samples = packed(folder, tmp_path / "out", "none")
    assert "cls" not in samples[0] and samples[0]["txt"] == b"text"
    assert source.class_names == ()


def test_labels_in_json_side_cars_count(tmp_path):
    """They would be refused as missing, or lose against the folders without a word."""
    files = images("1.jpg", "2.jpg") | {"1.json": b'{"label": 3}'}
    assert entries_from_folder(make_folder(tmp_path / "in", files), "required").entries
    files = images("a/1.jpg", "b/2.jpg") | {"b/2.json": b'{"label": 3}'}
    source = entries_from_folder(make_folder(tmp_path / "two", files))
    assert "the .json files have labels, too: the names of the folders are taken" in source.notes


def test_a_changed_side_car_is_another_input(tmp_path):
    """A finished pack would be taken for that of the new labels."""
    folder = make_folder(tmp_path / "in", images("1.jpg") | {"1.txt": b"a"})
    pack(entries_from_folder(folder), tmp_path / "out")
    assert pack(entries_from_folder(folder), tmp_path / "out").reused
    (folder / "1.txt").write_bytes(b"other")
    with pytest.raises(UserError, match="is not a complete pack of these images"):
        pack(entries_from_folder(folder), tmp_path / "out")
