"""Shards whose samples lie apart: every member is packed once, with the others of its key."""

import gzip
import random
import re
import subprocess
from collections import Counter

import pytest

from shards.errors import ConfigError
from shards.member_names import Keys
from shards.pack.pack import PackConfig, pack
from shards.pack.sources.pack_input import open_source
from shards.pack.table_entries import TableColumns
from tests.shards.pack.test_pack import jpeg, shard_bytes
from tests.shards.pack.test_reshard import as_set, samples_in
from tests.tars import make_tar
from tests.wild_tars import STYLES, member

KINDS = ("jpg", "cls", "txt", "json", "seg.png")


def open_joined(folder, join="auto", subset=None, labels="auto", keys: Keys = "auto"):
    columns = TableColumns()
    return open_source(str(folder), "shards", labels, columns, subset, keys=keys, join=join)


def write(folder, **tars):
    folder.mkdir(exist_ok=True)
    for name, members in tars.items():
        (folder / f"{name}.tar").write_bytes(make_tar(members))
    return folder


def sample(number, *kinds):
    """Return the members of one sample, with bytes that name it."""
    return [
        (f"a/{number:04d}.{kind}", jpeg(number) if kind == "jpg" else f"{kind} {number}".encode())
        for kind in kinds
    ]


def by_kind(numbers, *kinds):
    return [member for kind in kinds for number in numbers for member in sample(number, kind)]


def wanted(members):
    """Return the samples that these members form, each key once."""
    found = {}
    for name, data in members:
        key, _, extension = name.partition(".")
        found.setdefault(key, {})[extension] = data
    return list(found.items())


@pytest.mark.parametrize("seed", range(12))
def test_members_in_any_order_are_joined_by_their_keys(tmp_path, seed):
    """A label would go to a key of its own, or to another image, and verify would say good."""
    rng = random.Random(seed)
    tars = {}
    for number in range(rng.randint(1, 3)):
        members = [
            member
            for i in range(100 * number, 100 * number + rng.randint(20, 50))
            for member in sample(i, "jpg", *rng.sample(KINDS[1:], rng.randint(1, 4)))
        ]
        rng.shuffle(members)
        tars[f"{number:05d}"] = members
    source = open_joined(write(tmp_path / "in", **tars))
    config = PackConfig(seed=rng.choice([0, 5, None]), max_bytes=rng.choice([30_000, 1 << 28]))
    report = pack(source, tmp_path / "out", config)
    expected = [one for members in tars.values() for one in wanted(members)]
    assert as_set(samples_in(tmp_path / "out")) == as_set(expected)
    assert report.num_samples == len(expected) and report.num_renamed == 0
    assert re.match(rf"{len(expected)} samples joined from \d+ groups", source.notes[-1])


def test_a_plain_tar_of_a_folder_is_joined(tmp_path):
    """It holds the files in the order of the file system."""
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "in").mkdir()
    members = [member for i in range(60) for member in sample(i, "jpg", "cls")]
    for name, data in random.Random(0).sample(members, len(members)):
        (folder / name.removeprefix("a/")).write_bytes(data)
    # Sorted by size, so that the order does not depend on the file system: images apart.
    names = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
    names = [f"data/{path.name}" for path in names]
    command = ["tar", "cf", str(tmp_path / "in" / "x.tar"), "-C", str(tmp_path), *names]
    subprocess.run(command, check=True)
    pack(open_joined(tmp_path / "in"), tmp_path / "out")
    expected = [(key.replace("a/", "data/"), fields) for key, fields in wanted(members)]
    assert as_set(samples_in(tmp_path / "out")) == as_set(expected)


@pytest.mark.parametrize("style", STYLES)
def test_every_kind_of_header_is_joined(tmp_path, style):
    """Sparse files, long names and sizes in extension headers are read at other offsets."""
    rng = random.Random(style)
    members = [(name, data + bytes(600) + data) for name, data in by_kind(range(20), "jpg", "cls")]
    data = b"".join(member(name.encode(), data, style, rng) for name, data in members)
    (tmp_path / "x.tar").write_bytes(data + bytes(1024))
    pack(open_joined(tmp_path / "x.tar"), tmp_path / "out")
    assert as_set(samples_in(tmp_path / "out")) == as_set(wanted(members))


@pytest.mark.slow
def test_shards_of_a_store_are_joined_in_ranges(s3, tmp_path):
    """A data set in a bucket would have to be copied first."""
    s3.create_bucket(Bucket="torn")
    members = by_kind(range(40), "jpg", "cls")
    s3.put_object(Bucket="torn", Key="in/x.tar", Body=make_tar(members))
    pack(open_joined("s3://torn/in"), tmp_path / "out")
    assert as_set(samples_in(tmp_path / "out")) == as_set(wanted(members))


def test_adjacent_members_are_packed_as_before(tmp_path):
    """Shards that are well ordered would be packed in another order than by older versions."""
    folder = write(tmp_path / "in", x=[m for i in range(50) for m in sample(i, "jpg", "cls")])
    for join in ("auto", "yes", "no"):
        pack(open_joined(folder, join), tmp_path / join, PackConfig(max_bytes=60_000))
    assert shard_bytes(tmp_path / "auto") == shard_bytes(tmp_path / "no")
    assert shard_bytes(tmp_path / "yes") == shard_bytes(tmp_path / "no")
    assert "nothing is joined" in open_joined(folder, "yes").notes[-1]


def test_a_shard_of_side_cars_is_joined_to_the_images_of_another(tmp_path):
    """Images and labels may be in files of their own."""
    tars = {kind: by_kind(range(40), kind) for kind in ("jpg", "cls", "txt")}
    pack(open_joined(write(tmp_path / "in", **tars)), tmp_path / "out")
    members = by_kind(range(40), *tars)
    assert as_set(samples_in(tmp_path / "out")) == as_set(wanted(members))


