"""Parquet files of this machine or of a store, opened to read parts of them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.pack.fetch import FetchError, file_version
from shards.pack.image_entries import is_far
from shards.pack.store_lookup import StoreLookup
from shards.records import ShardInfo
from shards.redaction import redact, short
from shards.stores.range_reader import RangeReader


@dataclass(frozen=True, slots=True)
class TableFile:
    """Parquet file: its path or address, its version, and its entry in a store's listing."""

    place: str
    version: str
    info: ShardInfo | None = None

    @property
    def name(self) -> str:
        """Name to show."""
        return redact(self.place)


def find_table_file(place: str) -> TableFile:
    """Return a local Parquet file, or one of a store. Raises UserError if there is none."""
    reason = "it does not exist"
    if is_far(place):
        info = StoreLookup().look_up(place)
        if info is not None:
            return TableFile(place, info.version, info)
    else:
        path = Path(place).expanduser()
        try:
            if not path.is_dir():
                return TableFile(str(path), file_version(path.stat()))
            reason = "it is a folder"
        except OSError as error:
            reason = str(error.strerror)
    raise UserError(
        f"{redact(place)} cannot be read ({reason}); a Parquet file is needed; check the path"
    )


def read_schema(file: TableFile) -> pa.Schema:
    """Return the columns of a Parquet file. Raises UserError if it is none."""
    with refuse_damage(file), open_parquet(file, RangeReader()) as parquet:
        return parquet.schema_arrow


@contextmanager
def refuse_damage(file: TableFile) -> Iterator[None]:
    """Raise UserError for a file that is not Parquet."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file.name} cannot be read as Parquet ({short(error)}); a file with a column of "
            "images, URLs or paths is needed; check the path, or write it again"
        ) from error


@contextmanager
def open_parquet(file: TableFile, reader: RangeReader) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raises FetchError if a local file has changed since it was listed."""
    if file.info is not None:
        with pq.ParquetFile(pa.PythonFile(_RangeFile(file.info, reader), mode="r")) as parquet:
            yield parquet
        return
    with open(file.place, "rb") as opened:
        if file_version(Path(file.place).stat()) != file.version:
            raise FetchError("changed")
        with pq.ParquetFile(opened) as parquet:
            yield parquet


class _RangeFile(io.RawIOBase):
    """File of a store that is read in ranges."""

    def __init__(self, info: ShardInfo, reader: RangeReader) -> None:
        self._info, self._reader, self._at = info, reader, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.num_bytes}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._info.num_bytes
        stop = end if size is None or size < 0 else min(end, self._at + size)
        data = self._reader.read(self._info, self._at, stop)
        self._at += len(data)
        return data
