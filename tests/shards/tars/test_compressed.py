"""Compressed shards give the samples of the tar inside; damage costs only what follows it."""

import gzip
import io
import random
import tempfile
import zlib

import pytest
import zstandard

from shards.errors import NotATar, ShardUnreadable
from shards.records import Chunk, Reject, Sample
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from shards.stream.manifest_listing import open_manifest
from shards.tars.chunk_reader import read_chunk, read_shard_head
from shards.tars.compressed import cut_whole
from tests.tars import make_tar
from tests.wild_tars import expected_samples, wild_tar

READER = RangeReader()
PLAIN = make_tar([(f"{i:03d}.{e}", random.Random(i).randbytes(900)) for i in range(30)
                  for e in ("jpg", "txt")])  # fmt: skip


def zstd(data, **options):
    return zstandard.ZstdCompressor(write_checksum=True, **options).compress(data)


def bgzf(data):
    """Compress to many gzip members."""
    return b"".join(gzip.compress(data[at : at + 5000]) for at in range(0, len(data), 5000))


def frames(data):
    skippable = b"\x50\x2a\x4d\x18\x05\0\0\0hello"
    return skippable.join(zstd(data[at : at + 5000]) for at in range(0, len(data), 5000))


PACKERS = {".tar.gz": gzip.compress, ".tgz": bgzf, ".tar.zst": zstd, ".TAR.ZST": frames}


@pytest.fixture
def pack(tmp_path):
    """Return a function that writes a shard of these bytes and lists it."""

    def write(data, extension=".tar.gz"):
        path = tmp_path / f"0{extension}"
        path.write_bytes(data)
        (shard,) = list_shards(str(path))
        return shard

    return write


def cut_one(shard):
    return read_chunk(READER, shard, Chunk(7, 0, shard.num_bytes)).found


def shape(found):
    return [(s.offset, s.key, dict(s.fields)) for s in found if isinstance(s, Sample)]


def rejects(found):
    return [item for item in found if isinstance(item, Reject)]


def expected(data):
    return [(s.offset, s.key, s.fields) for s in expected_samples(data)]


def test_compressed_wild_tars_give_the_same_samples(pack):
    """Rare tar features would work only in uncompressed shards."""
    for seed in range(12):
        data = wild_tar(seed, nested=seed % 2 == 1).data
        extension = [*PACKERS][seed % 4]
        assert shape(cut_one(pack(PACKERS[extension](data), extension))) == expected(data), seed


@pytest.mark.parametrize(
    ("data", "extension"),
    [(PLAIN, ".tar.gz"), (zstd(PLAIN), ".tar.gz"), (gzip.compress(PLAIN), ".tar.zst")],
)
def test_compression_is_detected_from_the_bytes(pack, data, extension):
    """A renamed file would be a broken shard."""
    assert shape(cut_one(pack(data, extension))) == expected(PLAIN)


def test_compressed_shard_named_tar_is_refused_with_its_right_name(pack):
    """The user would pack for a week instead of renaming."""
    for data, extension in ((gzip.compress(PLAIN), ".tar.gz"), (zstd(PLAIN), ".tar.zst")):
        (reject,) = cut_one(pack(data, ".tar"))
        assert reject.reason == "broken_tar"
        assert f"rename it to end in {extension}, or repack it" in reject.detail


