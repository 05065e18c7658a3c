"""Checks of the tar cutter against `tarfile`, on random tars, whole and damaged."""

import random
import time

from shards.errors import NotATar
from shards.member_names import WEBDATASET_NAMES
from shards.records import Chunk, Reject, Sample
from shards.tars.cutter import CutChunk, cut_chunk
from shards.tars.sample_starts import SampleStarts
from tests.wild_tars import BLOCK, Expected, expected_samples, wild_tar, with_checksum

CHUNK_SIZES = (1024, 4096, 7680, 16384, 65536, 1 << 20)
WINDOWS = (1 << 12, 1 << 16, 1 << 18)


def cut_bytes(data, chunk, window_bytes=1 << 18, starts=None, names=WEBDATASET_NAMES):
    """Cut one chunk of a tar in memory."""
    found = cut_chunk(lambda a, b: data[a:b], len(data), chunk, window_bytes, starts, names)
    assert all(chunk.start <= item.offset < chunk.stop for item in found.found)
    return found


def chunks_of(data, chunk_bytes, walked=False):
    size = len(data)
    return [
        Chunk(3, start, min(start + chunk_bytes, size), walked)
        for start in range(0, size, chunk_bytes)
    ]


def cut_all(data, chunk_bytes=4096, window_bytes=1 << 18, walked=False, names=WEBDATASET_NAMES):
    """Cut all chunks of a tar; `needs_walk` is set if any chunk sets it."""
    found, needs_walk = [], False
    for chunk in chunks_of(data, chunk_bytes, walked):
        part = cut_bytes(data, chunk, window_bytes, names=names)
        found += part.found
        needs_walk |= part.needs_walk
    return CutChunk(found, needs_walk)


def samples_in(found):
    """Return (offset, key, members) of the samples in `found`."""
    return [(s.offset, s.key, dict(s.fields)) for s in found if isinstance(s, Sample)]


def rejects_in(found):
    return [item for item in found if isinstance(item, Reject)]


def shape(expected: list[Expected]):
    return [(sample.offset, sample.key, sample.fields) for sample in expected]


def random_sizes(data, rng):
    """Draw a chunk size that gives at most about 60 chunks, and a window size."""
    fitting = [size for size in CHUNK_SIZES if len(data) <= 60 * size]
    return rng.choice(fitting[:4]), rng.choice(WINDOWS)


def check_wild(seed, nested):
    """Cut a random tar in chunks of a random size; return True if it is exact without a walk.

    Walked chunks must be exact, in any order, with and without known sample starts. Other chunks
    must be exact, or one of them must set `needs_walk`.
    """
    wild = wild_tar(seed, nested)
    rng = random.Random(seed)
    sizes = random_sizes(wild.data, rng)
    expected = shape(expected_samples(wild.data))
    chunks = chunks_of(wild.data, sizes[0], walked=True)
    starts, walked = rng.choice([None, SampleStarts(4096), SampleStarts()]), []
    for chunk in rng.sample(chunks, len(chunks)):
        walked += cut_bytes(wild.data, chunk, sizes[1], starts).found
    walked.sort(key=lambda item: item.offset)
    assert samples_in(walked) == expected, (seed, sizes)
    assert len(rejects_in(walked)) == wild.num_damaged, (seed, sizes)
    free = cut_all(wild.data, *sizes)
    assert free.found == walked or (nested and free.needs_walk), (seed, sizes)
    assert nested or not free.needs_walk, (seed, sizes)
    return free.found == walked


def check_damaged(seed):
    """Cut a damaged random tar; return the number of samples before the damage.

    No chunk may raise or take long, no sample may be found twice, and samples that end before the
    damage must be unchanged.
    """
    rng = random.Random(seed)
    nested = rng.random() < 0.3
    data = wild_tar(rng.randrange(1000), nested).data
    broken, at = damage(data, rng)
    before = shape([sample for sample in expected_samples(data) if sample.end <= at])
    sizes = random_sizes(broken, rng)
    for walked in (True, False):
        started = time.process_time()
        try:
            found = cut_all(broken, *sizes, walked=walked)
        except NotATar:
            assert at < 1 << 16 or not before, seed
            continue
        assert time.process_time() - started < 20, seed
        offsets = [item.offset for item in found.found]
        assert offsets == sorted(set(offsets)), seed
        samples = samples_in(found.found)
        # A nested tar may mislead chunks that are not walked; then an earlier chunk reports it.
        intact = begins_with(samples, before)
        assert intact or (nested and not walked and found.needs_walk), seed
        assert sum(len(d) for s in samples for d in s[2].values()) <= 17 * len(broken), seed
    return len(before)


def begins_with(samples, before):
    """Return True if `samples` begin with `before`.

    The last of them may have more members, if the next member has the same key.
    """
    if not before or len(samples) < len(before):
        return not before
    *others, (offset, key, fields) = before
    last = samples[len(others)]
    same = last[:2] == (offset, key) and fields.items() <= last[2].items()
    return samples[: len(others)] == others and same


def damage(data, rng):
    """Return `data` with random damage, and the first byte that may differ."""
    at = rng.randrange(len(data))
    length = rng.choice([1, 8, 100, BLOCK, 5000])
    aligned = at // BLOCK * BLOCK
    kind = rng.randrange(8)
    if kind == 0:
        places = sorted(rng.choices(range(len(data)), k=rng.choice([1, 1, 2, 5, 50])))
        out = bytearray(data)
        for place in places:
            out[place] ^= 1 << rng.randrange(8)
        return bytes(out), places[0]
    if kind == 1:
        return data[:at], at
    if kind == 2:
        length = BLOCK * rng.choice([1, 2, 8, 100])
        return data[:aligned] + bytes(length) + data[aligned + length :], aligned
    if kind == 3:
        return data[:at] + rng.randbytes(length) + data[at + length :], at
    if kind == 4:
        return data[:at] + rng.randbytes(length) + data[at:], at
    if kind == 5:
        start = rng.choice([at, aligned])
        return data[:start] + data[start + length :], start
    if kind == 6:
        other = rng.randrange(len(data)) // BLOCK * BLOCK
        piece = data[other : other + BLOCK * rng.choice([1, 4, 40])]
        return data[:aligned] + piece + data[aligned + len(piece) :], aligned
    return _change_header(data, rng)


def _change_header(data, rng):
    """Change a header and make its checksum right."""
    headers = [sample.offset for sample in expected_samples(data)]
    if not headers:
        return data[:100], 100
    at = rng.choice(headers)
    block = bytearray(data[at : at + BLOCK])
    if rng.random() < 0.6:
        size = rng.choice([b"77777777777\0", b"00000000000\0", b"%011o\0" % rng.randrange(1 << 20),
                           b"\x80" + rng.randbytes(11), b"\xff" * 12, b"garbage size"])  # fmt: skip
        block[124:136] = size
    else:
        block[156] = rng.choice(b"LKxgXS1257VMZ\0")
        block[386:500] = rng.choice([bytes(114), rng.randbytes(114), bytes(block[386:500])])
    return data[:at] + with_checksum(bytes(block)) + data[at + BLOCK :], at
