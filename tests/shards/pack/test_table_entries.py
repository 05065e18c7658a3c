"""Rows of Parquet files: purposes of columns, and values without a JSON form."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import ConfigError, UserError
from shards.pack.pack import PackConfig, pack
from shards.pack.sources.pack_input import open_source
from shards.pack.table_entries import TableColumns, entries_from_parquet
from tests.shards.pack.test_pack import jpeg, make_folder, read_samples


@pytest.fixture
def write(tmp_path):
    """Function that writes a table beside the images p/0.jpg .. p/3.jpg and returns its path."""
    make_folder(tmp_path, {f"p/{i}.jpg": jpeg(i) for i in range(4)})

    def write(file="t.parquet", /, **columns):
        pq.write_table(pa.table(columns), tmp_path / file)
        return str(tmp_path / file)

    return write


PATHS = [f"p/{i}.jpg" for i in range(4)]


def packed(file, out, columns=None, labels="auto"):
    """Pack a table and return its samples in the order of the rows."""
    config = PackConfig(seed=None)
    report = pack(entries_from_parquet([file], columns, labels), out, config)
    return report, read_samples(out)


@pytest.mark.parametrize("name", ["url", "path", "URL"])
def test_the_usual_columns_are_found(write, tmp_path, name):
    """LAION writes URL and TEXT, DataComp url and text, others path."""
    file = write(**{name: PATHS, "TEXT": list("abcd"), "class": [3, 1, 2, 0]})
    _, samples = packed(file, tmp_path / "out")
    assert [s["jpg"] for s in samples] == [jpeg(i) for i in range(4)]
    assert [s["txt"].decode() for s in samples] == list("abcd")
    assert [s["cls"].decode() for s in samples] == list("3120")
    assert all("json" not in s for s in samples)


def test_other_columns_can_be_named(write, tmp_path):
    """The columns of a terabyte of tables cannot be renamed."""
    columns = TableColumns(address="where", label="kind", key="name", caption="said")
    facts = {"kind": ["x", "y", "x", "z"], "name": list("mnop"), "said": list("efgh")}
    file = write(where=PATHS, url=["u"] * 4, label=[9] * 4, **facts)
    _, samples = packed(file, tmp_path / "out", columns)
    assert [s["__key__"] for s in samples] == list("mnop")
    assert [s["cls"].decode() for s in samples] == list("0102")
    assert [json.loads(s["json"]) for s in samples] == [{"name": key} for key in "mnop"]
    assert (tmp_path / "out" / "classes.txt").read_text() == "x\ny\nz\n"


def test_all_other_columns_can_be_written_to_json(write, tmp_path):
    """Some readers refuse NaN and other values without a JSON form."""
    file = write(
        path=PATHS,
        caption=list("abcd"),
        score=[1.5, float("nan"), float("inf"), None],
        box=[[1, 2], [], None, [3]],
        when=[datetime.datetime(2026, 1, 2)] * 4,
        price=[decimal.Decimal("1.10")] * 4,
        raw=[b"\x00\xff"] * 4,
        nested=[{"a": float("nan"), "b": "ü"}] * 4,
    )
    _, samples = packed(file, tmp_path / "out", TableColumns(others="json"))
    first, second = (json.loads(s["json"], parse_constant=pytest.fail) for s in samples[:2])
    assert first == {
        "path": "p/0.jpg", "score": 1.5, "box": [1, 2], "when": "2026-01-02T00:00:00",
        "price": "1.10", "raw": "00ff", "nested": {"a": None, "b": "ü"},
    }  # fmt: skip
    assert second["score"] is None and "caption" not in second


def test_unusual_keys_become_safe_unique_keys(write, tmp_path):
    """A dot in a key starts the extension early; equal keys merge two images into one."""
    file = write(path=PATHS, key=["a.b", "a b", "../up/x", None])
    report, samples = packed(file, tmp_path / "out")
    keys = [s["__key__"] for s in samples]
    assert keys == ["a_b", "a_b-2", "_/up/x", "00000003-3"] and report.num_renamed == 1
    assert [json.loads(s["json"])["key"] for s in samples] == ["a.b", "a b", "../up/x", None]


def test_rows_without_an_image_are_counted(write, tmp_path):
    """A row that is not counted would be lost silently."""
    file = write(path=["p/0.jpg", None, "", "p/none.jpg", "file:///etc/hostname", "p"])
    report, samples = packed(file, tmp_path / "out")
    assert len(samples) == 1 and report.skipped == {"bad_address": 3, "unreadable": 2}


def test_label_names_are_numbered_in_order_and_can_be_ignored(write, tmp_path):
    """Labels may also be dictionary columns and numbers as text."""
    names = pa.array(["b", "a", "b", "c"]).dictionary_encode()
    source = entries_from_parquet([write(path=PATHS, label=names)])
    assert source.class_names == ("a", "b", "c")
    assert [entry.label for entry in source.entries] == [1, 0, 1, 2]
    source = entries_from_parquet([write(path=PATHS, label=["10", "2", "3", "2"])])
    assert source.class_names == () and [e.label for e in source.entries] == [10, 2, 3, 2]
    _, samples = packed(write(path=PATHS, label=names), tmp_path / "out", labels="none")
    assert all("cls" not in s for s in samples)


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"image": PATHS}, {}, r"has the columns image, none is url, path, uri; .*--columns.addr"),
        ({"path": PATHS}, {"label": "x"}, r"columns.label='x', but .* has no such column; it has"),
        (
            {"path": PATHS, "label": [1, None, 2, 3]},
            {},
            r"1 of 4 rows of .* have no label; .*compl",
        ),
        ({"path": PATHS, "label": [0.5] * 4}, {}, r"labels of .* are of type double; .*convert"),
    ],
)
def test_an_unusable_table_is_refused_with_a_remedy(write, columns, named, message):
    """A traceback of Arrow would not name the column."""
    with pytest.raises((ConfigError, UserError), match=message):
        entries_from_parquet([write(**columns)], TableColumns(**named))


def test_a_file_that_is_not_parquet_is_refused_with_a_remedy(tmp_path):
    """A traceback of Arrow would not name the file."""
    with pytest.raises(UserError, match=r"none.parquet cannot be read \(No such file"):
        entries_from_parquet([str(tmp_path / "none.parquet")])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=r"bad.parquet cannot be read as Parquet \(.*; a file with"):
        entries_from_parquet([str(tmp_path / "bad.parquet")])


def test_several_tables_are_one_source_in_the_order_of_their_names(write, tmp_path):
    """img2dataset writes hundreds of metadata files."""
    write("b.parquet", path=PATHS[2:], label=["x", "y"])
    write("a.parquet", path=PATHS[:2], label=["y", "z"])
    source = open_source(f"{tmp_path}/*.parquet", "auto", "auto", TableColumns(), None)
    assert [entry.name for entry in source.entries] == PATHS
    assert [entry.label for entry in source.entries] == [1, 2, 0, 1]
    with pytest.raises(ConfigError, match=r"no file matches '.*x\*.parquet'; at least one"):
        open_source(f"{tmp_path}/x*.parquet", "auto", "auto", TableColumns(), None)
    write("c.parquet", url=["p/0.jpg"])
    with pytest.raises(UserError, match="the 2 files after it have different columns; they must"):
        open_source(f"{tmp_path}/*.parquet", "auto", "auto", TableColumns(), None)
