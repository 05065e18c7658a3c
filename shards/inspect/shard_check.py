"""Check of one shard: chunks against a walk from byte 0, repeated and scattered keys."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shards.errors import NotATar
from shards.records import Chunk, Reject, Sample, ShardInfo
from shards.redaction import redact
from shards.stores.range_reader import RangeReader
from shards.tars.chunk_reader import read_chunk
from shards.tars.cutter import cut_chunk
from shards.tars.headers import BLOCK
from shards.tars.sample_starts import SampleStarts

Found = list[Sample | Reject]

_PAGE = 1 << 20
# A tar ends with two blocks of zeros.
_END_BYTES = 2 * BLOCK
# A shard that is read whole is passed on in parts of this many samples.
_SAMPLES_PER_PART = 256


@dataclass(slots=True)
class ShardReport:
    """Report on one shard.

    `irregular_at`: start of the first chunk that, cut alone, gives other samples than a walk from
    byte 0. `needs_walk_at`: start of the first chunk that makes a run walk the shard.
    `num_repeated`: samples whose key and an extension occurred before. `num_scattered`: samples
    whose key occurred before with other extensions only: probably members of one sample that are
    not adjacent. `num_links`: links, whose targets may have been meant. `num_hidden`: hidden files,
    which are part of no sample. `has_end`: the tar ends with two blocks of zeros, which a writer
    that was interrupted leaves out.
    """

    shard: int
    uri: str
    num_bytes: int
    num_samples: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    examples: dict[str, Reject] = field(default_factory=dict)
    irregular_at: int | None = None
    needs_walk_at: int | None = None
    num_repeated: int = 0
    num_scattered: int = 0
    first_scattered: int | None = None
    num_links: int = 0
    num_hidden: int = 0
    has_end: bool = True
    unreadable: str | None = None

    @property
    def is_good(self) -> bool:
        """True if every sample can be used as it is."""
        faults = self.rejects or self.num_scattered or self.unreadable is not None
        return bool(self.num_samples and self.has_end and not faults and self.irregular_at is None)


def walk_shard(
    reader: RangeReader, shard: ShardInfo, report: ShardReport, chunk_bytes: int
) -> Iterator[tuple[int, Found]]:
    """Yield (bytes passed, samples) for consecutive parts of a shard, in file order.

    Fills in the fields of `report` about samples, chunks and keys. Raises ShardUnreadable.
    """
    keys = _KeyTable()
    for num_bytes, found in _walk(reader, shard, report, chunk_bytes):
        keys.add(found)
        report.num_samples += len(found)
        yield num_bytes, found
    keys.report(report)


def new_report(row: int, shard: ShardInfo) -> ShardReport:
    """Return an empty report."""
    return ShardReport(row, redact(shard.uri), shard.num_bytes)


def _walk(
    reader: RangeReader, shard: ShardInfo, report: ShardReport, chunk_bytes: int
) -> Iterator[tuple[int, Found]]:
    row, size = report.shard, shard.num_bytes
    if shard.whole:
        whole = read_chunk(reader, shard, Chunk(row, 0, size))
        found, report.num_links, report.num_hidden = whole.found, whole.num_links, whole.num_hidden
        for at in range(0, len(found), _SAMPLES_PER_PART):
            yield 0, found[at : at + _SAMPLES_PER_PART]
        yield size, []
        return
    pages = _PageCache(lambda a, b: reader.read(shard, a, b), size, 3 * chunk_bytes)
    starts, stop = SampleStarts(), 0
    for start in range(0, size, chunk_bytes):
        chunk = Chunk(row, start, min(start + chunk_bytes, size), walked=True)
        try:
            walked = cut_chunk(pages.read, size, chunk, starts=starts, names=shard.names)
        except NotATar as error:
            yield size, [Reject(row, 0, "", "broken_tar", str(error))]
            return
        alone = cut_chunk(
            pages.read, size, replace(chunk, walked=False), starts=starts, names=shard.names
        )
        report.num_links += walked.num_links
        report.num_hidden += walked.num_hidden
        stop = max(stop, walked.stop)
        if alone.found != walked.found and report.irregular_at is None:
            report.irregular_at = start
        if (alone.needs_walk or walked.needs_walk) and report.needs_walk_at is None:
            report.needs_walk_at = start
        if chunk.stop == size:
            ending = pages.read(stop, min(size, stop + _END_BYTES)) if stop < size else b""
            report.has_end = ending == bytes(_END_BYTES)
        yield chunk.stop - start, walked.found


class _PageCache:
    """LRU cache of file pages: every chunk is cut twice, but read once."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, keep_bytes: int) -> None:
        self._read, self._size = read, size
        self._keep = keep_bytes // _PAGE + 8
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop)."""
        numbers = range(start // _PAGE, -(-stop // _PAGE))
        missing = [number for number in numbers if number not in self._pages]
        got: dict[int, bytes] = {}
        while missing:
            length = 1
            while length < len(missing) and missing[length] == missing[0] + length:
                length += 1
            first = missing[0] * _PAGE
            data = self._read(first, min(first + length * _PAGE, self._size))
            for index, number in enumerate(missing[:length]):
                got[number] = data[index * _PAGE : (index + 1) * _PAGE]
            del missing[:length]
        parts = [got.get(number) or self._pages[number] for number in numbers]
        for number, page in zip(numbers, parts, strict=True):
            self._pages[number] = page
            self._pages.move_to_end(number)
        while len(self._pages) > self._keep:
            self._pages.popitem(last=False)
        first = numbers.start * _PAGE
        return b"".join(parts)[start - first : stop - first]


class _KeyTable:
    """Keys of one shard: 24 bytes per sample, however long the key is."""

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._parts: list[NDArray[np.int64]] = []

    def add(self, found: Found) -> None:
        """Add samples in file order."""
        rows = [
            (hash(item.key), self._mask(item), item.offset)
            for item in found
            if isinstance(item, Sample)
        ]
        self._parts.append(np.array(rows, dtype=np.int64).reshape(-1, 3))

    def _mask(self, sample: Sample) -> int:
        """Return one bit per extension; extensions after the first 62 share a bit."""
        mask = 0
        for extension in sample.fields:
            mask |= 1 << self._bits.setdefault(extension, min(len(self._bits), 62))
        return mask

    def report(self, report: ShardReport) -> None:
        """Count repeated and scattered keys into `report`."""
        rows = np.concatenate([*self._parts, np.empty((0, 3), np.int64)])
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        again = np.flatnonzero(rows[1:, 0] == rows[:-1, 0]) + 1
        mask, before = 0, -1
        for index in again.tolist():
            if index - 1 != before:
                mask = int(rows[index - 1, 1])
            before = index
            if mask & int(rows[index, 1]):
                report.num_repeated += 1
            else:
                report.num_scattered += 1
                offset = int(rows[index, 2])
                if report.first_scattered is None or offset < report.first_scattered:
                    report.first_scattered = offset
            mask |= int(rows[index, 1])
