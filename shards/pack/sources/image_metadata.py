"""Metadata of a folder of images: `metadata.jsonl`, `.csv` or `.parquet`, one row for each image.

The layout is that of the imagefolder sets of Hugging Face: column `file_name`, or columns that end
in `_file_name`, hold paths relative to the file; the other columns describe the image.
"""

import csv
import io
import json
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.pack.table_entries import plain_value
from shards.redaction import short
from shards.samples.labels import USUAL_NAMES

METADATA_NAMES: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILE_NAME: Final = "file_name"
_CAPTIONS: Final = ("caption", "text")

Row = Mapping[str, Any]


@dataclass(slots=True)
class ImageMetadata:
    """Rows by image, columns by purpose, and the number of rows without an image."""

    rows: dict[str, Row] = field(default_factory=dict)
    label_column: str = ""
    caption_column: str = ""
    num_missing: int = 0
    example: str = ""


def read_image_metadata(
    files: Mapping[str, bytes], images: Collection[str], label: str = "", caption: str = ""
) -> ImageMetadata:
    """Return the metadata of images from files, by name -> bytes.

    `label` and `caption` name columns; usual names are taken without. Raises UserError for a file
    that cannot be parsed, and for a column that no file has.
    """
    known = set(images)
    found, columns = ImageMetadata(), dict[str, None]()
    for name, data in files.items():
        folder = posixpath.dirname(name)
        rows = list(_parse(name, data))
        columns |= dict.fromkeys(column for row in rows for column in row)
        for row in rows:
            for path in _paths(row):
                image = posixpath.normpath(posixpath.join(folder, path.replace("\\", "/")))
                if image not in known:
                    found.num_missing += 1
                    found.example = found.example or image
                elif image not in found.rows:
                    found.rows[image] = row
    where = ", ".join(files)
    found.label_column = _choose(columns, label, USUAL_NAMES, "label", where)
    found.caption_column = _choose(columns, caption, _CAPTIONS, "caption", where)
    return found


def metadata_json(row: Row) -> bytes:
    """Return all columns of a row as the JSON member of its sample."""
    return json.dumps(plain_value(row), ensure_ascii=False, default=str).encode(
        "utf-8", "surrogatepass"
    )


def _parse(name: str, data: bytes) -> Iterator[dict[str, Any]]:
    try:
        rows = list(_rows(name, data))
    except (ValueError, csv.Error, pa.ArrowException, OSError) as error:
        raise UserError(
            f"{name} cannot be read ({short(error)}); each line must be a row with a "
            f"{_FILE_NAME}: correct it, or rename it to pack without it"
        ) from error
    if rows and not any(_paths(row) for row in rows):
        raise UserError(
            f"{name} has no column {_FILE_NAME}, only {', '.join(map(str, rows[0]))}; it must name "
            f"the image of each row: rename the column, or rename the file to pack without it"
        )
    return iter(rows)


def _rows(name: str, data: bytes) -> Iterator[dict[str, Any]]:
    if name.endswith(".parquet"):
        yield from pq.read_table(io.BytesIO(data)).to_pylist()
        return
    text = data.decode("utf-8-sig")
    if name.endswith(".csv"):
        for row in csv.DictReader(io.StringIO(text, newline="")):
            yield {column: value for column, value in row.items() if column is not None}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            yield row


def _paths(row: Row) -> list[str]:
    names = [n for n in row if n == _FILE_NAME or str(n).endswith(f"_{_FILE_NAME}")]
    return [row[name] for name in names if isinstance(row[name], str) and row[name]]


def _choose(
    columns: Collection[str], named: str, usual: Sequence[str], purpose: str, where: str
) -> str:
    if named:
        if named not in columns:
            raise UserError(
                f"columns.{purpose}={named!r}, but {where} has no such column; it has "
                f"{', '.join(columns)}: name one of these"
            )
        return named
    found = (column for word in usual for column in columns if column.lower() == word)
    return next(found, "")
