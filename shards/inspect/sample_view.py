"""Tiles of a contact sheet: samples drawn by an order, or the crops of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.images.decode import JPEG_REDUCTIONS, can_reduce, decode
from shards.images.image_header import ImageError, ImageHeader
from shards.inspect.contact_sheet import SheetTile
from shards.records import Chunk, CropBatch, Reject, Sample, Turn
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig
from shards.samples.metadata import MetadataError, read_metadata
from shards.samples.sample_check import SampleCheck
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import build_order
from shards.stream.manifest import Manifest
from shards.stream.order import Order
from shards.stream.stream_config import StreamConfig
from shards.tars.chunk_reader import read_chunk

MAX_TILES = 1024
THUMBNAIL = 192
# Samples of a sheet come from at least this many places of the data, if it has so many.
_NUM_PLACES = 8
_SMALLEST_CHUNK, _LARGEST_CHUNK = 1 << 14, 1 << 24
_CAPTIONS = ("caption", "txt", "text", "description", "title")
_LABELS = ("label", "cls", "class", "class_name")


def draw_samples(
    manifest: Manifest,
    reader: RangeReader,
    admission: AdmissionConfig,
    *,
    num: int,
    seed: int = 0,
    num_threads: int = 4,
) -> Iterator[SheetTile]:
    """Yield at most `num` samples of the first epoch of an order as tiles, rejects included.

    The order is that of a run with small chunks, so a sheet costs a few small ranged reads,
    anywhere in the data. Raises ConfigError, ShardUnreadable.
    """
    if not 1 <= num <= MAX_TILES:
        raise ConfigError(f"num={num}; a sheet shows from 1 to {MAX_TILES} samples: change --num")
    order = build_order(manifest, _small_chunks(manifest, num), seed)
    check = SampleCheck(admission)
    shown = 0
    for block in range(order.blocks_per_epoch):
        for item in _read_block(manifest, reader, order, block, num_threads):
            if shown == num:
                return
            shown += 1
            yield sample_tile(item, check)


def _small_chunks(manifest: Manifest, num: int) -> StreamConfig:
    """Return settings with blocks of `_NUM_PLACES` chunks that hold about 1.5 `num` samples."""
    wanted = 1.5 * num * manifest.sample_bytes / _NUM_PLACES
    chunk_bytes = 1 << round(np.log2(min(max(wanted, _SMALLEST_CHUNK), _LARGEST_CHUNK)))
    return StreamConfig(batch_size=num, chunk_bytes=chunk_bytes, chunks_per_block=_NUM_PLACES)


def _read_block(
    manifest: Manifest, reader: RangeReader, order: Order, block: int, num_threads: int
) -> Iterator[Sample | Reject]:
    """Yield the samples of a block in the sequence of the order."""

    def read(turn: Turn) -> Sequence[Sample | Reject]:
        return read_chunk(reader, manifest.shards[turn.chunk.shard], turn.chunk).found

    with ThreadPoolExecutor(num_threads) as pool:
        entries = [item for found in pool.map(read, order.block(block)) for item in found]
    for place in order.mix(block, len(entries)).tolist():
        yield entries[place]


def sample_tile(item: Sample | Reject, check: SampleCheck) -> SheetTile:
    """Return a tile with thumbnail, size, label and caption; or with the reason of the reject.

    A rejected image is never decoded, so a decompression bomb does no harm.
    """
    image = item if isinstance(item, Reject) else check(item)
    notes = describe(item) if isinstance(item, Sample) else ()
    if isinstance(image, Reject):
        lines = dict.fromkeys((image.detail, *notes))
        return SheetTile(item.key, lines=tuple(lines), reason=image.reason)
    size = f"{image.width} x {image.height} {image.format}, {len(image.data):,} bytes"
    try:
        pixels = thumbnail(image)
    except ImageError as error:
        return SheetTile(item.key, lines=(error.detail, size, *notes), reason=error.reason)
    return SheetTile(item.key, ((pixels,),), (size, *notes))


def thumbnail(image: ImageHeader, side: int = THUMBNAIL) -> NDArray[np.uint8]:
    """Return the whole image within `side` x `side` pixels. Raises ImageError."""
    longest = max(image.height, image.width)
    factors = JPEG_REDUCTIONS if can_reduce(image) else (1,)
    reduction = max(factor for factor in factors if factor == 1 or longest >= factor * side)
    pixels = decode(image, reduction)
    height, width = pixels.shape[:2]
    share = side / max(height, width)
    if share >= 1:
        return pixels
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def describe(sample: Sample) -> tuple[str, ...]:
    """Return label and caption, from members or JSON fields, and the names of the members."""
    fields = _metadata(sample)
    lines = []
    for title, names in (("label", _LABELS), ("caption", _CAPTIONS)):
        values = [members.get(name) for members in (sample.fields, fields) for name in names]
        lines += [f"{title}: {text}" for text in map(_text, values) if text][:1]
    return (*lines, f"members: {', '.join(sample.fields)}")


def _text(value: object) -> str:
    """Return a text or a number as text; empty for other types."""
    if isinstance(value, bytes):
        value = value[:1000].decode("utf-8", "replace")
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _metadata(sample: Sample) -> Mapping[str, object]:
    """Return the fields of the JSON member; none if it is invalid."""
    try:
        return read_metadata(sample)
    except MetadataError:
        return {}


def find_sample(manifest: Manifest, reader: RangeReader, shard: int, offset: int) -> Sample | None:
    """Return the sample whose first header is at `offset`; None for shards that are read whole.

    Raises ShardUnreadable.
    """
    if manifest.shards[shard].whole:
        return None
    found = read_chunk(reader, manifest.shards[shard], Chunk(shard, offset, offset + 1)).found
    return next((s for s in found if isinstance(s, Sample) and s.offset == offset), None)


def batch_tiles(
    batch: CropBatch, manifest: Manifest, reader: RangeReader, num: int, num_threads: int = 4
) -> Iterator[SheetTile]:
    """Yield the crops of the first `num` samples of a batch as tiles, a row per view group.

    Keys and captions are read again, except for shards that are read whole.
    """
    rows = range(min(num, len(batch)))

    def find(row: int) -> Sample | None:
        return find_sample(manifest, reader, *batch.ids[row].tolist())

    with ThreadPoolExecutor(num_threads) as pool:
        for row, sample in zip(rows, pool.map(find, rows), strict=True):
            shard, offset = batch.ids[row].tolist()
            where = f"{redact(manifest.shards[shard].uri).rpartition('/')[2]}, byte {offset}"
            views = tuple(tuple(group[row]) for group in batch.crops)
            lines = (f"{where}, epoch {batch.epochs[row]}", *(describe(sample) if sample else ()))
            yield SheetTile(sample.key if sample else where, views, lines)
