"""Sparse files are restored from every map format of GNU tar; bombs are rejected."""

import os
import random
import shutil
import subprocess

import pytest

from shards.tars.sparse_files import SparseMap, SparseMapError
from tests.tar_checks import cut_all, rejects_in, samples_in
from tests.wild_tars import expected_samples, header, member, pad, pax

STYLES = ("sparse_gnu", "sparse_0.0", "sparse_0.1", "sparse_1.0")


def sparse_bytes(rng, num_pieces):
    """Random bytes with runs of zeros between them."""
    pieces = [rng.randbytes(512 * rng.randint(1, 3)) + bytes(2048) for _ in range(num_pieces)]
    return bytes(1024) + b"".join(pieces)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("num_pieces", [0, 1, 4, 5, 26])
def test_every_map_format_restores_the_file(style, num_pieces):
    """An image without its zeros would be a broken image."""
    rng = random.Random(num_pieces)
    whole = {f"{i}": sparse_bytes(rng, num_pieces) for i in range(4)}
    data = b"".join(member(f"{k}.bmp".encode(), v, style, rng) for k, v in whole.items())
    data += bytes(1024)
    expected = [(s.offset, s.key, s.fields) for s in expected_samples(data)]
    assert [s[2]["bmp"] for s in expected] == [*whole.values()]
    for chunk_bytes in (4096, 1 << 20):
        found = cut_all(data, chunk_bytes).found
        assert samples_in(found) == expected and rejects_in(found) == []


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("options", ["--format=gnu", "--format=pax --sparse-version=0.0",
                                     "--format=pax --sparse-version=0.1",
                                     "--format=pax --sparse-version=1.0"])  # fmt: skip
def test_shards_of_gnu_tar_are_read_exactly(options, tmp_path):
    """The maps built by the tests could differ from those of the tool."""
    rng = random.Random(3)
    contents = {}
    for index in range(10):
        path = tmp_path / f"{index:02d}.bmp"
        with path.open("wb") as file:
            for piece in range(index):
                file.seek(65536 * 2 * piece)
                file.write(rng.randbytes(40_000))
        contents[path.stem] = path.read_bytes()
    names = [f"{name}.bmp" for name in contents]
    made = subprocess.run(
        ["tar", "--sparse", *options.split(), "-cf", "out.tar", *names],
        cwd=tmp_path, env={"LC_ALL": "C", "PATH": os.environ["PATH"]}, capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"this tar does not support {options}")
    data = (tmp_path / "out.tar").read_bytes()
    for chunk_bytes in (16384, 1 << 22):
        found = cut_all(data, chunk_bytes).found
        assert {s[1]: s[2]["bmp"] for s in samples_in(found)} == contents


def test_sparse_bomb_is_rejected_and_not_expanded():
    """A kilobyte would become half a gigabyte, four thousand times in a chunk."""
    bomb = header(b"0.bmp", 0, b"S", "gnu", (bytes(97) + b"%011o\0" % (1 << 29)).ljust(126, b"\0"))
    found = cut_all(bomb + header(b"1.bmp", 0) + bytes(1024)).found
    (reject,) = rejects_in(found)
    assert (reject.reason, reject.key) == ("too_large", "0") and "holes" in reject.detail
    assert [s[1] for s in samples_in(found)] == ["1"]


@pytest.mark.parametrize(
    "records",
    [
        [(b"GNU.sparse.size", b"100"), (b"GNU.sparse.map", b"0,50,20,50")],
        [(b"GNU.sparse.size", b"10"), (b"GNU.sparse.map", b"0,50")],
        [(b"GNU.sparse.size", b"100"), (b"GNU.sparse.map", b"0,50,90")],
        [(b"GNU.sparse.size", b"9" * 5000), (b"GNU.sparse.map", b"0,50")],
        [(b"GNU.sparse.size", b"100"), (b"GNU.sparse.map", b"0,-5")],
        [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")],
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")],
        [(b"GNU.sparse.size", b"x"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"1")],
    ],
)
def test_inconsistent_map_is_damage(records):
    """An invalid map would be used, or raise."""
    data = pax(records) + header(b"0.bmp", 50) + pad(b"x" * 50) + header(b"1.bmp", 0) + bytes(1024)
    found = cut_all(data).found
    assert [(r.reason, r.offset) for r in rejects_in(found)] == [("broken_tar", 0)]
    assert "without a readable map" in rejects_in(found)[0].detail
    assert [s[1] for s in samples_in(found)][-1] == "1"


def test_map_that_needs_more_data_than_stored_is_a_reject():
    """The end of the image would come from the next image."""
    with pytest.raises(SparseMapError):
        SparseMap(100, ((0, 60),)).fill(b"x" * 50)
    records = [(b"GNU.sparse.size", b"100"), (b"GNU.sparse.map", b"0,60")]
    data = pax(records) + header(b"0.bmp", 50) + pad(b"x" * 50) + bytes(1024)
    (reject,) = rejects_in(cut_all(data).found)
    assert (reject.reason, reject.key) == ("broken_tar", "0")
