"""Byte ranges of tars give the samples that `tarfile` finds, whatever the tar looks like."""

import gzip
import io
import random
import tarfile
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.writer import ShardWriter, TarWriter

from shards.errors import NotATar
from shards.member_names import WEBDATASET_NAMES, NameRule
from shards.records import Chunk, Reject, Sample
from shards.tars.cutter import cut_chunk
from shards.tars.sample_starts import SampleStarts
from tests import tar_checks
from tests.tar_checks import check_damaged, check_wild, cut_bytes
from tests.tars import make_tar, samples_by_tarfile
from tests.wild_tars import header, pad, pax, wild_tar, with_checksum

CHUNK_SIZES = (4096, 16384, 65536, 1 << 20)


def cut_all(data, chunk_bytes=4096, window_bytes=1 << 18, names=WEBDATASET_NAMES):
    """Samples and rejects of a whole tar, cut in chunks of `chunk_bytes`."""
    return tar_checks.cut_all(data, chunk_bytes, window_bytes, names=names).found


def contents(found):
    """Samples in the form of `samples_by_tarfile`."""
    return [(item.key, dict(item.fields)) for item in found if isinstance(item, Sample)]


def reasons(found):
    return [item.reason for item in found if isinstance(item, Reject)]


def numbered(num, size=1000, extensions=("jpg", "cls")):
    """Members of `num` samples with random bytes."""
    rng = random.Random(num)
    return [(f"{i:05d}.{e}", rng.randbytes(size)) for i in range(num) for e in extensions]


@pytest.mark.parametrize("nested", [False, True])
def test_ranges_of_wild_tars_give_the_samples_of_tarfile(nested, share):
    """A sample at the border of a range would be lost, doubled or mixed."""
    exact = [check_wild(seed, nested) for seed in range(round(200 * share))]
    assert all(exact) or nested
    assert not all(exact) or not nested, "no nested tar misled a chunk: nothing was tested"


def test_damage_costs_no_earlier_sample_and_raises_nothing(share):
    """One flipped bit would cost good samples, or end a process."""
    num = round(100 * share)
    assert sum(check_damaged(seed) for seed in range(num)) > 3 * num


@pytest.mark.parametrize("name", ["made-a.tar", "nasty-a.tar", "vehicle-reid-train.tar"])
def test_ranges_of_real_tars_give_the_samples_of_tarfile(shared_data, name):
    """Real archives come from tools that the generator of the tests does not imitate."""
    data = (shared_data / name).read_bytes()
    expected = samples_by_tarfile(data)
    for chunk_bytes in (1 << 14, 1 << 18):
        found = cut_all(data, chunk_bytes)
        assert contents(found) == expected and reasons(found) == []


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 400), max_size=8))
def test_ranges_may_have_any_length(seed, blocks):
    """The owner of a sample would depend on a grid of chunks, not on the range alone."""
    data = wild_tar(seed).data
    stops = sorted({min(512 * b, len(data)) for b in blocks} | {len(data)})
    found = []
    for start, stop in zip([0, *stops], stops, strict=False):
        found += tar_checks.cut_bytes(data, Chunk(0, start, stop)).found
    assert contents(found) == samples_by_tarfile(data)


def test_prefix_field_is_part_of_the_name():
    """Two samples of different folders would be taken for one."""
    data = make_tar([(f"{'a' * 90}/{i % 2}{'b' * 40}/7.jpg", b"x") for i in range(6)])
    found = cut_all(data, 512)
    assert [item.key for item in found] == [f"{'a' * 90}/{i % 2}{'b' * 40}/7" for i in range(6)]


def test_key_ends_at_the_first_dot_of_the_file_name():
    """Keys and extensions would differ from the webdataset convention."""
    names = ["v1.0/a/0.jpg", "v1.0/a/0.SEG.png", "v1.0/a/1.jpg", "b/1.jpg", "bare"]
    data = make_tar([(name, b"x") for name in names])
    assert [(item.key, sorted(item.fields)) for item in cut_all(data)] == [
        ("v1.0/a/0", ["jpg", "seg.png"]),
        ("v1.0/a/1", ["jpg"]),
        ("b/1", ["jpg"]),
        ("bare", [""]),
    ]


