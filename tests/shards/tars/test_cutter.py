"""Ranges of tars become the samples that Python's own reader finds, whatever the tar looks like."""

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
from shards.records import Chunk, Reject, Sample
from shards.tars.cutter import cut_chunk
from shards.tars.sample_starts import SampleStarts
from tests import cutting
from tests.cutting import check_damaged, check_wild
from tests.tars import make_tar, samples_by_tarfile
from tests.wild_tars import header, wild_tar

CHUNK_SIZES = (4096, 16384, 65536, 1 << 20)


def cut_all(data, chunk_bytes=4096, window_bytes=1 << 18):
    """Samples and rejects of a whole file, cut in chunks of `chunk_bytes`."""
    return cutting.cut_all(data, chunk_bytes, window_bytes).found


def contents(found):
    """Samples as `samples_by_tarfile` gives them."""
    return [(item.key, dict(item.fields)) for item in found if isinstance(item, Sample)]


def reasons(found):
    return [item.reason for item in found if isinstance(item, Reject)]


def numbered(num, size=1000, extensions=("jpg", "cls")):
    """Members of `num` samples whose bytes all differ from each other's."""
    rng = random.Random(num)
    return [(f"{i:05d}.{e}", rng.randbytes(size)) for i in range(num) for e in extensions]


@pytest.mark.parametrize("nested", [False, True])
def test_any_ranges_of_wild_tars_give_what_tarfile_gives(nested):
    """A sample lost, doubled or mixed at the border of a range would be trained on or missed."""
    exact = [check_wild(seed, nested) for seed in range(150)]
    assert all(exact) or nested
    assert not all(exact) or not nested, "no nested tar deceived anybody: the test tests nothing"


def test_damage_never_reaches_back_nor_raises():
    """One flipped bit must not cost more than it hit, and never a process."""
    assert sum(check_damaged(seed) for seed in range(60)) > 200


@pytest.mark.parametrize("name", ["made-a.tar", "nasty-a.tar", "vehicle-reid-train.tar"])
def test_any_ranges_of_real_tars_give_what_tarfile_gives(shared_data, name):
    """Real archives were written by tools that no generator of ours thinks of."""
    data = (shared_data / name).read_bytes()
    expected = samples_by_tarfile(data)
    for chunk_bytes in (1 << 14, 1 << 18):
        found = cut_all(data, chunk_bytes)
        assert contents(found) == expected and reasons(found) == []


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 400), max_size=8))
def test_ranges_need_not_be_equally_long(seed, blocks):
    """Ownership must follow from the range alone, not from a grid."""
    data = wild_tar(seed).data
    stops = sorted({min(512 * b, len(data)) for b in blocks} | {len(data)})
    found = []
    for start, stop in zip([0, *stops], stops, strict=False):
        found += cutting.cut_bytes(data, Chunk(0, start, stop)).found
    assert contents(found) == samples_by_tarfile(data)


def test_ids_are_header_offsets_that_no_chunk_size_changes():
    """A sample's identity would depend on how it was read."""
    data = wild_tar(1).data
    ids = [[item.offset for item in cut_all(data, chunk_bytes)] for chunk_bytes in CHUNK_SIZES]
    assert all(other == ids[0] for other in ids)
    assert ids[0] == sorted(set(ids[0])) and all(offset % 512 == 0 for offset in ids[0])


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_sample_with_a_long_name_begins_at_its_extension_header(form):
    """The chunk that holds only the second half of a header pair would claim the sample too."""
    members = [(f"{'folder/' * 30}{i:04d}.jpg", bytes([i]) * 900) for i in range(40)]
    data = make_tar(members, form)
    assert contents(cut_all(data)) == samples_by_tarfile(data)
    assert len(cut_all(data, 512)) == 40


def test_the_old_prefix_field_is_part_of_the_name():
    """Two samples of different folders would be taken for one."""
    data = make_tar([(f"{'a' * 90}/{i % 2}{'b' * 40}/7.jpg", b"x") for i in range(6)])
    found = cut_all(data, 512)
    assert [item.key for item in found] == [f"{'a' * 90}/{i % 2}{'b' * 40}/7" for i in range(6)]


def test_the_key_ends_at_the_first_dot_of_the_file_name():
    """Keys and extensions must be those of the webdataset convention, dotted folders included."""
    names = ["v1.0/a/0.jpg", "v1.0/a/0.SEG.png", "v1.0/a/1.jpg", "b/1.jpg", ".hidden", "bare"]
    found = cut_all(make_tar([(name, b"x") for name in names]))
    assert [(item.key, sorted(item.fields)) for item in found] == [
        ("v1.0/a/0", ["jpg", "seg.png"]),
        ("v1.0/a/1", ["jpg"]),
        ("b/1", ["jpg"]),
        ("", ["hidden"]),
        ("bare", [""]),
    ]


