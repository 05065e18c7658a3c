"""Shards become other shards: every sample, as it was, once; in the shards that were asked for."""

import gzip
import itertools
import json
import random
import shutil
import tarfile
import warnings
from collections import Counter

import numpy as np
import pytest
from webdataset.writer import ShardWriter

from shards.errors import ConfigError, ManifestError, UserError
from shards.pack.pack import PackConfig, PackProgress, pack
from shards.pack.pack_input import open_source
from shards.pack.table_entries import TableColumns
from shards.samples.admission_config import AdmissionConfig
from tests.shards.pack.helpers import Stop, StopAfter
from tests.shards.pack.test_pack import jpeg, make_folder, read_with_webdataset, shard_bytes
from tests.tars import make_tar, samples_by_tarfile
from tests.wild_tars import expected_samples, wild_tar


def open_shards(pattern, subset=None):
    return open_source(str(pattern), "shards", "auto", TableColumns(), subset)


def samples_in(folder):
    """(key, members) of every sample of the shards in a folder, by the standard library."""
    found = [samples_by_tarfile(path.read_bytes()) for path in sorted(folder.glob("*.tar"))]
    return [sample for shard in found for sample in shard]


def as_set(samples):
    return Counter((key, tuple(sorted(fields.items()))) for key, fields in samples)


@pytest.fixture
def shards(tmp_path):
    """Three tars of 40 samples each: an image and its JSON."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        members = [
            (f"{number:05d}{i:04d}.{extension}", data)
            for i in range(40)
            for extension, data in (
                ("jpg", jpeg(number * 40 + i)),
                ("json", json.dumps({"uid": f"{number * 40 + i:032x}"}).encode()),
            )
        ]
        (folder / f"{number:05d}.tar").write_bytes(make_tar(members))
    return folder


@pytest.mark.parametrize(
    ("config", "num_shards"),
    [
        (PackConfig(), 1),
        (PackConfig(seed=None), 1),
        (PackConfig(max_bytes=70_000), range(4, 8)),
        (PackConfig(max_bytes=70_000, seed=None), range(4, 8)),
        (PackConfig(samples_per_shard=30), range(3, 7)),
        (PackConfig(max_bytes=1), range(4, 121)),
    ],
)
def test_every_sample_is_there_once_as_it_was(shards, tmp_path, config, num_shards):
    """Packed again twice a year, a data set would wear away."""
    report = pack(open_shards(shards), tmp_path / "out", config)
    assert report.num_samples == 120 and report.num_renamed == 0 and report.skipped == {}
    assert report.num_shards in (num_shards if isinstance(num_shards, range) else [num_shards])
    found, there = samples_in(tmp_path / "out"), samples_in(shards)
    assert as_set(found) == as_set(there)
    assert (found == there) == (config.seed is None)


def test_a_seed_mixes_samples_from_everywhere(shards, tmp_path):
    """Shards that are sorted by class would stay sorted."""
    pack(open_shards(shards), tmp_path / "out", PackConfig(max_bytes=140_000))
    for path in (tmp_path / "out").glob("*.tar"):
        rows = [int(key[:5]) for key, _ in samples_by_tarfile(path.read_bytes())]
        assert len(set(rows)) > 1
        assert sum(a != b for a, b in itertools.pairwise(rows)) > len(rows) / 4


def check_wild_shards(folder, seed):
    """Pack three tars of any kind again, and compare with what the standard library finds."""
    rng = random.Random(seed)
    (folder / "in").mkdir(parents=True)
    wild = [wild_tar(1000 * seed + i, nested=rng.random() < 0.3) for i in range(3)]
    for number, tar in enumerate(wild):
        (folder / "in" / f"{number}.tar").write_bytes(tar.data)
    config = PackConfig(max_bytes=rng.choice([1, 300_000, 1 << 28]), seed=rng.choice([0, None]))
    try:
        source = open_shards(folder / "in")
    except ManifestError as error:  # a look at the first samples found a mistake
        assert "tar inside the tar" in str(error)
        return
    report = pack(source, folder / "out", config)
    there = [(e.key, e.fields) for tar in wild for e in expected_samples(tar.data)]
    found = [
        (e.key, e.fields)
        for path in sorted((folder / "out").glob("*.tar"))
        for e in expected_samples(path.read_bytes())
    ]
    assert report.num_samples == len(found) == len(there)
    assert contents(found) == contents(there)
    assert sum((as_set(found) & as_set(there)).values()) >= len(there) - report.num_renamed
    assert sum(report.skipped.values()) == sum(tar.num_damaged for tar in wild)


def contents(samples):
    return Counter(tuple(sorted(fields.items())) for _, fields in samples)


@pytest.mark.parametrize("seed", range(20))
def test_tars_of_every_kind_come_through(tmp_path, seed):
    """Long names, folders, links, empty members, tars in the tar: nothing is lost or split."""
    check_wild_shards(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thousands_of_tars_of_every_kind_come_through(tmp_path):
    """The same at the length that finds what is rare."""
    for seed in range(1000, 2000):
        check_wild_shards(tmp_path / str(seed), seed)
        shutil.rmtree(tmp_path / str(seed))


def test_keys_that_collide_get_a_number_and_are_counted(tmp_path):
    """Keys of img2dataset are unique within one data set only; merged samples are two lost ones."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        members = [(f"a/{i:03d}.jpg", jpeg(10 * number + i)) for i in range(10)]
        (folder / f"{number}.tar").write_bytes(make_tar([*members, ("a/001-2.jpg", jpeg(90))]))
    out, again = tmp_path / "out", tmp_path / "again"
    report = pack(open_shards(folder), out)
    assert (report.num_samples, report.num_renamed) == (33, 22)
    keys = [sample["__key__"] for sample in read_with_webdataset(out)]
    assert len(set(keys)) == len(keys) == 33
    assert {f"a/{i:03d}{more}" for i in range(10) for more in ("", "-2", "-3")} <= set(keys)
    pack(open_shards(folder), again)
    assert shard_bytes(out) == shard_bytes(again)