def test_key_may_end_at_the_last_dot_of_the_file_name():
    """Images whose names have dots, such as times, would become one sample, used once."""
    members = [
        (f"c.0/16330{i // 4}.{i % 4 * 25:02d}.{end}", b"%d" % i)
        for i in range(200)
        for end in ("PNG", "cls")
    ]
    data = make_tar(members)
    found = cut_all(data, 4096, names=NameRule("last_dot"))
    keys = [name.rpartition(".")[0] for name, _ in members[::2]]
    assert [item.key for item in found] == keys
    assert [item.fields for item in found] == [
        {"png": b"%d" % i, "cls": b"%d" % i} for i in range(200)
    ]


@pytest.mark.parametrize(
    "hidden",
    ["a/._{}", "a/.DS_Store", "a/Thumbs.db", "a/DESKTOP.INI", "__MACOSX/a/{}", "a/@eaDir/{}"],
)
def test_hidden_files_between_members_are_part_of_no_sample(hidden):
    """Samples would be torn at them, and lose their labels."""
    members = []
    for i in range(12):
        for end in ("jpg", "cls"):
            members += [(hidden.format(f"{i}.{end}"), b"junk"), (f"a/{i}.{end}", b"%d" % i)]
    data = make_tar(members)
    cut = cut_bytes(data, Chunk(3, 0, len(data)))
    assert [item.fields for item in cut.found] == [
        {"jpg": b"%d" % i, "cls": b"%d" % i} for i in range(12)
    ]
    assert cut.num_hidden == 24
    assert cut_all(data, 512) == cut.found
    kept = cut_all(data, names=NameRule(keep_hidden=True))
    assert len(kept) > 12  # as runs of version 0.1 read them


@pytest.mark.parametrize("extensions", [("jpg",), ("jpg", "cls"), ("jpg", "cls", "txt")])
def test_repeated_extension_begins_a_new_sample(extensions):
    """With equal keys, a start in the middle would pair images with wrong labels."""
    members = [
        (f"same.{extension}", f"{i} {extension}".encode())
        for i in range(40)
        for extension in extensions
    ]
    data = make_tar(members)
    for chunk_bytes in CHUNK_SIZES:
        assert contents(cut_all(data, chunk_bytes, 1 << 12)) == samples_by_tarfile(data)


def test_v7_headers_are_found_in_the_middle():
    """Every chunk of a V7 tar would be read from byte 0."""
    data = b"".join(header(n.encode(), len(d), mark="v7") + pad(d) for n, d in numbered(600))
    data += bytes(1024)
    for chunk_bytes in (65536, 1 << 20):
        assert contents(cut_all(data, chunk_bytes)) == samples_by_tarfile(data)
    file = CountingFile([(0, data)], len(data))
    assert len(cut_chunk(file, len(data), Chunk(0, 1 << 20, (1 << 20) + 65536)).found) > 10
    assert sum(file.reads) < 1 << 19


