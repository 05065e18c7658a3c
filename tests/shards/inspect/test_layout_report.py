"""Layout report: each unusual layout is told in one line, and an ordinary one in none."""

import pytest

from shards.errors import ConfigError
from shards.inspect.layout_report import LayoutCounts, label_lines, probe_layout
from shards.records import Sample
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from tests.noise import noise
from tests.tars import make_tar

IMAGE = noise(24, 24)


def members(*ends, num=40, template="{:05}"):
    return [
        (template.format(i) + end, IMAGE if end.endswith("png") else b"1")
        for i in range(num)
        for end in ends
    ]


def lines_of(folder, admission=None, **shards):
    for name, content in shards.items():
        (folder / f"{name}.tar").write_bytes(content)
    reader = RangeReader()
    manifest = open_manifest(str(folder), reader)
    return list(probe_layout(manifest, reader, admission or AdmissionConfig()).lines)


BY_KIND = members(".png") + members(".cls")
HIDDEN = [m for name, data in members(".png") for m in ((f"._{name}", b"x"), (name, data))]
TWICE = [m for pair in zip(members(".png"), members(".png"), strict=True) for m in pair]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (members(".png", ".cls", ".json"), None),
        (members(".png"), None),
        (BY_KIND, "40 of 80 groups of members have no image, only cls: members of one sample lie"),
        (HIDDEN, "40 hidden files"),
        (members(".mask.png", ".image.png"), "40 of 40 samples have several images (mask.png, ima"),
        (
            members(".png", template="a.b.{:05}"),
            "file names have dots, such as a.b.00000.png: keys",
        ),
        (
            members(".png") + members(".bin", template="x{:05}"),
            "40 of 80 samples have no image, s",
        ),
        (TWICE, "40 of 80 samples have the key of the sample before, such as '00000'"),
        (members(".png") * 2, "40 of 80 samples have a key that was seen before in their shard,"),
    ],
)
def test_an_unusual_layout_is_one_line(tmp_path, content, line):
    """Half of the data or all labels would be lost without a word."""
    found = lines_of(tmp_path, s=make_tar(content))
    assert [one[: len(line)] for one in found] == [line] if line else found == []


def test_a_named_member_is_no_longer_reported(tmp_path):
    """A report that repeats a choice is not read."""
    data = make_tar(members(".mask.png", ".image.png"))
    assert lines_of(tmp_path, AdmissionConfig(image_member="image"), s=data) == []


def test_large_shards_are_read_in_three_places(tmp_path):
    """The labels at the end of a shard that is sorted by kind would not be seen."""
    large = [(name, data * 300) for name, data in members(".png")]
    assert sum(len(data) for _, data in large) > 4 << 20
    (line,) = lines_of(tmp_path, s=make_tar(large + members(".cls")))
    assert "lie apart" in line


def test_empty_and_unfinished_shards_are_named(tmp_path):
    """A failed upload, or a download that goes on, would be taken for the whole data."""
    data = make_tar(members(".png", num=8))
    (tmp_path / "0_stats.json").write_text("{}")
    (tmp_path / "1_stats.json").write_text("{}")
    empty, unfinished = lines_of(tmp_path, **{"0": data, "1": b"", "2": data})
    assert empty.startswith(f"{tmp_path}/1.tar holds 0 bytes and is left out")
    assert unfinished.startswith(f"{tmp_path}/2.tar has no _stats.json beside it")


def test_a_run_without_labels_is_refused_before_it_starts(tmp_path):
    """A supervised run would train for days on samples without a positive."""
    (tmp_path / "0.tar").write_bytes(make_tar(members(".png", ".json")))
    reader = RangeReader()
    manifest = open_manifest(str(tmp_path), reader)
    with pytest.raises(
        ConfigError, match=r"label='cls', but none of the first 40 samples has it; the samp"
    ):
        probe_layout(manifest, reader, AdmissionConfig(), "cls")


@pytest.mark.parametrize("name", ["label", "meta.kind"])
def test_fields_of_a_long_json_are_named(tmp_path, name):
    """The remedy would be to name one of no fields, though --label finds them."""
    outer, _, inner = name.partition(".")
    value = '{"kind": "cat"}' if inner else "3"
    text = f'{{"boxes": [{"0.5, " * (1 << 18)}0], "{outer}": {value}}}'
    (tmp_path / "0.tar").write_bytes(make_tar([("0.png", IMAGE), ("0.json", text.encode())]))
    reader = RangeReader()
    manifest = open_manifest(str(tmp_path), reader)
    with pytest.raises(ConfigError, match=rf"could be labels are {name}: name one with --label"):
        probe_layout(manifest, reader, AdmissionConfig(), "cls")
    assert probe_layout(manifest, reader, AdmissionConfig(), name).counts.num_labelled == 1


def test_an_image_member_that_no_sample_has_is_refused(tmp_path):
    """The run would read all of its data before it ends for want of an image."""
    wanted = AdmissionConfig(image_member="photo,picture")
    with pytest.raises(ConfigError, match=r"none of the first 40 .* are mask.png, image.png: name"):
        lines_of(tmp_path, wanted, s=make_tar(members(".mask.png", ".image.png")))
    assert lines_of(tmp_path, AdmissionConfig(image_member="photo,image")) == []


def test_members_that_are_no_images_are_named_with_a_remedy(tmp_path):
    """Only `verify` would tell what to do with a shard of drawings."""
    drawings = [(f"{i:03}.svg", b"<svg xmlns='x'/>") for i in range(9)]
    found = lines_of(tmp_path, s=make_tar(members(".png") + drawings))
    assert found[1].startswith("not read: an SVG drawing (9 of the samples): draw it as PNG, such")


@pytest.mark.parametrize(
    ("label", "line"),
    [
        (lambda i: b"%d" % (i % 4), None),
        (lambda i: b"%d" % i, "no two of 40 images have the same label 'cls', so none has a posi"),
        (lambda i: b"-1" if i % 2 else b"3", "20 of 40 images have no label 'cls'"),
    ],
)
def test_labels_that_teach_nothing_are_told(tmp_path, label, line):
    """Labels of -1 would be one large class, and labels that differ give no positive."""
    content = [(name, label(int(name[:5])) if name.endswith("cls") else data)
               for name, data in members(".png", ".cls")]  # fmt: skip
    (tmp_path / "0.tar").write_bytes(make_tar(content))
    reader = RangeReader()
    found = probe_layout(open_manifest(str(tmp_path), reader), reader, AdmissionConfig(), "cls")
    assert [one[: len(line)] for one in found.lines] == [line] if line else not found.lines


def test_a_key_is_repeated_over_the_border_of_two_parts():
    """A pair at the border was counted as two samples of one key that lie apart."""
    both = [Sample(0, offset, "a", {"png": IMAGE}) for offset in (0, 512)]
    counts = LayoutCounts()
    counts.add(both[:1], label="")
    counts.add(both[1:], label="", key_before="a")
    assert (counts.num_repeated, counts.num_again) == (1, 0)


def test_images_without_a_label_are_counted_up_to_many_classes():
    """Statistics of a billion images with labels of their own must not fill the memory."""
    labels = [b"-1", *(b"%d" % number for number in range(10_010))]
    samples = [Sample(0, 0, str(at), {"png": b"", "cls": text}) for at, text in enumerate(labels)]
    counts = LayoutCounts()
    counts.add(samples, label="")
    total = LayoutCounts()
    total.merge(counts)
    assert (total.num_labelled, len(total.labels)) == (10_010, 10_000)
    (line,) = label_lines(total, "")
    assert line == "1 of 10,011 images have no label (cls, label, class)"
