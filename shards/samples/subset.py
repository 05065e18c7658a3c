"""Subset lists: which samples are the data, chosen on the fly from shards that stay as they are.

A list holds uids, 32 hex digits as in the `uid` of a sample's JSON member, or keys. A key is what a
sample is called in its tar: up to the first dot of the file name. If any entry of the list has a
slash, entries are keys with their folders; otherwise they are matched with the file name alone.

Either way an entry is 128 bits, a uid itself or the blake2b of a key, and the list is one sorted
array of pairs of 64 bits: 16 bytes an entry, searched by halves. That is the layout of DataComp's
own lists, so those are mapped into memory as they lie on the disk.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.records import Sample
from shards.samples.metadata import MetadataError, read_metadata

# "key" is a key with its folders, "name" one without.
Kind = Literal["uid", "key", "name"]
Pairs = NDArray[np.uint64]

_UID = re.compile(r"[0-9a-fA-F]{32}")
_UID_FIELD = re.compile(rb'(?<!\\)"uid"\s*:\s*"([0-9a-fA-F]{32})"')
# One entry of this many is kept apart, so that a search touches a page of the list or two.
_STRIDE: Final = 32
# How much of a list is looked at at once.
_ROWS: Final = 1 << 18
_NONE: Final = bytes(16)


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """A list of samples. `pairs` (N, 2) is sorted; `fences` has the first number of every 32nd.

    `digest` names its content, whatever file it came from and in what order. `was_sorted` and
    `num_duplicates` say what the file was like.
    """

    kind: Kind
    pairs: Pairs
    fences: Pairs
    digest: str
    was_sorted: bool
    num_duplicates: int

    def __len__(self) -> int:
        """How many samples it names."""
        return len(self.pairs) - self.num_duplicates

    @property
    def num_bytes(self) -> int:
        return self.pairs.nbytes + self.fences.nbytes

    @property
    def summary(self) -> str:
        """'1,000 uids (not sorted in the file; 3 duplicates)', to be shown once."""
        notes = [] if self.was_sorted else ["not sorted in the file"]
        notes += [f"{self.num_duplicates:,} duplicates"] if self.num_duplicates else []
        named = "uids" if self.kind == "uid" else "keys"
        return f"{len(self):,} {named}" + (f" ({'; '.join(notes)})" if notes else "")

    def selects(self, sample: Sample) -> bool:
        """Whether the list names this sample."""
        return bool(self.select([sample])[0])

    def select(self, samples: Sequence[Sample]) -> NDArray[np.bool_]:
        """Which of the samples the list names. One without a uid is in no list of uids."""
        found = [self.identify(sample) for sample in samples]
        wanted = self._holds(_pairs_of(b"".join(bits or _NONE for bits in found)))
        wanted &= np.array([bits is not None for bits in found], dtype=np.bool_)
        return wanted

    def identify(self, sample: Sample) -> bytes | None:
        """The 128 bits under which the list would name a sample; None if it has no uid."""
        if self.kind != "uid":
            key = sample.key.removeprefix("./")
            return _hash(key if self.kind == "key" else key.rpartition("/")[2])
        uid = _plain_uid(sample.fields.get("json", b""))
        if uid is None:
            try:
                uid = read_metadata(sample).get("uid")
            except MetadataError:
                return None
        return bytes.fromhex(uid) if isinstance(uid, str) and _UID.fullmatch(uid) else None

    def _holds(self, wanted: Pairs) -> NDArray[np.bool_]:
        """Which rows of (n, 2) are among the pairs: all of them are searched for at once."""
        high, low = wanted[:, 0], wanted[:, 1]
        last = len(self.pairs) - 1
        place = np.maximum(np.searchsorted(self.fences, high, "left") - 1, 0) * _STRIDE
        stop = np.searchsorted(self.fences, high, "right") * _STRIDE
        # Now `place` is at most where the pair must be. It takes steps of half the length as long
        # as what it steps over is smaller; where many pairs begin alike, there are more of them.
        step = 1 << int((stop - place).max(initial=0)).bit_length()
        while step := step // 2:
            there = self.pairs[np.minimum(place + (step - 1), last)]
            below = (there[:, 0] < high) | ((there[:, 0] == high) & (there[:, 1] < low))
            place += step * below
        found = self.pairs[np.minimum(place, last)]
        held: NDArray[np.bool_] = (found == wanted).all(axis=1)
        return held


def _plain_uid(data: bytes) -> str | None:
    """The uid of a JSON object where it can be told without parsing, in a tenth of the time.

    In valid JSON a quote within a string is escaped, so this finds a name and its value; it is the
    object's own if no other brace was opened before. What comes behind may be broken.
    """
    found = _UID_FIELD.search(data) if data.startswith(b"{") else None
    if found is None or data.count(b"{", 0, found.start()) != 1 or data.count(b'"uid"') != 1:
        return None
    return found[1].decode()


def load_subset(path: str) -> Subset:
    """The list in a .parquet (column `uid` or `key`, or 'file.parquet::column'), .txt or .npy file.

    A .txt file has an entry a line. A .npy file has an array of strings, or of uids as pairs of
    64 bits, structured or (N, 2). Raises ConfigError.
    """
    file, _, column = path.partition("::")
    readers: dict[str, Callable[[Path, str], tuple[Kind, Pairs]]] = {
        ".parquet": _read_parquet,
        ".txt": _read_text,
        ".npy": _read_numpy,
    }
    read = readers.get(Path(file).suffix.lower())
    if read is None or (column and read is not _read_parquet):
        raise ConfigError(
            f"subset={path!r}; it must be a .parquet, .txt or .npy file, and only Parquet has "
            "columns: 'list.parquet::column'"
        )
    try:
        kind, pairs = read(Path(file).expanduser(), column)
    except (OSError, ValueError, EOFError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"subset={path!r} cannot be read ({reason}); give a .parquet, .txt or .npy file "
            "that is there and whole"
        ) from error
    if not len(pairs):
        raise ConfigError(
            f"subset={path!r} names no sample; it must hold at least one uid or key: leave it out "
            "to take all samples"
        )
    return build_subset(kind, pairs)


def build_subset(kind: Kind, pairs: Pairs) -> Subset:
    """The subset of these (N, 2) pairs, which are copied only if they are not sorted."""
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
    """For every row but the first, whether it may follow the one before it."""
    before, after = part[:-1], part[1:]
    in_order: NDArray[np.bool_] = before[:, 0] < after[:, 0]
    in_order |= (before[:, 0] == after[:, 0]) & (before[:, 1] <= after[:, 1])
    return in_order


def _overlapping(pairs: Pairs) -> Iterator[Pairs]:
    """Parts of the list, each beginning with the last row of the one before."""
    for start in range(0, len(pairs) - 1, _ROWS):
        yield pairs[start : start + _ROWS + 1]


def _read_numpy(path: Path, _: str) -> tuple[Kind, Pairs]:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    fields = [found.dtype[name] for name in found.dtype.names or ()]
    if fields == [np.dtype("u8")] * 2 and found.dtype.itemsize == 16 and found.ndim == 1:
        # Not as a memmap: that is a class of its own, which would travel by copies.
        return "uid", np.asarray(found).view("u8").reshape(-1, 2)
    if found.dtype == np.dtype("u8") and found.ndim == 2 and found.shape[1] == 2:
        return "uid", np.ascontiguousarray(found)
    if found.dtype.kind in "US" and found.ndim == 1:
        return _from_strings(map(_text, found), None)
    raise ValueError(
        f"it holds {found.dtype} of shape {found.shape}, but a list is u8,u8 of shape (N,), "
        "uint64 of shape (N, 2), or strings"
    )


def _text(entry: Any) -> str:
    return entry.decode("utf-8", "surrogateescape") if isinstance(entry, bytes) else str(entry)


def _read_text(path: Path, _: str) -> tuple[Kind, Pairs]:
    # As names in tars are read: whatever is no UTF-8 is kept.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        return _from_strings((text for line in lines if (text := line.strip())), None)


def _read_parquet(path: Path, column: str) -> tuple[Kind, Pairs]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        wanted = (column,) if column else ("uid", "key")
        name = next((name for name in wanted if name in names), None)
        if name is None:
            raise ValueError(
                f"it has the columns {', '.join(names)}, none is {' or '.join(wanted)}: name one "
                "as 'list.parquet::column'"
            )
        kinds: dict[str, Kind] = {"uid": "uid", "key": "key"}
        return _from_strings(_parquet_strings(file, name), kinds.get(name))


def _parquet_strings(file: Any, name: str) -> Iterator[str]:
    for batch in file.iter_batches(columns=[name]):
        for entry in batch.column(0).to_pylist():
            if not isinstance(entry, str):
                raise ValueError(
                    f"its column {name} holds {entry!r}, but uids and keys are strings"
                )
            yield entry


def _from_strings(entries: Iterator[str], stated: Kind | None) -> tuple[Kind, Pairs]:
    """The list that strings make: of uids if all look like one, of keys if none does."""
    parts: list[Pairs] = [np.zeros((0, 2), np.uint64)]
    kind, has_folders = stated, False
    while texts := list(islice(entries, _ROWS)):
        if kind is None:
            kind = "uid" if _UID.fullmatch(texts[0]) else "key"
        if stated != "key":
            _check_alike(texts, kind)
        if kind == "uid":
            parts.append(_pairs_of(bytes.fromhex("".join(texts))))
        else:
            keys = [_key(text) for text in texts]
            has_folders |= any("/" in key for key in keys)
            parts.append(_pairs_of(b"".join(map(_hash, keys))))
    if kind == "key" and not has_folders:
        kind = "name"
    return kind or "key", np.concatenate(parts)


def _check_alike(texts: Sequence[str], kind: Kind) -> None:
    wanted = kind == "uid"
    odd = next((text for text in texts if (_UID.fullmatch(text) is not None) != wanted), None)
    if odd is not None:
        raise ValueError(
            f"it holds {odd[:80]!r} in a list of {kind}s, but entries are either all uids, which "
            "are 32 hex digits, or all keys"
        )


def _key(text: str) -> str:
    """As the name of a tar's member becomes a key."""
    if "\0" in text:
        raise ValueError(f"it holds {text[:20]!r}, which is no text")
    folder, slash, name = text.removeprefix("./").rpartition("/")
    return folder + slash + name.partition(".")[0]


def _hash(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _pairs_of(data: bytes) -> Pairs:
    """128 bits each, the most significant first, as rows of two numbers."""
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)