@pytest.mark.parametrize("extensions", [("jpg",), ("jpg", "cls"), ("jpg", "cls", "txt")])
def test_an_extension_that_repeats_begins_a_new_sample(extensions):
    """Where all keys are equal, a start in the middle would pair images with wrong labels."""
    members = [
        (f"same.{extension}", f"{i} {extension}".encode())
        for i in range(200)
        for extension in extensions
    ]
    data = make_tar(members)
    for chunk_bytes in CHUNK_SIZES:
        assert contents(cut_all(data, chunk_bytes, 1 << 12)) == samples_by_tarfile(data)


def test_archives_put_end_to_end_are_one_shard():
    """`cat a.tar b.tar` is common; what lies behind the first end mark must not be lost."""
    data = b"".join(make_tar([(f"{k}{n}", d) for n, d in numbered(30)]) for k in "abc")
    for chunk_bytes in CHUNK_SIZES:
        assert contents(cut_all(data, chunk_bytes)) == samples_by_tarfile(data)


def test_a_short_tar_at_the_end_of_a_tar_stays_a_member():
    """Its end mark runs into the end mark around it: the inner chain seems to reach the end."""
    inner = make_tar(numbered(3, 3000))
    data = make_tar([*numbered(60), ("last.tar", inner)])
    for chunk_bytes in CHUNK_SIZES:
        assert contents(cut_all(data, chunk_bytes)) == samples_by_tarfile(data)


def as_v7(data):
    """The same tar with headers as they were before the `ustar` mark."""
    out = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            header = bytearray(out[member.offset : member.offset + 512])
            header[257:512] = bytes(255)
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            out[member.offset : member.offset + 512] = header
    return bytes(out)


def test_headers_without_the_ustar_mark_are_found_in_the_middle():
    """V7 tars would be read from byte 0 for every chunk."""
    data = as_v7(make_tar(numbered(600)))
    for chunk_bytes in (65536, 1 << 20):
        assert contents(cut_all(data, chunk_bytes)) == samples_by_tarfile(data)
    read = Asked([(0, data)], len(data))
    assert len(cut_chunk(read, len(data), Chunk(0, 1 << 20, (1 << 20) + 65536)).found) > 10
    assert sum(read.asked) < 1 << 19


