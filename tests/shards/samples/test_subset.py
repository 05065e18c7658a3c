"""Subset lists of any format select the right samples, at the cost of a binary search."""

import io
import json
import mmap
import pickle
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.crops.chunk_cropper import ChunkCropper, check_subset
from shards.crops.recipe import cifar
from shards.errors import ConfigError
from shards.records import Chunk, Sample, Turn
from shards.samples.metadata import MetadataError, read_metadata
from shards.samples.subset import build_subset, hash_key, pairs_of
from shards.samples.subset_file import load_subset
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from tests.noise import noise
from tests.shards.jobs import crop_job
from tests.tars import make_tar

RECIPE = cifar(counts=(2,), sizes=(16,), scales=((0.2, 1.0),))
UIDS = [f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}" for number in range(40)]
DATACOMP = np.dtype("u8,u8")


def as_datacomp(uids):
    """Build a list as the scripts of DataComp do."""
    rows = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], DATACOMP)
    rows.sort()
    return rows


def save(path, array):
    np.save(path, array)
    return str(path)


def sample(key="000", uid=None, **fields):
    metadata = {} if uid is None else {"json": json.dumps({"key": key, "uid": uid}).encode()}
    return Sample(0, 0, key, {"jpg": b"", **metadata, **fields})


def img2dataset_tar(uids, *, junk=()):
    """Build a shard like img2dataset, with the uids of DataComp; images in `junk` are broken."""
    members = []
    for number, uid in enumerate(uids):
        key = f"{number:09d}"
        fields = {"uid": uid, "key": key, "status": "success", "error_message": None, "width": 24}
        data = b"<html>" if number in junk else noise(24, 24, ".jpg", number)
        members += [
            (f"{key}.jpg", data),
            (f"{key}.json", json.dumps(fields).encode()),
            (f"{key}.txt", b'a "quoted" caption'),
        ]
    return make_tar(members, tarfile.PAX_FORMAT)


@pytest.fixture
def shard(tmp_path):
    """Twelve samples in the form of DataComp; the images 1, 4 and 7 are web pages."""
    (tmp_path / "00000000.tar").write_bytes(img2dataset_tar(UIDS[:12], junk=(1, 4, 7)))
    return list_shards(str(tmp_path / "00000000.tar"))[0]


def crop(shard, subset):
    turn = Turn(Chunk(0, 0, shard.num_bytes), 0)
    return ChunkCropper(crop_job(RECIPE, 1, subset=subset), RangeReader()).crop(shard, turn)


def test_list_of_datacomp_selects_from_its_shards(shard, tmp_path):
    """The user would have to copy a petabyte with the DataComp resharder."""
    chosen = [0, 3, 4, 8, 11]
    path = save(tmp_path / "subset.npy", as_datacomp([UIDS[i] for i in [*chosen, 30, 35]]))
    everything, selected = crop(shard, None), crop(shard, load_subset(path))
    assert np.array_equal(selected.offsets, everything.offsets[chosen])
    assert selected.kept.tolist() == [True, True, False, True, True]
    assert [reject.reason for reject in selected.rejects] == ["not_an_image"]
    assert selected.num_unselected == 7 and everything.num_unselected == 0
    rows = [int(everything.kept[:i].sum()) for i in (0, 3, 8, 11)]
    assert np.array_equal(selected.crops[0], everything.crops[0][rows])


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def text(path, lines):
    path.write_text("\n".join(lines) + "\n\n")
    return str(path)


def test_same_uids_from_any_file_have_the_same_digest(tmp_path):
    """A resumed run would refuse unchanged data, or accept changed data."""
    uids, pairs = UIDS[:20], as_datacomp(UIDS[:20])
    paths = [
        save(tmp_path / "a.npy", pairs),
        save(tmp_path / "b.npy", pairs.view(np.uint64).reshape(-1, 2)),
        save(tmp_path / "c.npy", np.array(uids)),
        save(tmp_path / "d.npy", np.array(uids, "S")),
        text(tmp_path / "e.txt", [uid.upper() for uid in uids]),
        parquet(tmp_path / "f.parquet", key=[str(i) for i in range(20)], uid=uids),
        parquet(tmp_path / "g.PARQUET", mine=uids, uid=UIDS[20:40]) + "::mine",
        save(tmp_path / "h.npy", pairs[::-1]),
        text(tmp_path / "i.txt", [*uids, uids[3], uids[3], uids[7]]),
    ]
    subsets = [load_subset(path) for path in paths]
    assert {subset.digest for subset in subsets} == {subsets[0].digest}
    assert {subset.kind for subset in subsets} == {"uid"}
    for subset in subsets:
        assert len(subset) == 20
        wanted = subset.select([sample(uid=uid) for uid in UIDS])
        assert wanted.tolist() == [True] * 20 + [False] * 20
    assert load_subset(save(tmp_path / "j.npy", as_datacomp(UIDS[:19]))).digest != subsets[0].digest


