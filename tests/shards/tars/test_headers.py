"""Single tar headers: recognition, parsing, and TarHeaderError for invalid ones."""

import io
import random
import tarfile

import pytest

from shards.tars.headers import BLOCK, TarHeaderError, header_offsets, is_header, read_member
from tests.tars import make_tar
from tests.wild_tars import header, long_link, member, pad, pax, with_checksum


def read(data, start=0):
    return read_member(lambda a, b: data[a:b], start)


def sum_is_right(block):
    """Return True if the checksum is right, by its definition."""
    field = block[148:156].split(b"\0")[0].strip()
    rest = block[:148] + b" " * 8 + block[156:]
    signed = [byte - 256 if byte > 127 else byte for byte in rest]
    return block[:1] != b"\0" and int(field, 8) in (sum(rest), sum(signed))


def test_checksum_follows_its_definition():
    """A fast checksum that is wrong once in a million headers would lose that sample."""
    rng = random.Random(0)
    for _ in range(300):
        block = bytearray(rng.choice([rng.randbytes(BLOCK), b"\xff" * BLOCK, b"x" * BLOCK]))
        block = bytearray(with_checksum(bytes(block)))
        block[rng.randrange(148)] ^= rng.choice([0, 0, 1, 128])
        assert is_header(bytes(block)) == sum_is_right(bytes(block))


def test_random_blocks_and_zeros_and_text_are_no_headers():
    """Blocks of images would be taken for headers."""
    rng = random.Random(1)
    data = rng.randbytes(200 * BLOCK) + bytes(20 * BLOCK) + b" 012345\0" * 64 * 20
    assert list(header_offsets(data)) == [] and not is_header(data[:100])


def test_checksum_of_one_digit_is_no_header():
    """The signed sum of random bytes is near 0: one tar in thousands would look nested."""
    rng = random.Random(2)
    block = bytearray(rng.randbytes(BLOCK))
    for digit in range(8):
        block[148:156] = b"%d\0      " % digit
        rest = block[:148] + b" " * 8 + block[156:]
        signed = sum(byte - 256 if byte > 127 else byte for byte in rest)
        for _ in range(500):  # change one byte after the other until the sum is the digit
            place = rng.choice([*range(1, 148), *range(156, BLOCK)])
            change = max(-(block[place] ^ 128), min(255 - (block[place] ^ 128), digit - signed))
            block[place] = (((block[place] ^ 128) + change) % 256) ^ 128
            signed += change
            if signed == digit:
                break
        assert signed == digit and sum_is_right(bytes(block)) and not is_header(bytes(block))


def test_headers_are_found_only_at_block_borders():
    """A header inside the data of a block would be used."""
    one = header(b"0.jpg", 0)
    data = b"x" * BLOCK + one + b"y" * 100 + one + bytes(BLOCK - 100) + one
    assert list(header_offsets(data)) == [BLOCK, 4 * BLOCK]
    assert list(header_offsets(data, 100)) == [2 * BLOCK + 100]
    assert list(header_offsets(data, 0, 4 * BLOCK)) == [BLOCK]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_sizes_equal_those_of_tarfile(form):
    """A wrong size would lose the rest of the chain."""
    data = make_tar([("a/b.c/0.seg.PNG", b"x" * 700), ("é" * 40 + ".jpg", b"")], form)
    first = read(data)
    assert (first.name, first.key, first.extension) == ("a/b.c/0.seg.PNG", "a/b.c/0", "seg.png")
    assert (first.start, first.data_start, first.num_bytes, first.end) == (0, 512, 700, 1536)
    assert first.regular and read(data, first.end).name == "é" * 40 + ".jpg"


@pytest.mark.parametrize(
    ("block", "num_bytes"),
    [
        (header(b"f", 5, base256=True), 5),
        (header(b"f", 9 << 33, base256=True), 9 << 33),
        (with_checksum(header(b"f", 0)[:124] + b"     000017 " + header(b"f", 0)[136:]), 15),
        (with_checksum(header(b"f", 0)[:124] + b"0" * 11 + b"7" + header(b"f", 0)[136:]), 7),
        (with_checksum(header(b"f", 0)[:124] + bytes(12) + header(b"f", 0)[136:]), 0),
        (with_checksum(header(b"f", 0)[:124] + b"-0000000007\0" + header(b"f", 0)[136:]), 0),
        (with_checksum(header(b"f", 0)[:124] + b"a hundred  \0" + header(b"f", 0)[136:]), 0),
    ],
)
def test_sizes_are_octal_or_base_256_and_never_negative(block, num_bytes):
    """Files over 8 GiB would be cut, or a negative size would make a walk endless."""
    assert read(block).num_bytes == num_bytes