def test_checksums_of_signed_bytes_are_believed():
    """Some old tars summed signed characters; all of their samples would be damage."""
    data = bytearray(make_tar([("é.jpg", b"x"), ("1.jpg", b"y")]))
    header = data[:512]
    header[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(b - 256 if b > 127 else b for b in header)
    assert [item.key for item in cut_all(bytes(data))] == ["é", "1"]


def member_places(data):
    """(header, data, end of data, end of padding) of every member."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            padded = member.offset_data + -(-member.size // 512) * 512
            yield member.offset, member.offset_data, member.offset_data + member.size, padded


@pytest.mark.parametrize("chunk_bytes", [4096, 65536])
def test_a_tar_that_ends_early_keeps_what_is_whole_and_counts_what_is_not(chunk_bytes):
    """Interrupted uploads are the commonest damage; a half image must be neither used nor
    forgotten."""
    data = make_tar(numbered(40, 700, ("jpg",)))
    header, start, stop, end = list(member_places(data))[30]
    whole = samples_by_tarfile(data)[:31]
    cases = [
        (header, 30, []),
        (header + 1, 30, ["truncated_tar"]),
        (header + 511, 30, ["truncated_tar"]),
        (start, 30, ["truncated_tar"]),
        (start + 1, 30, ["truncated_tar"]),
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
def test_a_tar_that_ends_within_extension_headers_counts_the_sample(form):
    """The reject must lie inside the file, or no chunk owns it and nobody counts it."""
    data = make_tar([(f"{'n' * 200}{i:03d}.jpg", b"x" * 600) for i in range(20)], form)
    starts = [item.offset for item in cut_all(data)]
    for length in range(starts[10] + 512, starts[11] - 1024, 512):
        found = cut_all(data[:length])
        assert len(contents(found)) == 10 and reasons(found) == ["truncated_tar"]


def test_a_truncated_second_member_costs_the_sample_not_the_shard():
    """An image whose label is cut off is no sample."""
    data = make_tar(numbered(20))
    places = list(member_places(data))
    found = cut_all(data[: places[21][1] + 10])
    assert len(contents(found)) == 10
    (reject,) = [item for item in found if isinstance(item, Reject)]
    assert (reject.shard, reject.offset, reject.key) == (3, places[20][0], "00010")
    assert reject.detail == "00010.cls: 10 of 1000 bytes"


@pytest.mark.parametrize("chunk_bytes", CHUNK_SIZES)
def test_garbage_in_the_middle_costs_the_samples_it_hit(chunk_bytes):
    """One bad disk sector must not end a shard, nor hide behind it what is good."""
    data = bytearray(make_tar(numbered(100, 1000, ("jpg",))))
    whole = samples_by_tarfile(bytes(data))
    data[20 * 1536 - 300 : 24 * 1536 + 700] = random.Random(1).randbytes(4 * 1536 + 1000)
    found = cut_all(bytes(data), chunk_bytes)
    # Number 19 keeps its header and gets foreign bytes: whether that is an image is seen later.
    assert [item.key for item in found if isinstance(item, Sample)] == [
        key for key, _ in whole if key not in [f"{i:05d}" for i in range(20, 25)]
    ]
    (reject,) = [item for item in found if isinstance(item, Reject)]
    assert (reject.reason, reject.offset, reject.key) == ("broken_tar", 20 * 1536, "")
    assert reject.detail == f"no header at byte {20 * 1536}"


def test_two_stretches_of_damage_are_two_rejects():
    """TarHeaderError is counted where it is, by the chunk that holds its first byte."""
    data = bytearray(make_tar(numbered(100, 1000, ("jpg",))))
    for number in (7, 60):
        data[number * 1536] ^= 0xFF
    for chunk_bytes in CHUNK_SIZES:
        found = cut_all(bytes(data), chunk_bytes)
        assert [item.offset for item in found if isinstance(item, Reject)] == [7 * 1536, 60 * 1536]
        assert len(contents(found)) == 98


def test_a_damaged_first_header_costs_one_sample():
    """A shard would be thrown away for its first block."""
    data = bytearray(make_tar(numbered(100, 1000, ("jpg",))))
    data[5] ^= 0xFF
    found = cut_all(bytes(data))
    assert reasons(found) == ["broken_tar"] and len(contents(found)) == 99


def test_damage_in_a_large_shard_is_not_searched_again_for_every_header():
    """Walking from every header up to the damage takes minutes for one flipped bit."""
    data = bytearray(make_tar(numbered(4000, 100, ("jpg",))))
    data[3900 * 1024 + 3] ^= 0xFF
    started = time.process_time()
    found = cut_all(bytes(data), 1 << 18)
    assert len(contents(found)) == 3999 and reasons(found) == ["broken_tar"]
    assert time.process_time() - started < 10


def set_size(data, header, field):
    """Write the 12 bytes of a size field, and the checksum that goes with it."""
    out = bytearray(data)
    out[header + 124 : header + 136] = field
    out[header + 148 : header + 156] = b" " * 8
    out[header + 148 : header + 156] = b"%06o\0 " % sum(out[header : header + 512])
    return bytes(out)


def test_sizes_in_base_256_are_read():
    """What is too long for eleven octal digits is written so; small numbers may be, too."""
    data = make_tar(numbered(30))
    header = 7 * 1536
    data = set_size(data, header, b"\x80" + (1000).to_bytes(11, "big"))
    assert contents(cut_all(data)) == contents(cut_all(make_tar(numbered(30))))


@pytest.mark.parametrize("chunk_bytes", CHUNK_SIZES)
@pytest.mark.parametrize("field", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0"])
def test_a_size_beyond_the_end_of_the_file_costs_one_sample(chunk_bytes, field):
    """A header that claims 8 GB must not swallow the shard behind it, nor the memory."""
    data = set_size(make_tar(numbered(60, 1000, ("jpg",))), 20 * 1536, field)
    found = cut_all(data, chunk_bytes)
    assert reasons(found) == ["truncated_tar"]
    assert [s.key for s in found if isinstance(s, Sample)] == [
        f"{i:05d}" for i in range(60) if i != 20
    ]


@pytest.mark.parametrize("field", [b"-0000001750\0", b"-7777777777\0", b"nonsense\0\0\0\0"])
def test_a_size_that_is_no_size_ends_nothing_and_hangs_nothing(field):
    """A member that ended before it began would be read for ever."""
    data = set_size(make_tar(numbered(60, 1000, ("jpg",))), 20 * 1536, field)
    found = cut_all(data)
    assert [s.key for s in found if isinstance(s, Sample)] == [f"{i:05d}" for i in range(60)]
    assert reasons(found) == ["broken_tar"]  # the bytes that the header no longer accounts for


def pax_tar(records, name="short.jpg", size=700):
    """One member with PAX records of one's own, and a plain one behind it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size, info.pax_headers = size, records
        tar.addfile(info, io.BytesIO(b"p" * size))
        info = tarfile.TarInfo("next.jpg")
        tar.addfile(info)
    return buffer.getvalue()


def test_pax_records_give_path_and_size():
    """A name or a length of PAX goes before that of the header."""
    data = pax_tar({"path": "from/pax.jpg", "comment": "a=b\nc"})
    assert [item.key for item in cut_all(data)] == ["from/pax", "next"]
    data = set_size(pax_tar({"size": "700"}), 1024, b"0" * 11 + b"\0")
    assert len(cut_all(data)[0].fields["jpg"]) == 700


@pytest.mark.parametrize("size", ["9" * 5000, "-5", "1.5", ""])
def test_absurd_pax_sizes_raise_nothing(size):
    """Python refuses to read numbers of thousands of digits: a shard must not end a process."""
    (first, second) = cut_all(pax_tar({"size": size}), 1 << 20)
    assert (first.key, second.key) == ("short", "next") and len(first.fields["jpg"]) == 700


def test_endless_extension_headers_are_damage():
    """A million long-name headers before one member would be read into memory for nothing."""
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    data = info.tobuf(tarfile.GNU_FORMAT) * 8192 + make_tar(numbered(20))
    started = time.process_time()
    found = cut_all(data, 1 << 20)
    assert set(reasons(found)) == {"broken_tar"} and contents(found)[-1][0] == "00019"
    assert time.process_time() - started < 20


def test_a_sample_too_large_to_hold_is_rejected_unread():
    """A video of 600 MB among the images must not be read into a reader's memory."""
    size = 600 << 20
    head = bytearray(make_tar([("film.mp4", b"")])[:512])
    head = set_size(bytes(head), 0, b"%011o\0" % size)
    tail = make_tar(numbered(20))
    read = Asked([(0, head), (512 + size, tail)], 512 + size + len(tail))
    found = cut_chunk(read, read.size, Chunk(0, 0, 1 << 20))
    (reject,) = found.found
    assert found.needs_walk  # nobody looked inside
    assert (reject.reason, reject.key) == ("too_large", "film") and sum(read.asked) < 1 << 24


class Asked:
    """A file of which only some stretches are not zero; notes what is read of it."""

    def __init__(self, parts, size):
        self._parts, self.size, self.asked = parts, size, []

    def __call__(self, start, stop):
        assert 0 <= start < stop <= self.size
        self.asked.append(stop - start)
        out = bytearray(stop - start)
        for at, part in self._parts:
            low, high = max(start, at), min(stop, at + len(part))
            if low < high:
                out[low - start : high - start] = part[low - at : high - at]
        return bytes(out)


def films(count, size=200 << 20):
    """A tar of films, each with a caption behind it, of which only the headers are there."""
    parts, at = [], 0
    for index in range(count):
        head = set_size(make_tar([(f"{index}.mp4", b"")])[:512], 0, b"%011o\0" % size)
        parts.append((at, head))
        parts.append((at + 512 + size, make_tar([(f"{index}.txt", b"x" * 600)])[:1536]))
        at += 512 + size + 1536
    return Asked(parts, at + 1024)


def test_a_walk_from_the_start_skips_payload_and_holds_little():
    """A chunk far inside a film has to be walked to from byte 0: header by header, no more."""
    for walked in (False, True):
        read = films(30)
        start = read.size // (16 << 20) * (16 << 20) - (320 << 20)
        chunk = Chunk(0, start, start + (16 << 20), walked)
        assert cut_chunk(read, read.size, chunk).found == []
        # Not walked, the search backwards comes first.
        assert sum(read.asked) < (40 << 20) + (0 if walked else 96 << 20)
        assert max(read.asked) <= 40 << 20


def test_a_chain_of_large_members_is_followed_without_reading_them():
    """Eight headers are believed; that these lie 200 MB apart must not be 1.6 GB in memory."""
    read = films(12)
    chunk = Chunk(0, 512 + (200 << 20), 512 + (200 << 20) + (1 << 20))
    (film,) = cut_chunk(read, read.size, chunk).found
    assert (film.key, film.offset) == ("1", (200 << 20) + 2048)
    assert max(read.asked) <= 201 << 20


def test_chunks_of_a_shard_that_must_be_walked_share_one_walk():
    """A thousand chunks would be a thousand walks from byte 0: hours, and a bill."""
    data = b"".join(make_tar(numbered(40, 3000)) for _ in range(12))
    reads = {}
    for name, starts in (("alone", None), ("together", SampleStarts(16384))):
        read = Asked([(0, data)], len(data))
        found = []
        for chunk in cutting.chunks_of(data, 65536, walked=True):
            found += cut_chunk(read, len(data), chunk, 1 << 16, starts).found
        assert contents(found) == samples_by_tarfile(data)
        reads[name] = sum(read.asked)
    assert reads["together"] < 6 * len(data) < reads["alone"]


def inner(num, end=bytes(10240)):
    """A tar inside a tar, of samples that the outer one has, too."""
    return make_tar(numbered(num, 700, ("jpg",)))[: num * 1536] + end


@pytest.mark.parametrize("walked", [False, True])
def test_a_long_nested_tar_deceives_only_who_does_not_walk_and_is_told(walked):
    """Its members would be trained on as samples of their own, for ever and unseen."""
    data = make_tar([*numbered(20), ("x.tar", inner(200)), *numbered(21)])
    found = cutting.cut_all(data, 16384, walked=walked)
    assert found.needs_walk
    assert (contents(found.found) == samples_by_tarfile(data)) == walked


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
def test_chunks_leap_where_a_later_one_could_be_deceived_and_seldom_elsewhere(members, needs_walk):
    """A shard that needs_walk is walked from byte 0: dear for nothing, if nobody can be deceived."""
    data = make_tar(members)
    found = cutting.cut_all(data, 32768)
    assert found.needs_walk == needs_walk
    assert needs_walk or contents(found.found) == samples_by_tarfile(data)


def test_a_nested_tar_at_the_very_end_is_told():
    """Its end runs into the end around it, so its chain seems to be the one of the shard."""
    data = make_tar([*numbered(20), ("last.tar", inner(20, bytes(1024)))])
    for chunk_bytes in (4096, 16384, 32768):
        found = cutting.cut_all(data, chunk_bytes)
        assert found.needs_walk or contents(found.found) == samples_by_tarfile(data)
        walked = cutting.cut_all(data, chunk_bytes, walked=True)
        assert contents(walked.found) == samples_by_tarfile(data)


def test_links_are_counted_where_they_lie():
    """An image that is stored as a link to another would disappear and nobody would know."""
    link = header(b"1.jpg", 0, b"1") + header(b"2.jpg", 0, b"2") + header(b"folder/", 0, b"5")
    data = (make_tar(numbered(10))[: 10 * 3072] + link) * 5 + bytes(1024)
    parts = [cutting.cut_bytes(data, chunk) for chunk in cutting.chunks_of(data, 16384)]
    assert sum(part.num_links for part in parts) == 10
    assert cutting.cut_bytes(data, Chunk(0, 0, len(data))).num_links == 10


def test_the_last_chunk_never_leaps():
    """There is nobody behind it to deceive; one chunk for a whole shard must not look irregular."""
    data = make_tar([*numbered(20), ("x.tar", inner(200))])
    assert not cutting.cut_bytes(data, Chunk(0, 0, len(data))).needs_walk
    assert not cutting.cut_bytes(data[: len(data) // 2], Chunk(0, 0, len(data) // 2)).needs_walk


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (gzip.compress(random.Random(0).randbytes(300_000)), "a gzip file"),
        (b"<html>not found</html>" * 400, "b'<html>no'"),
        (b"short", "b'short'"),
    ],
)
def test_what_is_no_tar_is_refused_with_the_remedy(data, found):
    """A folder of .tar.gz files renamed to .tar must say so at once."""
    with pytest.raises(NotATar, match=f"begins with {found}; a shard must be.*shards pack"):
        cut_chunk(lambda a, b: data[a:b], len(data), Chunk(0, 0, len(data)))
    if len(data) > 200_000:
        # One chunk speaks for the shard; the others hold nothing.
        assert cut_chunk(lambda a, b: data[a:b], len(data), Chunk(0, 200_000, len(data))).found == []


def test_an_archive_without_members_is_empty_not_broken():
    """A shard of zeros only is a tar, if a poor one."""
    assert cut_all(bytes(10240)) == []


def test_shards_written_by_webdataset_are_read_exactly(tmp_path):
    """The tars that users have were written by this library, or by one that does as it does."""
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