def test_shards_of_the_webdataset_writer_come_through(tmp_path):
    """What the neighbours write is what most buckets hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with ShardWriter(f"{tmp_path}/w-%06d.tar", maxcount=7, verbose=0) as writer:
            for i in range(20):
                writer.write({"__key__": f"s{i:03d}", "jpg": jpeg(i), "cls": i, "json": {"n": i}})
    report = pack(open_shards(f"{tmp_path}/w-*.tar"), tmp_path / "out")
    rows = list(
        read_with_webdataset(
            tmp_path / "out", lambda dataset: dataset.decode().to_tuple("__key__", "cls", "json")
        )
    )
    assert report.num_samples == 20
    assert sorted(rows) == [(f"s{i:03d}", i, {"n": i}) for i in range(20)]


def test_an_img2dataset_folder_is_packed_as_shards(shards, tmp_path):
    """Parquet and statistics lie beside the tars; the folder must not be taken for a list."""
    for number in range(3):
        (shards / f"{number:05d}.parquet").write_bytes(b"PAR1")
        (shards / f"{number:05d}_stats.json").write_text("{}")
    source = open_source(str(shards), "auto", "auto", TableColumns(), None)
    assert pack(source, tmp_path / "out").num_samples == 120


@pytest.mark.parametrize("form", ["txt", "npy"])
def test_a_subset_list_chooses_samples(shards, tmp_path, form):
    """DataComp's lists would otherwise need a tool of their own."""
    wanted = [3, 50, 119]
    if form == "txt":
        file = tmp_path / "list.txt"
        file.write_text("\n".join(f"{i // 40:05d}{i % 40:04d}" for i in wanted))
    else:
        file = tmp_path / "list.npy"
        np.save(file, np.array([(0, i) for i in wanted], "u8,u8"))
    report = pack(open_shards(shards, str(file)), tmp_path / "out")
    assert (report.num_samples, report.num_unselected) == (3, 117)
    assert {fields["jpg"] for _, fields in samples_in(tmp_path / "out")} == set(map(jpeg, wanted))
    with pytest.raises(UserError, match="not a complete pack of these images"):
        pack(open_shards(shards), tmp_path / "out")


def test_a_subset_list_of_single_images_is_refused(tmp_path, shards):
    """It would be ignored without a word."""
    folder = make_folder(tmp_path / "images", {"a.jpg": jpeg(1)})
    with pytest.raises(ConfigError, match=r"subset='x.txt' with a folder of images; .*list the"):
        open_source(str(folder), "auto", "auto", TableColumns(), "x.txt")


def test_admission_leaves_out_what_a_run_would_reject(tmp_path):
    """Without it everything is kept, images or not."""
    members = [("a.jpg", jpeg(1)), ("b.txt", b"no image"), ("c.jpg", b"<html>"), ("d.npy", b"x")]
    (tmp_path / "in.tar").write_bytes(make_tar(members))
    source = open_shards(tmp_path / "in.tar")
    assert pack(source, tmp_path / "all").num_samples == 4
    report = pack(source, tmp_path / "good", admission=AdmissionConfig())
    assert report.num_samples == 1
    assert report.skipped == {"no_image": 2, "not_an_image": 1}