def test_links_and_folders_and_devices_have_no_data():
    """The next header would be expected after data that do not exist."""
    for kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
        found = read(header(b"f", 4096, kind))
        assert not found.regular and found.end == BLOCK
    # An old tar marks folders by a slash.
    assert not read(header(b"folder/", 0, b"\0", "v7")).regular


def test_long_names_are_read_from_gnu_and_pax():
    """Samples whose names begin alike would be taken for one."""
    name = b"n" * 300 + b".jpg"
    for data in (
        long_link(name) + header(name, 3, mark="gnu"),
        long_link(b"target" * 40, b"K") + long_link(name) + header(name, 3, mark="gnu"),
        pax([(b"mtime", b"1.5"), (b"path", name)]) + header(name, 3),
        pax([(b"path", name)], b"X") + header(name, 3),
    ):
        found = read(data)
        assert (found.start, found.num_bytes) == (0, 3)
        assert found.name == name.decode() and found.data_start == len(data)


def test_global_header_is_a_separate_member():
    """Its records would apply in the first chunk only, so they must apply in none."""
    data = pax([(b"path", b"all.jpg"), (b"size", b"1")], b"g") + header(b"1.jpg", 0)
    first = read(data)
    assert not first.regular and first.end == 1024 and read(data, first.end).name == "1.jpg"


def test_names_in_other_encodings_stay_different():
    """Two names would become the same replacement characters."""
    names = {read(header(b"caf\xe9_%d.jpg" % i, 0)).name for i in range(3)}
    assert len(names) == 3 and all(name.encode("utf-8", "surrogateescape") for name in names)


def test_headers_hidden_in_a_pax_record_are_reported():
    """A later chunk could take them for members."""
    plain = pax([(b"comment", b"x" * 2000)]) + header(b"1.jpg", 0)
    inner = b"x" * 490 + header(b"evil.jpg", 0)
    evil = pax([(b"comment", inner)]) + header(b"1.jpg", 0)
    assert b"evil.jpg" in evil and evil.index(b"evil.jpg") % BLOCK != 0
    shifted = b"y" * (BLOCK - evil.index(b"evil.jpg") % BLOCK)
    evil = pax([(b"comment", shifted + inner)]) + header(b"1.jpg", 0)
    assert not read(plain).hides_headers and read(evil).hides_headers


def random_headers(rng):
    data = b""
    for kind in rng.choices([*b"LKxXgS0157\0Z"], k=4):
        block = bytearray(rng.randbytes(BLOCK) if rng.random() < 0.5 else header(b"n", 600))
        block[0] = block[0] or 1
        block[156] = kind
        data += with_checksum(bytes(block)) + rng.randbytes(rng.choice([0, 512, 1024]))
    return data + member(b"0.jpg", b"x" * 600, rng.choice(["sparse_gnu", "sparse_1.0"]), rng)


def test_random_headers_raise_only_header_errors():
    """Headers of an attacker would end a process or send a walk backwards."""
    for seed in range(100):
        try:
            found = read(random_headers(random.Random(seed)))
        except TarHeaderError as error:
            assert error.start == 0 and error.resume >= BLOCK, seed
        else:
            assert found.data_start >= BLOCK and found.num_bytes >= 0 and found.end >= BLOCK, seed


def test_tarfile_reads_the_headers_of_the_tests():
    """The other tests would use tars that no tool writes."""
    rng = random.Random(0)
    data = b"".join(member(b"%d.jpg" % i, b"x" * i, s, rng) for i, s in enumerate(
        ["ustar", "gnu", "pax", "v7", "base256", "pax_size"]))  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(data + bytes(1024))) as tar:
        assert [info.size for info in tar] == list(range(6))
    assert pad(b"x") == b"x" + bytes(511)
