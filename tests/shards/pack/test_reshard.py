"""Shards packed again: each sample once and unchanged, in shards of the requested size."""

import gzip
import itertools
import json
import random
import shutil
from collections import Counter

import pytest

from shards.errors import ConfigError, ManifestError, UserError
from shards.pack.pack import PackConfig, PackProgress, pack
from shards.pack.sources.pack_input import open_source
from shards.pack.table_entries import TableColumns
from shards.samples.admission_config import AdmissionConfig
from tests.shards.pack.helpers import Stop, StopAfter
from tests.shards.pack.test_pack import jpeg, make_folder, shard_bytes
from tests.tars import make_tar, samples_by_tarfile
from tests.wild_tars import expected_samples, wild_tar


def open_shards(pattern, subset=None, join="auto"):
    return open_source(str(pattern), "shards", "auto", TableColumns(), subset, join=join)


def samples_in(folder):
    """Return (key, members) of the samples in a folder, read with the standard library."""
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
        (PackConfig(), range(1, 2)),
        (PackConfig(max_bytes=70_000, seed=None), range(4, 8)),
        (PackConfig(samples_per_shard=30), range(3, 7)),
        (PackConfig(max_bytes=1), range(4, 121)),
    ],
)
def test_each_sample_is_packed_once_and_unchanged(shards, tmp_path, config, num_shards):
    """A data set that is packed again would lose samples."""
    report = pack(open_shards(shards), tmp_path / "out", config)
    assert report.num_samples == 120 and report.num_renamed == 0 and report.skipped == {}
    assert report.num_shards in num_shards
    found, expected = samples_in(tmp_path / "out"), samples_in(shards)
    assert as_set(found) == as_set(expected)
    assert (found == expected) == (config.seed is None)


def test_a_seed_mixes_samples_of_all_shards(shards, tmp_path):
    """Shards sorted by class would stay sorted."""
    pack(open_shards(shards), tmp_path / "out", PackConfig(max_bytes=140_000))
    for path in (tmp_path / "out").glob("*.tar"):
        rows = [int(key[:5]) for key, _ in samples_by_tarfile(path.read_bytes())]
        assert len(set(rows)) > 1
        assert sum(a != b for a, b in itertools.pairwise(rows)) > len(rows) / 4


def check_wild_shards(folder, seed):
    """Pack three random tars again, and compare with the samples of the standard library."""
    rng = random.Random(seed)
    (folder / "in").mkdir(parents=True)
    wild = [wild_tar(1000 * seed + i, nested=rng.random() < 0.3) for i in range(3)]
    for number, tar in enumerate(wild):
        (folder / "in" / f"{number}.tar").write_bytes(tar.data)
    config = PackConfig(max_bytes=rng.choice([1, 300_000, 1 << 28]), seed=rng.choice([0, None]))
    try:
        # Random keys repeat, and random members complement each other.
        source = open_shards(folder / "in", join="no")
    except ManifestError as error:  # found in the first samples
        assert "tar inside the tar" in str(error)
        return
    report = pack(source, folder / "out", config)
    expected = [(e.key, e.fields) for tar in wild for e in expected_samples(tar.data)]
    found = [
        (e.key, e.fields)
        for path in sorted((folder / "out").glob("*.tar"))
        for e in expected_samples(path.read_bytes())
    ]
    assert report.num_samples == len(found) == len(expected)
    assert contents(found) == contents(expected)
    assert sum((as_set(found) & as_set(expected)).values()) >= len(expected) - report.num_renamed
    assert sum(report.skipped.values()) == sum(tar.num_damaged for tar in wild)


def contents(samples):
    return Counter(tuple(sorted(fields.items())) for _, fields in samples)


