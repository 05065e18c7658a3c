"""Source of images named by rows of Parquet files, with labels, captions and other columns."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import ConfigError, UserError
from shards.pack.entry_plan import UNKNOWN_BYTES, ImageEntry, ImagesSource
from shards.pack.image_entries import LabelMode, entry_at, is_far, parent_of, place_of
from shards.pack.store_lookup import StoreLookup
from shards.redaction import redact, short

_ADDRESSES: Final = ("url", "path", "uri")
_LABELS: Final = ("label", "class", "cls")
_KEYS: Final = ("key", "uid")
_CAPTIONS: Final = ("caption", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """Columns of a Parquet file by purpose. An empty name stands for the usual ones."""

    image: str = ""
    """Column of encoded images: bytes, or a struct of bytes and path; usually image or jpg."""
    address: str = ""
    """Column of URLs or paths; usually url, path or uri."""
    label: str = ""
    """Column of class numbers or names, for .cls; usually label, class or cls."""
    key: str = ""
    """Column of sample keys, also written to .json; usually key or uid."""
    caption: str = ""
    """Column of captions, for .txt; usually caption or text."""
    others: Literal["none", "json"] = "none"
    """json: write all other columns to .json."""


def entries_from_parquet(
    files: Sequence[str], columns: TableColumns | None = None, labels: LabelMode = "auto"
) -> ImagesSource:
    """Return the images of the rows; paths are relative to the folder of the first file.

    `labels` "none" ignores the label column. Raises UserError when a file cannot be read, or has
    no column of addresses.
    """
    columns = columns or TableColumns()
    # A pack that an older version began knows neither images in columns, nor required labels.
    named = {name: value for name, value in asdict(columns).items() if name != "image"}
    settings = repr((named, "none" if labels == "none" else "auto"))
    digest = blake2b(settings.encode(), digest_size=16)
    tables: list[pa.Table] = []
    for file in files:
        data = _read(file)
        digest.update(blake2b(data).digest())
        tables.append(_parse(data, file, columns))
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{redact(files[0])} and the {len(files) - 1} files after it have different columns; "
            "they must have the same; pack them one by one"
        ) from error
    numbers, class_names = table_labels(table, redact(files[0]), labels)
    rows = _TableEntries(table, numbers, parent_of(files[0]))
    return ImagesSource(
        name=redact(files[0]) if len(files) == 1 else f"{len(files)} Parquet files",
        entries=rows,
        class_names=class_names,
        sizes=np.full(len(rows), UNKNOWN_BYTES, np.int64),
        content=digest.hexdigest(),
        is_far=rows.is_far,
    )


class _TableEntries(Sequence[ImageEntry]):
    """Entries made on access: the table takes a tenth of the memory of all entries."""

    def __init__(self, table: pa.Table, labels: Sequence[int] | None, parent: str) -> None:
        self._table, self._labels, self._parent = table, labels, parent
        self._extras = [name for name in table.column_names if name.startswith(_JSON)]

    @property
    def is_far(self) -> bool:
        """True if any row is an address."""
        found = pc.any(pc.match_substring(self._table[_ADDRESS], "://")).as_py()
        return is_far(self._parent) or bool(found)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, row: int) -> ImageEntry: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[ImageEntry]: ...
    def __getitem__(self, row: int | slice) -> ImageEntry | Sequence[ImageEntry]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        address = str(self._value(_ADDRESS, row) or "").strip()
        # A row without an address is counted as a bad address when it is read.
        place = place_of(address, self._parent) if address else "://"
        label = None if self._labels is None else int(self._labels[row])
        entry = entry_at(address, place, label)
        key = self._value(_KEY, row)
        return replace(entry, key=None if key is None else str(key), fields=self._fields(row))

    def _fields(self, row: int) -> dict[str, bytes]:
        fields: dict[str, bytes] = {}
        extras = {name.removeprefix(_JSON): self._value(name, row) for name in self._extras}
        if extras:
            fields["json"] = json.dumps(plain_value(extras), ensure_ascii=False).encode()
        caption = self._value(_CAPTION, row)
        if caption is not None:
            fields["txt"] = str(caption).encode("utf-8", "surrogatepass")
        return fields

    def _value(self, column: str, row: int) -> Any:
        return self._table[column][row].as_py() if column in self._table.column_names else None


# Names of the columns in the combined table; "json:" is a prefix of the original name.
_ADDRESS, _LABEL, _KEY, _CAPTION, _JSON = "address", "label", "key", "caption", "json:"


def _read(file: str) -> bytes:
    if is_far(file):
        data, reason = StoreLookup().read(file), "it does not exist"
    else:
        try:
            data, reason = Path(file).expanduser().read_bytes(), ""
        except OSError as error:
            data, reason = None, str(error.strerror)
    if data is None:
        raise UserError(
            f"{redact(file)} cannot be read ({reason}); a Parquet file is needed; check the path"
        )
    return data


def _parse(data: bytes, file: str, columns: TableColumns) -> pa.Table:
    """Return the needed columns under the names of the combined table."""
    try:
        with pq.ParquetFile(io.BytesIO(data)) as parquet:
            names = parquet.schema_arrow.names
            wanted = _wanted(names, columns, redact(file))
            # A column may be needed twice: as the key and in the JSON.
            table = parquet.read(columns=sorted(set(wanted.values())))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{redact(file)} cannot be read as Parquet ({short(error)}); a file with a column of "
            "URLs or paths is needed; check the path, or write it again"
        ) from error
    return pa.table({ours: table[name] for ours, name in wanted.items()})


def _wanted(names: Sequence[str], columns: TableColumns, file: str) -> dict[str, str]:
    """Return for each column of the combined table its name in the file."""
    wanted = purposes(names, columns, file)
    address = choose_column(names, columns.address, _ADDRESSES, _ADDRESS, file)
    if address is None:
        raise ConfigError(
            f"{file} has the columns {', '.join(names)}, none is {', '.join(_ADDRESSES)}; one must "
            "hold URLs or paths: name it with --columns.address"
        )
    wanted = {_ADDRESS: address, **wanted}
    in_json = [wanted[_KEY]] if _KEY in wanted else []
    if columns.others == "json":
        in_json = [name for name in names if name not in (*map(wanted.get, (_LABEL, _CAPTION)),)]
    return wanted | {f"{_JSON}{name}": name for name in in_json}


def purposes(names: Sequence[str], columns: TableColumns, file: str) -> dict[str, str]:
    """Return the columns of labels, keys and captions, by purpose. Raises ConfigError."""
    found = {
        ours: choose_column(names, named, usual, ours, file)
        for ours, named, usual in (
            (_LABEL, columns.label, _LABELS),
            (_KEY, columns.key, _KEYS),
            (_CAPTION, columns.caption, _CAPTIONS),
        )
    }
    return {ours: name for ours, name in found.items() if name is not None}


def choose_column(
    names: Sequence[str], named: str, usual: Sequence[str], purpose: str, file: str
) -> str | None:
    """Return the column of a purpose: the `named` one, else the first of the usual names."""
    if named and named not in names:
        raise ConfigError(
            f"columns.{purpose}={named!r}, but {file} has no such column; it has "
            f"{', '.join(names)}: name one of these"
        )
    found = (name for word in usual for name in names if name.lower() == word)
    return named or next(found, None)


def has_addresses(schema: pa.Schema, columns: TableColumns) -> bool:
    """Return True if a column holds URLs or paths, by its name and its type."""
    wanted = (columns.address.lower(),) if columns.address else _ADDRESSES
    found = [field.type for field in schema if field.name.lower() in wanted]
    plain = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in found]
    return any(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in plain)


def table_labels(
    table: pa.Table, file: str, labels: LabelMode
) -> tuple[Sequence[int] | None, tuple[str, ...]]:
    """Return a class number for each row of column `label`, and the names if labels are names."""
    if labels == "none" or _LABEL not in table.column_names:
        return None, ()
    column = table[_LABEL].combine_chunks()
    if column.null_count == len(column):
        return None, ()
    if column.null_count:
        raise UserError(
            f"{column.null_count} of {len(column)} rows of {file} have no label; all rows have a "
            "label or none has; complete the column, or rename it to pack without labels"
        )
    if pa.types.is_integer(column.type):
        return column.to_numpy(), ()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(
            f"the labels of {file} are of type {column.type}; they must be whole numbers or names; "
            "convert the column, or name another with --columns.label"
        )
    if pc.all(pc.utf8_is_decimal(column)).as_py():
        return pc.cast(column, pa.int64()).to_numpy(), ()
    names = sorted(pc.unique(column).to_pylist())
    return pc.index_in(column, pa.array(names, column.type)).to_numpy(), tuple(names)


def plain_value(value: Any) -> Any:
    """Return `value` with each part that JSON cannot hold converted."""
    if isinstance(value, Mapping):
        return {str(name): plain_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value