def test_equal_keys_of_two_shards_stay_two_samples(tmp_path):
    """Keys are often unique in one shard only: labels would go to images of another shard."""
    first = by_kind(range(30), "jpg", "cls")
    second = [(name, data + b"!") for name, data in by_kind(range(30), "jpg", "cls")]
    report = pack(open_joined(write(tmp_path / "in", a=first, b=second)), tmp_path / "out")
    assert report.num_samples == 60 and report.num_renamed == 30
    found = Counter(tuple(sorted(fields.items())) for _, fields in samples_in(tmp_path / "out"))
    expected = Counter(tuple(sorted(f.items())) for _, f in [*wanted(first), *wanted(second)])
    assert found == expected


def test_a_repeated_member_and_a_lonely_one_are_kept_and_told(tmp_path):
    """Two images of one key would become one, or members without an image would be lost."""
    members = [*by_kind(range(20), "jpg", "cls"), ("a/0003.jpg", jpeg(77)), ("a/99.txt", b"x")]
    source = open_joined(write(tmp_path / "in", x=members))
    pack(source, tmp_path / "out")
    found = samples_in(tmp_path / "out")
    assert Counter(data for _, f in found for data in f.values()) == Counter(
        data for _, data in members
    )
    assert len(found) == 22 and ("a/99", {"txt": b"x"}) in found
    assert any("1 groups without an image, such as 'a/99'" in note for note in source.notes)
    assert any("1 keys have several samples, such as 'a/0003'" in note for note in source.notes)


def test_damage_costs_the_member_that_it_hits(tmp_path):
    """A tar that ends within the last label would lose an image, or end with a traceback."""
    folder = write(tmp_path / "in", x=by_kind(range(30), "jpg", "cls"))
    data = (folder / "x.tar").read_bytes()
    last = data.index(b"a/0029.cls")
    (folder / "x.tar").write_bytes(data[: last + 512 + 3])
    report = pack(open_joined(folder), tmp_path / "out")
    assert report.num_samples == 30 and report.skipped == {"truncated_tar": 1}
    (fields,) = [fields for key, fields in samples_in(tmp_path / "out") if key == "a/0029"]
    assert fields.keys() == {"jpg"}


def test_a_subset_list_selects_joined_samples(tmp_path):
    """The list would be ignored."""
    (tmp_path / "list.txt").write_text("a/0003\na/0007\n")
    folder = write(tmp_path / "in", x=by_kind(range(30), "jpg", "cls"))
    source = open_joined(folder, subset=str(tmp_path / "list.txt"))
    report = pack(source, tmp_path / "out")
    assert (report.num_samples, report.num_unselected) == (2, 28)


def test_a_compressed_shard_is_refused_with_a_command(tmp_path):
    """Its members cannot be read one by one; packed as they are, the damage would be final."""
    folder = write(tmp_path / "in", x=by_kind(range(30), "jpg", "cls"))
    (folder / "x y.tar.gz").write_bytes(gzip.compress((folder / "x.tar").read_bytes()))
    (folder / "x.tar").unlink()
    with pytest.raises(ConfigError, match=r"unpack each, such as `gunzip -k '.*x y\.tar\.gz'`"):
        open_joined(folder)
    assert pack(open_joined(folder, "no"), tmp_path / "out").num_samples == 60


def test_some_groups_that_complement_each_other_are_told(tmp_path):
    """A tenth of the labels would be lost without a word; joined by chance, they would be wrong."""
    members = [m for i in range(40) for m in sample(i, "jpg", "cls")]
    folder = write(tmp_path / "in", x=[*members, *sample(3, "txt")])
    assert "1 of 41 groups of members have the key of an" in open_joined(folder).notes[-1]
    assert pack(open_joined(folder, "yes"), tmp_path / "out").num_samples == 40


def test_class_names_are_kept_and_must_agree(tmp_path):
    """A number would mean another class in the new shards."""
    members = [m for i in range(9) for m in sample(i, "jpg", "cls")]
    for name in ("a", "b"):
        write(tmp_path / "in")
        write(tmp_path / "in" / name, x=members)
        (tmp_path / "in" / name / "classes.txt").write_text("cät\ndog\n", "utf-8")
    pack(open_joined(tmp_path / "in"), tmp_path / "out")
    assert (tmp_path / "out" / "classes.txt").read_text("utf-8") == "cät\ndog\n"
    (tmp_path / "in" / "b" / "classes.txt").write_text("dog\n")
    with pytest.raises(ConfigError, match=r"different classes.txt.*pack each folder by itself"):
        open_joined(tmp_path / "in")
    assert open_joined(tmp_path / "in", labels="none").class_names == ()


def test_unfinished_and_empty_shards_are_told(tmp_path):
    """Half of a download would be taken for all of it."""
    tars = {f"{n:05d}": sample(n, "jpg", "json") for n in range(3)}
    folder = write(tmp_path / "in", **tars)
    for name in ("00000", "00001"):
        (folder / f"{name}_stats.json").write_text("{}")
    (folder / "00003.tar").write_bytes(b"")
    empty, unfinished = open_joined(folder).notes
    assert "00003.tar holds 0 bytes: nothing is packed from it" in empty
    assert re.search(r"00002\.tar has no _stats\.json .* download is unfinished", unfinished)


def test_required_labels_must_be_there(tmp_path):
    """An evaluation would find out after the pack."""
    folder = write(tmp_path / "in", x=[m for i in range(9) for m in sample(i, "jpg", "txt")])
    with pytest.raises(ConfigError, match=r"--labels required, but .*x\.tar has no label in a"):
        open_joined(folder, labels="required")