def test_summary_reports_order_and_duplicates(tmp_path):
    """The user would not learn that a list is unsorted or has duplicates."""
    rows = as_datacomp([*UIDS[:9], UIDS[2]])
    assert load_subset(save(tmp_path / "a.npy", rows[:9])).was_sorted
    found = load_subset(save(tmp_path / "b.npy", rows[::-1]))
    assert found.summary == "9 uids (not sorted in the file; 1 duplicates)"
    assert load_subset(text(tmp_path / "c.txt", ["k"])).summary == "1 keys"


def test_list_is_memory_mapped_and_pickled_without_copies(tmp_path):
    """Every reader would hold its own 16 GB of a list of a billion."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(0, 1 << 63, 5000, np.uint64))
    pairs = np.stack([rows, rows], axis=1)
    for array in (pairs, pairs.view(DATACOMP).ravel()):
        subset = load_subset(save(tmp_path / "a.npy", array))
        base = subset.pairs
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, mmap.mmap)
        buffers = []
        assert len(pickle.dumps(subset, protocol=5, buffer_callback=buffers.append)) < 2000
        assert 80_000 <= sum(len(buffer.raw()) for buffer in buffers) == subset.num_bytes < 82_000


@pytest.mark.parametrize(
    ("entries", "selected"),
    [
        (["000017"], ["000017", "a/000017", "./000017", "b/c/000017"]),
        (["000017.jpg"], ["000017", "a/000017", "./000017", "b/c/000017"]),
        (["a/000017", "000018"], ["a/000017", "./000018", "000018"]),
        (["./a/000017.seg.png"], ["a/000017"]),
        (["x.y/000017"], ["x.y/000017"]),
    ],
)
def test_keys_have_folders_if_any_entry_has_one(entries, selected, tmp_path):
    """Keys that repeat between folders would select the wrong samples."""
    keys = ["000017", "a/000017", "./000017", "b/c/000017", "x.y/000017", "000018", "./000018"]
    keys += ["a/000018", "0000171", "jpg"]
    subset = load_subset(text(tmp_path / "a.txt", entries))
    wanted = subset.select([sample(key) for key in keys])
    found = {key for key, is_wanted in zip(keys, wanted, strict=True) if is_wanted}
    expected = set(selected) | ({"x.y/000017"} if "/" not in entries[0] else set())
    assert found == expected
    column = load_subset(parquet(tmp_path / "b.parquet", key=entries))
    assert (column.kind, column.digest) == (subset.kind, subset.digest)


def test_column_of_keys_may_look_like_uids(tmp_path):
    """A crawl that names files by md5 would select nothing."""
    subset = load_subset(parquet(tmp_path / "a.parquet", key=UIDS[:3]))
    assert subset.kind == "name" and subset.selects(sample(UIDS[0], uid=UIDS[9]))


def test_invalid_utf8_matches_itself(tmp_path):
    """Samples with names in other encodings could not be selected."""
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe caf\xe9\n")
    assert load_subset(str(tmp_path / "a.txt")).selects(sample("\udcff\udcfe caf\udce9"))


@pytest.mark.parametrize("seed", range(20))
def test_search_finds_what_a_set_finds(seed):
    """Equal prefixes, single entries or extreme values would be missed."""
    rng = np.random.default_rng(seed)
    size, width = int(rng.integers(1, 400)), int(rng.choice([1, 3, 64]))
    most = np.uint64((1 << width) - 1)
    ends = np.array([[0, 0], [most, most], [0, most]], np.uint64)
    pairs = np.concatenate([rng.integers(0, most, (size, 2), np.uint64, endpoint=True), ends])
    chosen = pairs[rng.random(len(pairs)) < 0.7] if seed else pairs[:1]
    chosen = chosen if len(chosen) else pairs[:1]
    subset = build_subset("uid", chosen)
    expected = [tuple(row) in set(map(tuple, chosen.tolist())) for row in pairs.tolist()]
    assert subset._holds(pairs).tolist() == expected
    assert len(subset) == len(set(map(tuple, chosen.tolist())))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(UIDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("uid"), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(found=JSON, spaced=st.booleans(), ascii_only=st.booleans())
def test_uid_equals_that_of_a_json_parser(found, spaced, ascii_only):
    """A uid in a caption or an inner object would be used."""
    written = json.dumps(found, ensure_ascii=ascii_only, indent=1 if spaced else None)
    tricky = sample(json=written.encode("utf-8", "surrogatepass"))
    subset = build_subset("uid", np.zeros((1, 2), np.uint64))
    uid = found.get("uid") if isinstance(found, dict) else None
    expected = bytes.fromhex(uid) if isinstance(uid, str) and uid in UIDS else None
    assert subset.identify(tricky) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"uid": 7}',
        b'{"uid": "0123"}',
        b'{"uid": null, "url": "x"}',
        b'{"a": {"uid": "%s"}}' % UIDS[0].encode(),
        b'{"caption": "\\"uid\\": \\"%s\\""}' % UIDS[0].encode(),
        b'{"a\\"uid": "%s"}' % UIDS[0].encode(),
    ],
)
def test_sample_without_uid_is_in_no_list_of_uids(data):
    """It would be selected, or raise."""
    subset = build_subset("uid", pairs_of(bytes.fromhex("".join(UIDS))))
    assert not subset.selects(sample(json=data))
    assert not build_subset("uid", np.zeros((1, 2), np.uint64)).selects(sample())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(p / "none.txt"), r"none\.txt' cannot be read \(.*No such file.*\); give a"),
        (lambda p: text(p / "a.csv", ["k"]), r"it must be a \.parquet, \.txt or \.npy file"),
        (lambda p: text(p / "a.txt", ["k"]) + "::key", r"only Parquet has columns"),
        (lambda p: text(p / "a.txt", []), r"names no sample; it must hold at least one"),
        (lambda p: save(p / "a.npy", as_datacomp([])), r"names no sample"),
        (lambda p: parquet(p / "a.parquet", uid=pyarrow.array([], "string")), r"names no sample"),
        (lambda p: text(p / "a.txt", [UIDS[0], "k"]), r"holds 'k' in a list of uids, .*all keys"),
        (lambda p: text(p / "a.txt", ["k", UIDS[0]]), r"in a list of keys, .* are 32 hex digits"),
        (lambda p: text(p / "a.txt", ["a\0b"]), r"which is not text"),
        (lambda p: save(p / "a.npy", np.zeros((3, 3))), r"holds float64 of shape \(3, 3\), but a"),
        (lambda p: save(p / "a.npy", np.zeros(3, "u8,u4")), r"but a list is u8,u8 of shape"),
        (lambda p: text(p / "a.npy", ["no array"]), r"cannot be read"),
        (lambda p: text(p / "a.parquet", ["no table"]), r"cannot be read"),
        (lambda p: parquet(p / "a.parquet", url=["x"]), r"has the columns url, none is uid or key"),
        (lambda p: parquet(p / "a.parquet", uid=UIDS[:1]) + "::x", r"columns uid, none is x"),
        (lambda p: parquet(p / "a.parquet", key=[1]), r"column key holds 1, but uids and keys are"),
        (lambda p: parquet(p / "a.parquet", key=["k", None]), r"column key holds None"),
        (lambda p: parquet(p / "a.parquet", uid=["k"]), r"holds 'k' in a list of uids"),
    ],
)
def test_invalid_list_is_one_sentence(make, message, tmp_path):
    """The user would get a traceback, or no remedy."""
    with pytest.raises(ConfigError, match=rf"^subset='.*{message}") as error:
        load_subset(make(tmp_path))
    assert "\n" not in str(error.value)


def test_pickled_arrays_are_refused(tmp_path):
    """A downloaded list could run code."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "a.npy").write_bytes(buffer.getvalue())
    with pytest.raises(ConfigError, match="cannot be read"):
        load_subset(str(tmp_path / "a.npy"))


