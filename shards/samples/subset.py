"""Subset lists: select samples while reading; the shards stay unchanged.

A list holds uids, 32 hex digits as in field `uid` of the JSON member of a sample, or keys. The key
of a sample is its name in the tar up to the first dot of the file name. If any entry of the list
has a slash, entries are keys with folders; otherwise only the file name is compared.

An entry is 128 bits: a uid itself or the blake2b hash of a key. The list is one sorted array of
pairs of 64 bits, 16 bytes per entry, with binary search. This is the layout of the lists of
DataComp, so their files are memory-mapped unchanged.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from shards.records import Sample
from shards.samples.metadata import MetadataError, read_metadata

# "key" is a key with its folders, "name" a key without them.
Kind = Literal["uid", "key", "name"]
Pairs = NDArray[np.uint64]

UID = re.compile(r"[0-9a-fA-F]{32}")
_UID_FIELD = re.compile(rb'(?<!\\)"uid"\s*:\s*"([0-9a-fA-F]{32})"')
# One entry of this many is a fence, so that a search touches one or two pages of the list.
_STRIDE: Final = 32
# Rows of a list that are processed at a time.
ROWS: Final = 1 << 18
_NONE: Final = bytes(16)


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """List of samples. `pairs` (N, 2) is sorted; `fences` has the first number of every 32nd pair.

    `digest` depends on the content only, not on the format or order of the file. `was_sorted` and
    `num_duplicates` describe the file.
    """

    kind: Kind
    pairs: Pairs
    fences: Pairs
    digest: str
    was_sorted: bool
    num_duplicates: int

    def __len__(self) -> int:
        """Return the number of samples that the list names."""
        return len(self.pairs) - self.num_duplicates

    @property
    def num_bytes(self) -> int:
        return self.pairs.nbytes + self.fences.nbytes

    @property
    def summary(self) -> str:
        """Text for the user, such as '1,000 uids (not sorted in the file; 3 duplicates)'."""
        notes = [] if self.was_sorted else ["not sorted in the file"]
        notes += [f"{self.num_duplicates:,} duplicates"] if self.num_duplicates else []
        named = "uids" if self.kind == "uid" else "keys"
        return f"{len(self):,} {named}" + (f" ({'; '.join(notes)})" if notes else "")

    def selects(self, sample: Sample) -> bool:
        """Return True if the list names this sample."""
        return bool(self.select([sample])[0])

    def select(self, samples: Sequence[Sample]) -> NDArray[np.bool_]:
        """Return a mask of the samples that the list names."""
        found = [self.identify(sample) for sample in samples]
        wanted = self._holds(pairs_of(b"".join(bits or _NONE for bits in found)))
        wanted &= np.array([bits is not None for bits in found], dtype=np.bool_)
        return wanted

    def identify(self, sample: Sample) -> bytes | None:
        """Return the 128 bits of a sample in this list; None if a list of uids meets no uid."""
        if self.kind != "uid":
            key = sample.key.removeprefix("./")
            return hash_key(key if self.kind == "key" else key.rpartition("/")[2])
        uid = _plain_uid(sample.fields.get("json", b""))
        if uid is None:
            try:
                uid = read_metadata(sample).get("uid")
            except MetadataError:
                return None
        return bytes.fromhex(uid) if isinstance(uid, str) and UID.fullmatch(uid) else None

    def _holds(self, wanted: Pairs) -> NDArray[np.bool_]:
        """Return a mask of the rows (n, 2) that are among the pairs; searches all rows at once."""
        high, low = wanted[:, 0], wanted[:, 1]
        last = len(self.pairs) - 1
        place = np.maximum(np.searchsorted(self.fences, high, "left") - 1, 0) * _STRIDE
        stop = np.searchsorted(self.fences, high, "right") * _STRIDE
        # `place` is at or before the pair. It moves by steps of halving length over smaller pairs.
        # If many pairs share their first number, there are more steps.
        step = 1 << int((stop - place).max(initial=0)).bit_length()
        while step := step // 2:
            ahead = self.pairs[np.minimum(place + (step - 1), last)]
            below = (ahead[:, 0] < high) | ((ahead[:, 0] == high) & (ahead[:, 1] < low))
            place += step * below
        found = self.pairs[np.minimum(place, last)]
        held: NDArray[np.bool_] = (found == wanted).all(axis=1)
        return held


def _plain_uid(data: bytes) -> str | None:
    """Return the uid of a JSON object without parsing it, ten times as fast; None if unsure.

    In valid JSON a quote within a string is escaped, so the match is a name and its value. It
    belongs to the outer object if no other brace was opened before. Text after it may be invalid.
    """
    found = _UID_FIELD.search(data) if data.startswith(b"{") else None
    if found is None or data.count(b"{", 0, found.start()) != 1 or data.count(b'"uid"') != 1:
        return None
    return found[1].decode()


def build_subset(kind: Kind, pairs: Pairs) -> Subset:
    """Build a subset from pairs (N, 2), which are copied only if they are not sorted."""
    was_sorted = all(_in_order(part).all() for part in _overlapping(pairs))
    if not was_sorted:
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    digest = blake2b(kind.encode(), digest_size=16)
    digest.update(pairs[:1].astype("<u8").tobytes())
    num_distinct = 1
    for part in _overlapping(pairs):
        others = part[1:][(part[1:] != part[:-1]).any(axis=1)]
        digest.update(others.astype("<u8").tobytes())
        num_distinct += len(others)
    fences = np.ascontiguousarray(pairs[::_STRIDE, 0])
    return Subset(kind, pairs, fences, digest.hexdigest(), was_sorted, len(pairs) - num_distinct)


def _in_order(part: Pairs) -> NDArray[np.bool_]:
    """Return a mask: row i + 1 is not below row i."""
    before, after = part[:-1], part[1:]
    in_order: NDArray[np.bool_] = before[:, 0] < after[:, 0]
    in_order |= (before[:, 0] == after[:, 0]) & (before[:, 1] <= after[:, 1])
    return in_order


def _overlapping(pairs: Pairs) -> Iterator[Pairs]:
    """Yield parts of the list, each beginning with the last row of the previous part."""
    for start in range(0, len(pairs) - 1, ROWS):
        yield pairs[start : start + ROWS + 1]


def hash_key(key: str) -> bytes:
    """Return the 128 bits under which a list names a key."""
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def pairs_of(data: bytes) -> Pairs:
    """Convert 128-bit entries, most significant byte first, to rows of two numbers."""
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)
