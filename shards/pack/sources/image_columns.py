"""Columns of a Parquet file that hold images, and what describes them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from shards.errors import ConfigError
from shards.pack.table_entries import TableColumns, has_addresses, purposes
from shards.samples.image_member import IMAGE_EXTENSIONS

# Names of columns of images; those of the second kind may hold other bytes, too.
_IMAGES: Final = ("image", "img", *IMAGE_EXTENSIONS, "picture", "photo", "pixel_values")
_BYTES: Final = ("bytes", "image_bytes", "img_bytes", "image_data", "content", "data", "binary")


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """Columns by purpose; `others` go to the JSON member."""

    image: str
    label: str = ""
    key: str = ""
    caption: str = ""
    others: tuple[str, ...] = ()

    @property
    def read(self) -> list[str]:
        """Names of the columns that samples are made of."""
        return [name for name in {self.image, self.key, self.caption, *self.others} if name]


def image_column(schema: pa.Schema, columns: TableColumns, file: str) -> str | None:
    """Return the column that holds the images; None if a column has their addresses.

    Raises ConfigError if there is neither, or if the named column is of another type.
    """
    found = [field.name for field in schema if holds_bytes(field.type)]
    kinds = ", ".join(f"{field.name} ({_kind(field.type)})" for field in schema)
    if columns.image:
        if columns.image not in found:
            raise ConfigError(
                f"columns.image={columns.image!r}, but {file} has {kinds}; a column of images is "
                "of type binary, or a struct with the field bytes: name such a one"
            )
        return columns.image
    if not columns.address:
        for name in _of_usual(found, _IMAGES):
            return name
    if has_addresses(schema, columns):
        return None
    if not columns.address:
        for name in (*_of_usual(found, _BYTES), *(found if len(found) == 1 else ())):
            return name
    wanted = "" if not columns.address else f" and columns.address={columns.address!r} is no text"
    raise ConfigError(
        f"{file} has the columns {kinds}{wanted}; one must hold images (binary, or a struct with "
        "the field bytes), or URLs or paths (url, path or uri): name it with --columns.image or "
        "--columns.address"
    )


def choose_columns(schema: pa.Schema, columns: TableColumns, image: str, file: str) -> ImageColumns:
    """Return the columns of a table; none if it lacks the column of images."""
    names = schema.names
    if image not in names:
        return ImageColumns("")
    found = purposes([name for name in names if name != image], columns, file)
    others = (found["key"],) if "key" in found else ()
    if columns.others == "json":
        left_out = (image, found.get("label"), found.get("caption"))
        others = tuple(name for name in names if name not in left_out)
    return ImageColumns(image, **found, others=others)


def class_label(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Return the class names that a Hugging Face set keeps in its schema."""
    try:
        saved = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, saved["info"]["features"][column]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def holds_bytes(kind: pa.DataType) -> bool:
    """Return True for binary values, and for structs with such a field `bytes`."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _kind(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _of_usual(names: Sequence[str], usual: Sequence[str]) -> Iterator[str]:
    return (name for word in usual for name in names if name.lower() == word)