def test_damage_is_counted_and_the_rest_comes_through(tmp_path, shards):
    """One bad block must not cost a shard, and must not go unnoticed."""
    path = shards / "00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3 + 100])
    report = pack(open_shards(shards), tmp_path / "out", PackConfig(max_bytes=70_000))
    assert 100 < report.num_samples < 120 and sum(report.skipped.values()) == 1
    left_out = [json.loads(p.read_text())["left_out"] for p in (tmp_path / "out").glob("s*.json")]
    (names,) = [names for entry in left_out for names in entry.values()]
    assert "00001.tar at byte" in names[0]


def test_compressed_shards_become_plain_ones(tmp_path, shards):
    """A .tar.gz cannot be read in ranges; packed again it can."""
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in shards.glob("*.tar"):
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    report = pack(open_shards(packed), tmp_path / "out", PackConfig(max_bytes=70_000))
    assert report.num_samples == 120
    assert as_set(samples_in(tmp_path / "out")) == as_set(samples_in(shards))


def nested_tar(num_inner, size):
    """Good samples around one that is a tar of many; its inside looks like samples."""
    inner = make_tar([(f"inner{i:04d}.jpg", jpeg(500 + i % 9)) for i in range(num_inner)])
    before = [(f"a{i:03d}.jpg", jpeg(i)) for i in range(size)]
    after = [(f"c{i:03d}.jpg", jpeg(i)) for i in range(size)]
    # Not a member on its own: that would be refused as a mistake.
    return make_tar([*before, ("b.jpg", jpeg(77)), ("b.extra", inner), *after])


def test_a_tar_inside_the_tar_is_not_taken_for_samples(tmp_path):
    """Its images would become samples, and the sample that holds it would lose a member."""
    (tmp_path / "in.tar").write_bytes(nested_tar(300, 60))
    seen = []

    class Look(PackProgress):
        def begin(self, num_units, unit):
            seen.append((num_units, unit))

    config = PackConfig(max_bytes=200_000)
    report = pack(open_shards(tmp_path / "in.tar"), tmp_path / "out", config, progress=Look())
    assert report.num_samples == 121
    assert as_set(samples_in(tmp_path / "out")) == as_set(samples_in_file(tmp_path / "in.tar"))
    assert len(seen) == 2, "the first cut should have been deceived, and made again"


def samples_in_file(path):
    return samples_by_tarfile(path.read_bytes())


def test_a_deceived_pack_that_was_stopped_comes_to_the_same_end(tmp_path):
    """Shards cut before the nested tar was known must not survive a restart."""
    (tmp_path / "in.tar").write_bytes(nested_tar(300, 60))
    source, config = open_shards(tmp_path / "in.tar"), PackConfig(max_bytes=200_000)

    pack(source, tmp_path / "whole", config)
    size = (tmp_path / "in.tar").stat().st_size
    for number, units in enumerate((size // 3, size + size // 3)):
        out = tmp_path / f"stopped-{number}"
        with pytest.raises(Stop):
            pack(source, out, config, progress=StopAfter(units))
        pack(source, out, config)
        assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


def test_names_that_need_it_get_pax_headers_and_all_readers_agree(tmp_path):
    """A name cut at a hundred bytes merges samples."""
    names = ["x" * 150, "é" * 40, "folder/" * 20 + "長い名前", "plain"]
    members = [(f"{name}.jpg", jpeg(i)) for i, name in enumerate(names)]
    (tmp_path / "in.tar").write_bytes(make_tar(members, tarfile.PAX_FORMAT))
    pack(open_shards(tmp_path / "in.tar"), tmp_path / "out")
    assert {key for key, _ in samples_in(tmp_path / "out")} == set(names)
    assert {s["__key__"] for s in read_with_webdataset(tmp_path / "out")} == set(names)
    again = open_shards(tmp_path / "out")
    pack(again, tmp_path / "again", PackConfig(seed=None))
    assert samples_in(tmp_path / "again") == samples_in(tmp_path / "out")


def test_shards_and_images_in_one_folder_need_a_word(tmp_path, shards):
    """Whichever were taken, the others would be missed by nobody."""
    make_folder(shards, {"a.jpg": jpeg(1)})
    with pytest.raises(ConfigError, match=r"holds images and shards; .* give --kind folder or"):
        open_source(str(shards), "auto", "auto", TableColumns(), None)
    source = open_source(str(shards), "folder", "auto", TableColumns(), None)
    assert pack(source, tmp_path / "out").num_samples == 1