def test_random_tars_are_packed_without_loss(tmp_path, share):
    """Long names, folders, links, empty members and nested tars would be lost or split."""
    for seed in range(max(4, round(20 * share))):
        check_wild_shards(tmp_path / str(seed), seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_random_tars_are_packed_without_loss(tmp_path, share):
    """Rare combinations would stay unseen."""
    for seed in range(1000, 1000 + round(1000 * share)):
        check_wild_shards(tmp_path / str(seed), seed)
        shutil.rmtree(tmp_path / str(seed))


def test_colliding_keys_get_a_number_and_are_counted(tmp_path):
    """Keys of img2dataset are unique in one data set only; two samples would merge into one."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        members = [(f"a/{i:03d}.jpg", jpeg(10 * number + i)) for i in range(10)]
        (folder / f"{number}.tar").write_bytes(make_tar([*members, ("a/001-2.jpg", jpeg(90))]))
    out, again = tmp_path / "out", tmp_path / "again"
    report = pack(open_shards(folder), out)
    assert (report.num_samples, report.num_renamed) == (33, 22)
    keys = [key for key, _ in samples_in(out)]
    assert len(set(keys)) == len(keys) == 33
    assert {f"a/{i:03d}{more}" for i in range(10) for more in ("", "-2", "-3")} <= set(keys)
    pack(open_shards(folder), again)
    assert shard_bytes(out) == shard_bytes(again)


def test_dots_of_file_names_become_underscores(tmp_path):
    """Every tool but ours would join the images of the new shards."""
    names = [f"cam.1/2024.05.{day:02d}" for day in range(1, 29)]
    members = [(f"{name}.{end}", jpeg(1)) for name in names for end in ("jpg", "cls")]
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    source = open_shards(tmp_path)
    assert source.notes[0].startswith("keys end at the last dot of a file name; their other dots")
    pack(source, tmp_path / "out")
    keys = sorted(key for key, _ in samples_in(tmp_path / "out"))
    assert keys == [f"cam.1/2024_05_{day:02d}" for day in range(1, 29)]


def test_an_img2dataset_folder_is_packed_as_shards(shards, tmp_path):
    """Its Parquet and JSON files would be taken for the data."""
    for number in range(3):
        (shards / f"{number:05d}.parquet").write_bytes(b"PAR1")
        (shards / f"{number:05d}_stats.json").write_text("{}")
    source = open_source(str(shards), "auto", "auto", TableColumns(), None)
    assert pack(source, tmp_path / "out").num_samples == 120


def test_a_subset_list_selects_samples(shards, tmp_path):
    """DataComp's lists would need another tool."""
    wanted = [3, 50, 119]
    file = tmp_path / "list.txt"
    file.write_text("\n".join(f"{i // 40:05d}{i % 40:04d}" for i in wanted))
    report = pack(open_shards(shards, str(file)), tmp_path / "out")
    assert (report.num_samples, report.num_unselected) == (3, 117)
    assert {fields["jpg"] for _, fields in samples_in(tmp_path / "out")} == set(map(jpeg, wanted))
    with pytest.raises(UserError, match="not a complete pack of these images"):
        pack(open_shards(shards), tmp_path / "out")


def test_a_subset_list_of_single_images_is_refused(tmp_path, shards):
    """It would be ignored silently."""
    folder = make_folder(tmp_path / "images", {"a.jpg": jpeg(1)})
    with pytest.raises(ConfigError, match=r"subset='x.txt' with a folder of images; .*list the"):
        open_source(str(folder), "auto", "auto", TableColumns(), "x.txt")


def test_admission_leaves_out_samples_that_a_run_would_reject(tmp_path):
    """Without admission all samples must be kept, even without an image."""
    members = [("a.jpg", jpeg(1)), ("b.txt", b"no image"), ("c.jpg", b"<html>"), ("d.npy", b"x")]
    (tmp_path / "in.tar").write_bytes(make_tar(members))
    source = open_shards(tmp_path / "in.tar")
    assert pack(source, tmp_path / "all").num_samples == 4
    report = pack(source, tmp_path / "good", admission=AdmissionConfig())
    assert report.num_samples == 1
    assert report.skipped == {"no_image": 2, "not_an_image": 1}


def test_damage_is_counted_and_the_rest_is_packed(tmp_path, shards):
    """One bad block would cost a whole shard, or stay unseen."""
    path = shards / "00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3 + 100])
    report = pack(open_shards(shards), tmp_path / "out", PackConfig(max_bytes=70_000))
    assert 100 < report.num_samples < 120 and sum(report.skipped.values()) == 1
    left_out = [json.loads(p.read_text())["left_out"] for p in (tmp_path / "out").glob("s*.json")]
    (names,) = [names for entry in left_out for names in entry.values()]
    assert "00001.tar at byte" in names[0]


def test_compressed_shards_become_plain(tmp_path, shards):
    """A .tar.gz cannot be read in ranges."""
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in shards.glob("*.tar"):
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    report = pack(open_shards(packed), tmp_path / "out", PackConfig(max_bytes=70_000))
    assert report.num_samples == 120
    assert as_set(samples_in(tmp_path / "out")) == as_set(samples_in(shards))


def nested_tar(num_inner, size):
    """Return a tar in which one member is a tar whose inside looks like samples."""
    inner = make_tar([(f"inner{i:04d}.jpg", jpeg(500 + i % 9)) for i in range(num_inner)])
    before = [(f"a{i:03d}.jpg", jpeg(i)) for i in range(size)]
    after = [(f"c{i:03d}.jpg", jpeg(i)) for i in range(size)]
    # As a sample of its own it would be refused.
    return make_tar([*before, ("b.jpg", jpeg(77)), ("b.extra", inner), *after])


def test_a_nested_tar_is_not_taken_for_samples_also_after_a_restart(tmp_path):
    """Its images would become samples, and the sample that holds it would lose a member."""
    (tmp_path / "in.tar").write_bytes(nested_tar(300, 60))
    source, config, begun = open_shards(tmp_path / "in.tar"), PackConfig(max_bytes=200_000), []

    class CountBegins(PackProgress):
        def begin(self, num_units, unit):
            begun.append((num_units, unit))

    report = pack(source, tmp_path / "out", config, progress=CountBegins())
    assert report.num_samples == 121
    expected = samples_by_tarfile((tmp_path / "in.tar").read_bytes())
    assert as_set(samples_in(tmp_path / "out")) == as_set(expected)
    assert len(begun) == 2, "the first cut must be wrong, and made again"
    size = (tmp_path / "in.tar").stat().st_size
    for number, units in enumerate((size // 3, size + size // 3)):
        out = tmp_path / f"stopped-{number}"
        with pytest.raises(Stop):
            pack(source, out, config, progress=StopAfter(units))
        pack(source, out, config)
        assert shard_bytes(out) == shard_bytes(tmp_path / "out")


def test_a_folder_of_shards_and_images_needs_a_kind(tmp_path, shards):
    """Either shards or images would be left out silently."""
    make_folder(shards, {"a.jpg": jpeg(1)})
    with pytest.raises(ConfigError, match=r"holds images and shards; .* give --kind folder or"):
        open_source(str(shards), "auto", "auto", TableColumns(), None)
    source = open_source(str(shards), "folder", "auto", TableColumns(), None)
    assert pack(source, tmp_path / "out").num_samples == 1
