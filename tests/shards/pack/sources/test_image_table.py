"""Parquet files that hold their images: each row once, with its label, in any order."""

import json
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import ConfigError, ManifestError, UserError
from shards.pack.pack import PackConfig, pack
from shards.pack.sources.pack_input import open_source
from shards.pack.table_entries import TableColumns
from shards.stores.shard_listing import list_shards
from tests.shards.pack.test_pack import jpeg, read_samples

IMAGES = [jpeg(number) for number in range(12)]
STRUCTS = [{"bytes": data, "path": f"d/im.{number}.png"} for number, data in enumerate(IMAGES)]


def write(path, rows=4, metadata=None, **columns):
    path.parent.mkdir(exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=rows)
    return str(path)


def open_table(place, labels="auto", **columns):
    return open_source(str(place), "auto", labels, TableColumns(**columns), None)


def packed(place, out, config=None, **columns):
    report = pack(open_table(place, **columns), out, config or PackConfig(seed=None))
    return report, read_samples(out)


@pytest.mark.parametrize("name", ["image", "jpg", "IMG", "photo", "bytes", "only"])
@pytest.mark.parametrize("values", [IMAGES, STRUCTS], ids=["binary", "struct"])
def test_columns_of_images_are_found(tmp_path, name, values):
    """Tables of images would need a script to unpack them."""
    file = write(tmp_path / "x.parquet", **{name: values, "cls": [n % 5 for n in range(12)]})
    _, samples = packed(file, tmp_path / "out")
    assert [s["jpg"] for s in samples] == IMAGES
    assert [s["cls"] for s in samples] == [b"%d" % (n % 5) for n in range(12)]
    end = "" if values is IMAGES else "-im_{}"
    assert [s["__key__"] for s in samples] == [f"{n:08d}{end.format(n)}" for n in range(12)]


@pytest.mark.parametrize("rows", [1, 5, 12])
@pytest.mark.parametrize("max_bytes", [1, 9_000, 1 << 28])
def test_each_row_is_packed_once_with_its_label(tmp_path, rows, max_bytes):
    """Rows would be lost at the bounds of row groups, or take the label of another row."""
    for number, part in enumerate((slice(0, 5), slice(5, 12))):
        labels = [f"w{n}" for n in range(12)][part]
        write(tmp_path / "in" / f"{number}.parquet", rows, image=STRUCTS[part], label=labels)
    report, samples = packed(tmp_path / "in", tmp_path / "out", PackConfig(max_bytes=max_bytes))
    names = (tmp_path / "out" / "classes.txt").read_text().splitlines()
    assert {s["jpg"]: names[int(s["cls"])] for s in samples} == {
        data: f"w{n}" for n, data in enumerate(IMAGES)
    }
    assert len(samples) == 12 == report.num_samples


def test_captions_keys_other_columns_and_missing_images(tmp_path):
    """A row without an image must be counted, and the rest kept."""
    file = write(
        tmp_path / "x.parquet",
        image=[*STRUCTS[:2], {"bytes": None, "path": "a.png"}],
        text=["a", None, "c"],
        key=list("xyz"),
        width=[1, 2, 3],
        label=[0, -1, 2],
    )
    report, samples = packed(file, tmp_path / "out", others="json")
    assert [s["__key__"] for s in samples] == ["x", "y"]
    assert json.loads(samples[0]["json"]) == {"key": "x", "width": 1}
    assert samples[0]["txt"] == b"a" and "txt" not in samples[1]
    assert samples[0]["cls"] == b"0" and "cls" not in samples[1]
    assert report.skipped == {"no_image": 1}


def test_class_names_of_a_hugging_face_schema_are_kept(tmp_path):
    """The numbers of two sets would mean different classes."""
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    metadata = {"huggingface": json.dumps(names)}
    write(tmp_path / "x.parquet", metadata=metadata, image=STRUCTS, label=[0, 1] * 6)
    source = open_table(tmp_path / "x.parquet")
    assert source.class_names == ("cat", "dog")
    assert source.notes[-1] == "2 classes: cat, dog (from the table)"