@pytest.mark.parametrize("extension", PACKERS)
def test_truncated_stream_keeps_the_samples_before_its_end(pack, extension):
    """An interrupted upload would cost the whole shard, or go uncounted."""
    packed = PACKERS[extension](PLAIN)
    for length in (len(packed) // 7, len(packed) // 2, len(packed) - 9):
        found = cut_one(pack(packed[:length], extension))
        samples = shape(found)
        wanted = expected(PLAIN)[: len(samples)]
        assert samples[:-1] == wanted[:-1]
        # The last sample may lack the member whose header is cut.
        assert all(s[2].items() <= w[2].items() for s, w in zip(samples, wanted, strict=True))
        # A single zstd frame is decoded in blocks of 128 KiB.
        assert extension == ".tar.zst" or len(samples) >= 30 * length // len(packed) - 6
        (reject,) = rejects(found)
        assert reject.reason == "truncated_tar" and "stream ends early" in reject.detail
        assert found[-1] is reject


def test_damaged_stream_gives_a_reject_after_the_samples_before_it(pack):
    """Wrong bytes in the middle would end the run or go unnoticed."""
    packed = bytearray(gzip.compress(PLAIN))
    packed[len(packed) // 2 : len(packed) // 2 + 300] = bytes(300)
    for data, extension in ((bytes(packed), ".tar.gz"), (frames(PLAIN)[:-3] + b"abc", ".tar.zst")):
        found = cut_one(pack(data, extension))
        assert len(shape(found)) > 5
        assert {reject.reason for reject in rejects(found)} == {"broken_tar"}
        assert found[-1] is rejects(found)[-1] and "stream is damaged" in found[-1].detail


def test_wrong_checksum_is_counted_and_costs_no_sample(pack):
    """Damage that no sample shows would go unnoticed."""
    packed = gzip.compress(PLAIN)
    found = cut_one(pack(packed[:-8] + b"\1\2\3\4" + packed[-4:]))
    assert shape(found) == expected(PLAIN)
    (reject,) = rejects(found)
    assert (reject.reason, reject.offset) == ("broken_tar", len(PLAIN))
    assert "incorrect data check" in reject.detail


@pytest.mark.parametrize(("padding", "num_rejects"), [(bytes(5000), 0), (b"junk", 1)])
def test_zeros_after_the_end_are_padding_and_other_bytes_are_damage(pack, padding, num_rejects):
    """Padded files would be rejected, or foreign bytes accepted."""
    found = cut_one(pack(gzip.compress(PLAIN) + padding))
    assert shape(found) == expected(PLAIN) and len(rejects(found)) == num_rejects


def test_bomb_is_one_reject(pack, monkeypatch):
    """A few kilobytes would fill the disk or the memory."""
    monkeypatch.setattr("shards.tars.compressed._ALWAYS_ALLOWED", 1 << 22)
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = make_tar([("0.jpg", b"x" * 600)])[:1536]
    bomb = compressor.compress(head + bytes(1 << 25)) + compressor.flush()
    for data, extension in ((bomb, ".tar.gz"), (zstd(head + bytes(1 << 25)), ".tar.zst")):
        (reject,) = cut_one(pack(data, extension))
        assert (reject.reason, reject.offset) == ("too_large", 0)
        assert "unpacks to more than 4194304 bytes" in reject.detail


def test_large_zstd_window_is_refused(pack):
    """`zstd --long=31` would need two gigabytes in every reader."""
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(PLAIN) + compressor.flush()
    (reject,) = cut_one(pack(packed, ".tar.zst"))
    assert "too much memory" in reject.detail


def test_compressed_file_without_a_tar_is_one_reject(pack):
    """Compressed JSON files that match the pattern would raise."""
    noise = random.Random(0).randbytes(100_000)
    for data, extension in ((gzip.compress(noise), ".tar.gz"), (zstd(noise), ".tar.zst")):
        (reject,) = cut_one(pack(data, extension))
        assert (reject.reason, reject.offset) == ("broken_tar", 0)
        assert "a shard must be a tar" in reject.detail
        with pytest.raises(NotATar):
            read_shard_head(READER, pack(data, extension), 1 << 20)


def test_manifest_samples_compressed_shards(pack, tmp_path):
    """The estimated sample size, and so the chunk size, would be wrong."""
    packed = gzip.compress(PLAIN)
    shard = pack(packed)
    manifest = open_manifest(str(tmp_path), RangeReader())
    assert manifest.shards == (shard,)
    assert manifest.sample_bytes == pytest.approx(len(packed) / 30)
    found = read_shard_head(READER, shard, len(packed) // 2).found
    assert 5 < len(found) < 30 and shape(found) == expected(PLAIN)[: len(found)]


def test_full_disk_is_an_error_with_the_remedy(pack, monkeypatch):
    """A full disk would be counted as broken shards."""

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    shard = pack(gzip.compress(PLAIN))
    with pytest.raises(ShardUnreadable, match=r"No space left.*set TMPDIR to another folder"):
        cut_whole(READER, shard, Chunk(0, 0, shard.num_bytes))


@pytest.mark.parametrize("packer", [gzip.compress, zstd])
def test_random_damage_is_a_reject_or_harmless(pack, packer):
    """Random damage would raise, or change samples without a reject."""
    packed = packer(PLAIN)
    for seed in range(25):
        rng = random.Random(seed)
        data = bytearray(packed)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(4, len(data))
            data[at : at + rng.choice([1, 1, 50])] = rng.randbytes(rng.choice([1, 1, 50]))
        found = cut_one(pack(bytes(data), ".tar.gz"))
        assert rejects(found) or shape(found) == expected(PLAIN)
