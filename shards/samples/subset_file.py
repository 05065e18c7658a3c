"""Files of subset lists: Parquet, text and NumPy."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from shards.errors import ConfigError
from shards.samples.subset import ROWS, UID, Kind, Pairs, Subset, build_subset, hash_key, pairs_of


def load_subset(path: str) -> Subset:
    """Read a list from a .parquet, .txt or .npy file. Raises ConfigError.

    A Parquet file has a column `uid` or `key`, or is given as 'file.parquet::column'. A text file
    has one entry per line. A NumPy file has an array of strings, or of uids as pairs of 64 bits,
    structured or (N, 2).
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
            "that is complete"
        ) from error
    if not len(pairs):
        raise ConfigError(
            f"subset={path!r} names no sample; it must hold at least one uid or key: leave it out "
            "to take all samples"
        )
    return build_subset(kind, pairs)


def _read_numpy(path: Path, _: str) -> tuple[Kind, Pairs]:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    fields = [found.dtype[name] for name in found.dtype.names or ()]
    if fields == [np.dtype("u8")] * 2 and found.dtype.itemsize == 16 and found.ndim == 1:
        # A plain array: pickling a memmap would copy the whole file.
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
    # Bytes that are not UTF-8 are kept, as in names in tars.
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
    """Build the list from strings: uids if all look like uids, keys if none does."""
    parts: list[Pairs] = [np.zeros((0, 2), np.uint64)]
    kind, has_folders = stated, False
    while texts := list(islice(entries, ROWS)):
        if kind is None:
            kind = "uid" if UID.fullmatch(texts[0]) else "key"
        if stated != "key":
            _check_alike(texts, kind)
        if kind == "uid":
            parts.append(pairs_of(bytes.fromhex("".join(texts))))
        else:
            keys = [_key(text) for text in texts]
            has_folders |= any("/" in key for key in keys)
            parts.append(pairs_of(b"".join(map(hash_key, keys))))
    if kind == "key" and not has_folders:
        kind = "name"
    return kind or "key", np.concatenate(parts)


def _check_alike(texts: Sequence[str], kind: Kind) -> None:
    wanted = kind == "uid"
    odd = next((text for text in texts if (UID.fullmatch(text) is not None) != wanted), None)
    if odd is not None:
        raise ValueError(
            f"it holds {odd[:80]!r} in a list of {kind}s, but entries are either all uids, which "
            "are 32 hex digits, or all keys"
        )


def _key(text: str) -> str:
    """Return the key of an entry, formed like the key of a tar member."""
    if "\0" in text:
        raise ValueError(f"it holds {text[:20]!r}, which is not text; entries are uids or keys")
    folder, slash, name = text.removeprefix("./").rpartition("/")
    return folder + slash + name.partition(".")[0]