def member_places(data):
    """(header, data, end of data, end of padding) of every member."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            padded = member.offset_data + -(-member.size // 512) * 512
            yield member.offset, member.offset_data, member.offset_data + member.size, padded


@pytest.mark.parametrize("chunk_bytes", [4096, 65536])
def test_truncated_tar_keeps_whole_samples_and_counts_the_cut_one(chunk_bytes):
    """An interrupted upload would give half an image, or lose one without a count."""
    data = make_tar(numbered(40, 700, ("jpg",)))
    start, payload, stop, end = list(member_places(data))[30]
    whole = samples_by_tarfile(data)[:31]
    cases = [
        (start, 30, []),
        (start + 1, 30, ["truncated_tar"]),
        (start + 511, 30, ["truncated_tar"]),
        (payload, 30, ["truncated_tar"]),
        (stop - 1, 30, ["truncated_tar"]),
        (stop, 31, []),
        (end - 1, 31, []),
        (end, 31, []),
    ]
    for length, num_whole, rejected in cases:
        found = cut_all(data[:length], chunk_bytes)
        assert contents(found) == whole[:num_whole], length
        assert reasons(found) == rejected, length


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_that_ends_in_extension_headers_counts_the_sample(form):
    """A reject outside of the file would belong to no chunk and be counted by none."""
    data = make_tar([(f"{'n' * 200}{i:03d}.jpg", b"x" * 600) for i in range(20)], form)
    starts = [item.offset for item in cut_all(data)]
    for length in range(starts[10] + 512, starts[11] - 1024, 512):
        found = cut_all(data[:length])
        assert len(contents(found)) == 10 and reasons(found) == ["truncated_tar"]


def test_truncated_second_member_rejects_its_sample_only():
    """An image without its label would be used, or the shard thrown away."""
    data = make_tar(numbered(20))
    places = list(member_places(data))
    found = cut_all(data[: places[21][1] + 10])
    assert len(contents(found)) == 10
    (reject,) = [item for item in found if isinstance(item, Reject)]
    assert (reject.shard, reject.offset, reject.key) == (3, places[20][0], "00010")
    assert reject.detail == "00010.cls: 10 of 1000 bytes" and reject.member == "00010.cls"


@pytest.mark.parametrize("chunk_bytes", CHUNK_SIZES)
def test_garbage_costs_the_samples_it_hits(chunk_bytes):
    """One bad disk sector would end a shard, or hide the good samples after it."""
    data = bytearray(make_tar(numbered(100, 1000, ("jpg",))))
    whole = samples_by_tarfile(bytes(data))
    data[20 * 1536 - 300 : 24 * 1536 + 700] = random.Random(1).randbytes(4 * 1536 + 1000)
    found = cut_all(bytes(data), chunk_bytes)
    # Sample 19 keeps its header and gets foreign bytes; the decoder finds that.
    assert [item.key for item in found if isinstance(item, Sample)] == [
        key for key, _ in whole if key not in [f"{i:05d}" for i in range(20, 25)]
    ]
    (reject,) = [item for item in found if isinstance(item, Reject)]
    assert (reject.reason, reject.offset, reject.key) == ("broken_tar", 20 * 1536, "")
    assert reject.detail == f"no header at byte {20 * 1536}"


@pytest.mark.parametrize("chunk_bytes", CHUNK_SIZES)
@pytest.mark.parametrize("damaged", [[0], [7, 60]])
def test_damaged_headers_are_one_reject_each(damaged, chunk_bytes):
    """Damage would be counted by no chunk or by two, or the first header cost the shard."""
    data = bytearray(make_tar(numbered(100, 1000, ("jpg",))))
    for number in damaged:
        data[number * 1536 + 5] ^= 0xFF
    found = cut_all(bytes(data), chunk_bytes)
    rejects = [item.offset for item in found if isinstance(item, Reject)]
    assert rejects == [number * 1536 for number in damaged]
    assert len(contents(found)) == 100 - len(damaged)


def test_damage_in_a_large_shard_is_searched_once():
    """A search from every header up to the damage would take minutes."""
    data = bytearray(make_tar(numbered(4000, 100, ("jpg",))))
    data[3900 * 1024 + 3] ^= 0xFF
    started = time.process_time()
    found = cut_all(bytes(data), 1 << 18)
    assert len(contents(found)) == 3999 and reasons(found) == ["broken_tar"]
    assert time.process_time() - started < 10


def set_size(data, place, field):
    """Replace the size field of the header at `place`, and its checksum."""
    block = data[place : place + 124] + field + data[place + 136 : place + 512]
    return data[:place] + with_checksum(block) + data[place + 512 :]


@pytest.mark.parametrize("chunk_bytes", [4096, 1 << 20])
@pytest.mark.parametrize("field", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0"])
def test_size_beyond_the_end_of_the_file_costs_one_sample(chunk_bytes, field):
    """A header that claims 8 GB would swallow the rest of the shard, or the memory."""
    data = set_size(make_tar(numbered(60, 1000, ("jpg",))), 20 * 1536, field)
    found = cut_all(data, chunk_bytes)
    assert reasons(found) == ["truncated_tar"]
    assert [s.key for s in found if isinstance(s, Sample)] == [
        f"{i:05d}" for i in range(60) if i != 20
    ]


@pytest.mark.parametrize("field", [b"-0000001750\0", b"-7777777777\0", b"nonsense\0\0\0\0"])
def test_invalid_size_costs_no_other_sample(field):
    """A member with a negative size would be read forever."""
    data = set_size(make_tar(numbered(60, 1000, ("jpg",))), 20 * 1536, field)
    found = cut_all(data)
    assert [s.key for s in found if isinstance(s, Sample)] == [f"{i:05d}" for i in range(60)]
    assert reasons(found) == ["broken_tar"]  # the bytes that belong to no member now


@pytest.mark.parametrize("size", [b"9" * 5000, b"-5", b"1.5", b""])
def test_invalid_pax_sizes_raise_nothing(size):
    """Python refuses numbers of thousands of digits: one shard would end a process."""
    data = pax([(b"size", size)]) + header(b"short.jpg", 700) + pad(b"p" * 700)
    (first, second) = cut_all(data + header(b"next.jpg", 0) + bytes(1024), 1 << 20)
    assert (first.key, second.key) == ("short", "next") and len(first.fields["jpg"]) == 700


def test_endless_extension_headers_are_damage():
    """A million long-name headers before one member would fill the memory."""
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    data = info.tobuf(tarfile.GNU_FORMAT) * 8192 + make_tar(numbered(20))
    started = time.process_time()
    found = cut_all(data, 1 << 20)
    assert set(reasons(found)) == {"broken_tar"} and contents(found)[-1][0] == "00019"
    assert time.process_time() - started < 20


class CountingFile:
    """A file of zeros with some other parts; records the length of every read."""

    def __init__(self, parts, size):
        self._parts, self.size, self.reads = parts, size, []

    def __call__(self, start, stop):
        assert 0 <= start < stop <= self.size
        self.reads.append(stop - start)
        out = bytearray(stop - start)
        for at, part in self._parts:
            low, high = max(start, at), min(stop, at + len(part))
            if low < high:
                out[low - start : high - start] = part[low - at : high - at]
        return bytes(out)


def films(count, size=200 << 20):
    """A tar of large films, each with a caption; only headers and captions are not zero."""
    parts, at = [], 0
    for index in range(count):
        head = set_size(make_tar([(f"{index}.mp4", b"")])[:512], 0, b"%011o\0" % size)
        parts.append((at, head))
        parts.append((at + 512 + size, make_tar([(f"{index}.txt", b"x" * 600)])[:1536]))
        at += 512 + size + 1536
    return CountingFile(parts, at + 1024)


def test_too_large_sample_is_rejected_unread():
    """A video of 600 MB would be read into the memory of a reader."""
    size = 600 << 20
    head = set_size(make_tar([("film.mp4", b"")])[:512], 0, b"%011o\0" % size)
    tail = make_tar(numbered(20))
    file = CountingFile([(0, head), (512 + size, tail)], 512 + size + len(tail))
    found = cut_chunk(file, file.size, Chunk(0, 0, 1 << 20))
    (reject,) = found.found
    assert found.needs_walk  # its content was not scanned
    assert (reject.reason, reject.key) == ("too_large", "film") and sum(file.reads) < 1 << 24


@pytest.mark.parametrize("walked", [False, True])
def test_walk_skips_payload_and_needs_little_memory(walked):
    """A chunk inside a film would cost a read of everything before it."""
    file = films(30)
    start = file.size // (16 << 20) * (16 << 20) - (320 << 20)
    chunk = Chunk(0, start, start + (16 << 20), walked)
    assert cut_chunk(file, file.size, chunk).found == []
    # If not walked, the search backwards comes first.
    assert sum(file.reads) < (40 << 20) + (0 if walked else 96 << 20)
    assert max(file.reads) <= 40 << 20


def test_chain_of_large_members_is_followed_without_reading_them():
    """Eight trusted headers, 200 MB apart, would need 1.6 GB of memory."""
    file = films(12)
    chunk = Chunk(0, 512 + (200 << 20), 512 + (200 << 20) + (1 << 20))
    (film,) = cut_chunk(file, file.size, chunk).found
    assert (film.key, film.offset) == ("1", (200 << 20) + 2048)
    assert max(file.reads) <= 201 << 20


def test_walked_chunks_of_a_shard_share_one_walk():
    """A thousand chunks would be a thousand walks from byte 0."""
    data = b"".join(make_tar(numbered(40, 3000)) for _ in range(12))
    reads = {}
    for name, starts in (("alone", None), ("shared", SampleStarts(16384))):
        file = CountingFile([(0, data)], len(data))
        found = []
        for chunk in tar_checks.chunks_of(data, 65536, walked=True):
            found += cut_chunk(file, len(data), chunk, 1 << 16, starts).found
        assert contents(found) == samples_by_tarfile(data)
        reads[name] = sum(file.reads)
    assert reads["shared"] < 6 * len(data) < reads["alone"]


def inner(num, end=bytes(10240)):
    """A tar for use as a member, with samples that the outer tar also has."""
    return make_tar(numbered(num, 700, ("jpg",)))[: num * 1536] + end


@pytest.mark.parametrize("walked", [False, True])
def test_long_nested_tar_misleads_only_chunks_that_do_not_walk_and_is_reported(walked):
    """Its members would be trained on as samples, unnoticed."""
    data = make_tar([*numbered(20), ("x.tar", inner(200)), *numbered(21)])
    found = tar_checks.cut_all(data, 16384, walked=walked)
    assert found.needs_walk
    assert (contents(found.found) == samples_by_tarfile(data)) == walked
    # The last chunk can mislead no other: a shard of one chunk must not look irregular.
    assert not tar_checks.cut_bytes(data, Chunk(0, 0, len(data))).needs_walk


@pytest.mark.parametrize(
    ("members", "needs_walk"),
    [
        ([*numbered(60), *numbered(61)], False),
        ([*numbered(20), ("x.tar", inner(3)), *numbered(21)], False),
        ([*numbered(20), ("x.tar", inner(9)), *numbered(21)], False),
        ([*numbered(20), ("x.tar", inner(9, b"")), *numbered(21)], True),
        ([*numbered(20), ("x.tar", inner(9)[:-10300]), *numbered(21)], True),
        ([*numbered(20), ("x.tar", b"y" * 100 + inner(9)), *numbered(21)], False),
        ([*numbered(20), ("x.tar", inner(3) + bytes(70_000)), *numbered(21)], True),
        ([*numbered(20), ("large.jpg", b"x" * 200_000), *numbered(21)], False),
    ],
)
def test_chunk_needs_walk_only_if_a_later_chunk_could_be_misled(members, needs_walk):
    """A shard would be walked from byte 0 without need, or be cut wrong."""
    data = make_tar(members)
    found = tar_checks.cut_all(data, 32768)
    assert found.needs_walk == needs_walk
    assert needs_walk or contents(found.found) == samples_by_tarfile(data)


def test_nested_tar_at_the_end_is_reported():
    """Its end merges with the end of the outer tar, so its chain looks like that of the shard."""
    data = make_tar([*numbered(20), ("last.tar", inner(20, bytes(1024)))])
    for chunk_bytes in (4096, 16384, 32768):
        found = tar_checks.cut_all(data, chunk_bytes)
        assert found.needs_walk or contents(found.found) == samples_by_tarfile(data)
        walked = tar_checks.cut_all(data, chunk_bytes, walked=True)
        assert contents(walked.found) == samples_by_tarfile(data)


def test_links_are_counted_by_their_chunk():
    """An image that is stored as a link would be missing without notice."""
    link = header(b"1.jpg", 0, b"1") + header(b"2.jpg", 0, b"2") + header(b"folder/", 0, b"5")
    data = (make_tar(numbered(10))[: 10 * 3072] + link) * 5 + bytes(1024)
    parts = [tar_checks.cut_bytes(data, chunk) for chunk in tar_checks.chunks_of(data, 16384)]
    assert sum(part.num_links for part in parts) == 10
    assert tar_checks.cut_bytes(data, Chunk(0, 0, len(data))).num_links == 10


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (gzip.compress(random.Random(0).randbytes(300_000)), "a gzip file"),
        (b"<html>not found</html>" * 400, "b'<html>no'"),
        (b"short", "b'short'"),
    ],
)
def test_file_that_is_no_tar_is_refused_with_the_remedy(data, found):
    """A .tar.gz renamed to .tar would be a broken shard without a hint."""

    def read(start, stop):
        return data[start:stop]

    with pytest.raises(NotATar, match=f"begins with {found}; a shard must be.*shards pack"):
        cut_chunk(read, len(data), Chunk(0, 0, len(data)))
    if len(data) > 200_000:  # only the first chunk reports it
        assert cut_chunk(read, len(data), Chunk(0, 200_000, len(data))).found == []


def test_shards_written_by_webdataset_are_read_exactly(tmp_path):
    """Most shards of users come from this library."""
    rng = random.Random(5)
    rows = [
        {"__key__": f"a.dir/{i:06d}", "jpg": rng.randbytes(900 * i), "cls": b"7", "x.txt": b"hi"}
        for i in range(30)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with ShardWriter(str(tmp_path / "%04d.tar"), maxcount=12, verbose=0) as writer:
            for row in rows:
                writer.write(row)
    with TarWriter(str(tmp_path / "last.tar")) as writer:
        writer.write({"__key__": "p", "json": {"label": 3}, "png": b"bytes"})
    found = []
    for path in sorted(tmp_path.glob("*.tar")):
        found += contents(cut_all(path.read_bytes()))
    expected = [(r["__key__"], {k: v for k, v in r.items() if k != "__key__"}) for r in rows]
    assert found == [*expected, ("p", {"json": b'{"label": 3}', "png": b"bytes"})]
