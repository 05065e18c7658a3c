"""Source of images inside Parquet files: a column of bytes, or of structs of bytes and path.

The plan assigns slices of row groups to shards. A task reads the row groups of its slices in small
batches, so no table is ever held in memory.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shards.errors import UserError
from shards.pack.entry_plan import ImageEntry, read_entry, safe_stem
from shards.pack.fetch import FetchError, ImageFetcher
from shards.pack.image_entries import LabelMode
from shards.pack.pack_plan import (
    PackConfig,
    PlannedRows,
    SamplesRead,
    ShardTask,
    SkippedSample,
    shard_bounds,
    shuffled,
)
from shards.pack.sources.image_columns import ImageColumns, choose_columns, class_label, holds_bytes
from shards.pack.sources.parquet_files import TableFile, open_parquet, refuse_damage
from shards.pack.table_entries import (
    TableColumns,
    plain_value,
    table_labels,
)
from shards.records import Sample
from shards.redaction import redact
from shards.samples.subset import Subset
from shards.stores.range_reader import RangeReader
from shards.tars.headers import BLOCK

# Slices of a shard, and so the places that its samples come from.
_SLICES_PER_SHARD: Final = 64
_BATCH: Final = 64
# Headers of the members of a sample.
_HEADER_BYTES: Final = 4 * BLOCK


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTable:
    """Rows of Parquet files that hold their images.

    `groups` (N, 4) int64 are file, row group, number of its rows and its bytes. `labels` (rows,)
    int64 are the class numbers, negative without a label.
    """

    name: str
    files: tuple[TableFile, ...]
    columns: ImageColumns
    groups: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """See `PackSource.digest`."""
        files = [(redact(file.place), file.version) for file in self.files]
        has_labels = self.labels is not None
        text = repr((files, asdict(self.columns), self.class_names, has_labels))
        return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

    @property
    def unit(self) -> Literal["images", "bytes"]:
        return "images"

    @property
    def subset(self) -> None:
        """See `PackSource.subset`. A table has none."""

    def plan(self, config: PackConfig) -> "ImageTablePlan":
        """Assign slices of row groups to shards."""
        min_weight = -(-config.max_bytes // config.samples_per_shard)
        slices, weights = [], []
        firsts = [0, *accumulate(self.groups[:, 2].tolist())]
        for (file, group, num_rows, num_bytes), first in zip(
            self.groups.tolist(), firsts, strict=False
        ):
            weight = max(min_weight, num_bytes // max(num_rows, 1) + _HEADER_BYTES)
            step = max(1, config.max_bytes // (_SLICES_PER_SHARD * weight))
            for start in range(0, num_rows, step):
                stop = min(start + step, num_rows)
                slices.append((file, group, start, stop, first))
                weights.append((stop - start) * weight)
        order = shuffled(len(slices), config.seed)
        rows = np.array(slices, np.int64).reshape(-1, 5)[order]
        sizes = np.array(weights, np.int64)[order]
        bounds = shard_bounds(sizes, max(1, len(order)), config.max_bytes)
        return ImageTablePlan(self, rows, bounds, config.seed)


class ImageTablePlan(PlannedRows):
    """Plan in which shard n holds the slices of its rows.

    A slice is (file, row group, first row, end, row of the table at which the group begins).
    """

    def __init__(
        self,
        table: ImageTable,
        slices: NDArray[np.int64],
        bounds: NDArray[np.int64],
        seed: int | None,
    ) -> None:
        super().__init__(slices, bounds, int(table.groups[:, 3].sum()))
        self._table, self._seed = table, seed

    def units(self, number: int) -> int:
        """See `PackPlan.units`."""
        rows = self._rows(number)
        return int((rows[:, 3] - rows[:, 2]).sum())

    def task(self, number: int, irregular: frozenset[int]) -> ShardTask:  # noqa: ARG002
        """See `PackPlan.task`."""
        table = self._table
        parts: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for file, group, start, stop, first in self._rows(number).tolist():
            parts.setdefault((file, group, first), []).append((start, stop))
        groups = []
        for (file, group, first), slices in parts.items():
            rows = np.concatenate([np.arange(start, stop) for start, stop in sorted(slices)])
            labels = None if table.labels is None else table.labels[first + rows]
            groups.append(_GroupRows(table.files[file], group, first, rows, labels))
        return ImageTableTask(number, tuple(groups), table.columns, self._seed)


@dataclass(frozen=True, slots=True)
class _GroupRows:
    """Some rows of a row group, which begins at row `first` of the table, and their labels."""

    file: TableFile
    group: int
    first: int
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class ImageTableTask:
    """Rows of one shard. With a seed they are mixed, and all are held in memory."""

    number: int
    groups: tuple[_GroupRows, ...]
    columns: ImageColumns
    seed: int | None
    variant: str = ""

    def read(self, fetcher: ImageFetcher, subset: Subset | None) -> Iterator[SamplesRead]:
        """See `ShardTask.read`."""
        assert subset is None, "a subset list chooses from shards"
        held: list[Sample] = []
        for group in self.groups:
            for found in self._read_group(fetcher, group):
                held += found.samples if self.seed is not None else ()
                samples = found.samples if self.seed is None else ()
                yield SamplesRead(found.units, samples, found.skipped)
        if held:
            order = shuffled(len(held), self.seed, self.number)
            yield SamplesRead(0, samples=[held[number] for number in order])

    def _read_group(self, fetcher: ImageFetcher, group: _GroupRows) -> Iterator[SamplesRead]:
        wanted = {int(row): at for at, row in enumerate(group.rows)}
        row, reason = 0, "unreadable"
        try:
            with open_parquet(group.file, fetcher.reader) as parquet:
                for batch in parquet.iter_batches(
                    _BATCH, row_groups=[group.group], columns=self.columns.read
                ):
                    for at in range(batch.num_rows):
                        number = wanted.pop(row, None)
                        if number is not None:
                            values = {name: batch[name][at].as_py() for name in self.columns.read}
                            label = None if group.labels is None else int(group.labels[number])
                            entry = self._entry(group, row, values, label)
                            yield read_entry(fetcher, (group.first + row, entry))
                        row += 1
        except FetchError as error:
            reason = error.reason
        except (pa.ArrowException, OSError):
            pass
        if wanted:
            names = [f"{group.file.name} row {group.first + left}" for left in wanted]
            yield SamplesRead(len(names), skipped=[SkippedSample(name, reason) for name in names])

    def _entry(
        self, group: _GroupRows, row: int, values: Mapping[str, Any], label: int | None
    ) -> ImageEntry:
        columns, number = self.columns, group.first + row
        data, path = values[columns.image], ""
        if isinstance(data, Mapping):
            path, data = str(data.get("path") or ""), data.get("bytes")
        fields: dict[str, bytes] = {}
        others = {name: values[name] for name in columns.others}
        if others:
            fields["json"] = json.dumps(plain_value(others), ensure_ascii=False).encode()
        if columns.caption and values[columns.caption] is not None:
            fields["txt"] = str(values[columns.caption]).encode("utf-8", "surrogatepass")
        key = values[columns.key] if columns.key else None
        return ImageEntry(
            f"{group.file.name} row {number}",
            "",
            partial(_bytes, data),
            "",
            None if label is None or label < 0 else label,
            key=f"{number:08d}{safe_stem(path)}" if key is None else str(key),
            fields=fields,
        )


def open_image_table(
    files: Sequence[TableFile], columns: TableColumns, image: str, labels: LabelMode
) -> ImageTable:
    """Return the rows of Parquet files, of which only labels and row groups are read."""
    groups: list[tuple[int, int, int, int]] = []
    tables: list[pa.Table] = []
    shared: tuple[ImageColumns, tuple[str, ...], pa.DataType | None] | None = None
    for number, file in enumerate(files):
        with refuse_damage(file), open_parquet(file, RangeReader()) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            chosen = choose_columns(schema, columns, image, file.name)
            if labels != "none" and chosen.label:
                tables.append(_label_table(parquet, chosen.label))
            kind = tables[-1].schema[0].type if tables else None
            mine = chosen, class_label(schema, chosen.label), kind
            shared = shared or mine
            if mine != shared or not holds_bytes(schema.field(image).type):
                raise UserError(
                    f"{files[0].name} and {file.name} have different columns or classes; they must "
                    "have the same: pack each by itself, such as "
                    f"`streamssl shards pack {shlex.quote(file.name)} OUT`"
                )
            for group in range(metadata.num_row_groups):
                part = metadata.row_group(group)
                groups.append((number, group, part.num_rows, part.total_byte_size))
    assert shared is not None, "at least one file is given"
    chosen, class_names, _ = shared
    table = pa.concat_tables(tables) if tables else pa.table({})
    found, names = table_labels(table, files[0].name, labels)
    origin = f"images from column {image}"
    if found is not None:
        origin += f", labels from column {chosen.label}"
    return ImageTable(
        name=files[0].name if len(files) == 1 else f"{len(files)} Parquet files",
        files=tuple(files),
        columns=chosen,
        groups=np.array(groups, np.int64).reshape(-1, 4),
        labels=None if found is None else np.asarray(found, np.int64),
        class_names=names or (class_names if found is not None else ()),
        notes=(origin,),
    )


def _label_table(parquet: pq.ParquetFile, column: str) -> pa.Table:
    labels = parquet.read(columns=[column])[column]
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    return pa.table({"label": labels})


def _bytes(data: bytes | None, _: ImageFetcher) -> bytes:
    if data is None:
        raise FetchError("no_image")
    return data