def test_list_of_uids_is_refused_for_samples_without_uid(shard, tmp_path):
    """A run would read the whole bucket and select nothing."""
    (tmp_path / "other.tar").write_bytes(make_tar([("a.jpg", b"x"), ("b.jpg", b"x")]))
    (other,) = list_shards(str(tmp_path / "other.tar"))
    uids = build_subset("uid", pairs_of(bytes.fromhex(UIDS[39])))
    check_subset(uids, [shard], RangeReader())  # it selects none of these, but their uids fit
    with pytest.raises(ConfigError, match=r"sample 'a' \(members: jpg\) and the 1 after it have"):
        check_subset(uids, [other, shard], RangeReader())
    check_subset(build_subset("key", pairs_of(hash_key("a"))), [other], RangeReader())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "JSONDecodeError"),
        (b"[1]", "is a list, not an object"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "1048585 bytes, more than 1048576"),
        (b'{"a": ' + b"[" * 5000, "RecursionError"),
        (b'{"a": ' + b"9" * 5000 + b"}", "ValueError"),
        (b"\xff\xff", "UnicodeDecodeError"),
    ],
)
def test_invalid_metadata_raise_one_kind_of_error(data, message):
    """Untrusted JSON would end a reader."""
    with pytest.raises(MetadataError, match=message):
        read_metadata(Sample(0, 0, "k", {"json": data}))