def test_splits_are_refused_with_globs_that_work(tmp_path):
    """Test images would be trained on."""
    for split in ("train", "test"):
        write(tmp_path / "my in" / f"{split}-00000-of-00001.parquet", image=STRUCTS)
    with pytest.raises(ConfigError, match=r"holds the splits test, train;") as error:
        open_table(tmp_path / "my in")
    for command in str(error.value).split("`")[1::2]:
        assert len(open_table(shlex.split(command)[3]).groups) == 3


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"n": [1]}, {}, r"the columns n \(int64\); one must hold images .*--columns\.image or"),
        ({"a": [b"x"], "b": [b"x"]}, {}, "one must hold images"),
        ({"image": [[b"x"]]}, {}, r"image \(list<.*; one must hold images"),
        ({"image": STRUCTS[:1]}, {"image": "x"}, r"columns\.image='x', but .*image \(struct"),
        ({"image": STRUCTS[:1]}, {"address": "image"}, r"columns\.address='image' is no text"),
        ({"image": STRUCTS[:1], "label": [0.5]}, {}, "labels .* are of type double"),
        ({"image": STRUCTS[:1]}, {"label": "x"}, r"columns\.label='x', but .* has no such column"),
    ],
)
def test_a_table_without_images_is_refused(tmp_path, columns, named, message):
    """A traceback would hide which column is missing."""
    file = write(tmp_path / "x.parquet", **columns)
    with pytest.raises((ConfigError, UserError), match=message):
        open_table(file, **named)


@pytest.mark.parametrize("label", [[0.5], ["word"], None, [1]])
def test_files_with_other_columns_or_classes_are_refused(tmp_path, label):
    """Numbers of the second file would be read as classes of the first, or end in a traceback."""
    names = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    write(tmp_path / "in" / "a.parquet", image=STRUCTS[:1], label=[0])
    columns = {"image": STRUCTS[:1]} | ({} if label is None else {"label": label})
    write(tmp_path / "in" / "b.parquet", metadata={"huggingface": json.dumps(names)}, **columns)
    with pytest.raises(
        UserError, match=r"have different columns or classes; .* `streamssl shards pack"
    ):
        open_table(tmp_path / "in")


def test_a_damaged_table_is_named(tmp_path):
    """A traceback of a library would hide the file."""
    good = write(tmp_path / "in" / "a.parquet", image=STRUCTS)
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"b\.parquet cannot be read as Parquet .*write it again"):
        open_table(tmp_path / "in")
    data = bytearray((tmp_path / "in" / "a.parquet").read_bytes())
    data[40:4000] = bytes(3960)
    source = open_table(good)
    (tmp_path / "in" / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"no image found in .* \(12 changed\)"):
        pack(source, tmp_path / "out")
    report, _ = packed(good, tmp_path / "again")
    assert report.num_samples + sum(report.skipped.values()) == 12


def test_required_labels_must_be_a_column(tmp_path):
    """The labels would be missed after the pack."""
    file = write(tmp_path / "x.parquet", image=STRUCTS)
    with pytest.raises(UserError, match=r"--labels required, but .*--columns\.label"):
        open_table(file, "required")


@pytest.mark.slow
def test_a_table_in_a_store_is_read_in_parts(s3, tmp_path):
    """Sets of terabytes are in stores."""
    s3.create_bucket(Bucket="tables")
    data = (tmp_path / "x.parquet", write(tmp_path / "x.parquet", image=STRUCTS))[0].read_bytes()
    s3.put_object(Bucket="tables", Key="in/train-0.parquet", Body=data)
    for number, place in enumerate(("s3://tables/in", "s3://tables/in/train-*.parquet")):
        _, samples = packed(place, tmp_path / str(number))
        assert [s["jpg"] for s in samples] == IMAGES


@pytest.mark.parametrize("name", ["x.parquet", "", "*.parquet"])
def test_a_table_given_as_shards_names_the_command(tmp_path, name):
    """`not a tar` would send the user to a command that fails."""
    write(tmp_path / "my in" / "x.parquet", image=STRUCTS)
    with pytest.raises(ManifestError, match=r"holds Parquet, no shards; .* give OUT") as error:
        list_shards(f"{tmp_path}/my in/{name}")
    command = shlex.split(str(error.value).split("`")[1])
    assert len(open_table(command[3].rstrip("/")).groups) == 3
