"""Bands of a TIFF: any number of them, of any depth, in any lossless compression.

No decoder here opens more than a few bands. The bands of interleaved pixels are decoded as one grey
image that is wider by the number of bands; a directory that says so is appended to the file. Bands
in planes are decoded one by one.
"""

import io
import struct
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from shards.images.formats.common import TAKE_THREE_BANDS, ImageError
from shards.images.formats.tiff import read_directory

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
_TAGS: Final = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _SAMPLES, _ROWS}
    | {_STRIP_BYTES, _PLANES, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES}
    | {_EXTRA_SAMPLES, _SAMPLE_FORMAT}
)
_MAX_VALUES: Final = 1 << 22  # of a tag: one for each strip or tile
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_IN_PLANES = 2
_NO_PREDICTOR, _DIFFERENCES = 1, 2
# None, LZW, deflate, deflate of old, PackBits, LZMA, Zstandard.
_LOSSLESS: Final = frozenset({1, 5, 8, 32946, 32773, 34925, 50000})
_WITH_PREDICTOR: Final = frozenset({5, 8, 32946, 34925, 50000})
_PREMULTIPLIED, _ALPHA = 1, 2
_MAX_BYTES: Final = 1 << 31
_MIN_BITS: Final = 8
_BY_OPENCV: Final = frozenset({8, 16, 32, 64})

_Tags = dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class TiffBands:
    """Levels (H, W, C) of a TIFF: the first `num_colours`, 1 or 3, and `alpha`, an index, are used.

    With `inverted` 0 is white.
    """

    levels: NDArray[Any]
    num_colours: int
    alpha: int | None
    inverted: bool


def read_tiff_bands(data: bytes) -> TiffBands | None:
    """Return the bands of the first image; None if they are not stored as plain levels.

    Raises ImageError.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    try:
        tags, _ = read_directory(data, order, _TAGS, _MAX_VALUES, big=big)
    except (struct.error, OverflowError) as error:
        raise ImageError("truncated", f"the directory ends after {len(data)} bytes") from error
    photometric = _first(tags, _PHOTOMETRIC, _WHITE_IS_ZERO)
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return None
    if _first(tags, _COMPRESSION, 1) not in _LOSSLESS:
        return None
    num_bands = _first(tags, _SAMPLES, 1)
    bits = set(tags.get(_BITS, (1,)))
    if max(bits, default=0) < _MIN_BITS:
        return None
    for places, lengths in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        for place, length in zip(tags.get(places, ()), tags.get(lengths, ()), strict=False):
            if place + length > len(data):
                raise ImageError("truncated", f"{len(data)} of at least {place + length} bytes")
    if tags.get(_PREDICTOR) and _first(tags, _COMPRESSION, 1) not in _WITH_PREDICTOR:
        del tags[_PREDICTOR]
    if len(bits) > 1 or _first(tags, _PREDICTOR, 1) not in (_NO_PREDICTOR, _DIFFERENCES):
        raise ImageError("undecodable", f"a TIFF of {num_bands} bands: {TAKE_THREE_BANDS}")
    extra = tags.get(_EXTRA_SAMPLES, ())
    alpha = next((i for i, kind in enumerate(extra) if kind in (_PREMULTIPLIED, _ALPHA)), None)
    num_colours = 3 if num_bands - (alpha is not None) >= 3 else 1
    if alpha is not None:
        alpha += num_bands - len(extra)
    wanted = max(num_colours, 0 if alpha is None else alpha + 1)
    if _first(tags, _PLANES, 1) == _IN_PLANES and num_bands > 1:
        planes = [_plane(data, order, tags, index, num_bands, big=big) for index in range(wanted)]
        levels = np.stack(planes, axis=-1)
    else:
        levels = _interleaved(data, order, tags, num_bands, big=big)
    if alpha is not None and extra[alpha - num_bands + len(extra)] == _PREMULTIPLIED:
        levels = _divided(levels, alpha)
    return TiffBands(levels, num_colours, alpha, photometric == _WHITE_IS_ZERO)


def _first(tags: _Tags, tag: int, default: int) -> int:
    return next(iter(tags.get(tag, ())), default)


def _interleaved(
    data: bytes, order: str, tags: _Tags, num_bands: int, *, big: bool
) -> NDArray[Any]:
    width = _first(tags, _WIDTH, 0)
    tile_width = _first(tags, _TILE_WIDTH, 0)
    grey = dict(tags)
    grey[_WIDTH] = (width * num_bands,)
    if tile_width:
        grey[_TILE_WIDTH] = (tile_width * num_bands,)
    grey.pop(_PREDICTOR, None)
    levels = _decode_grey(data, order, grey, big=big)
    levels = levels.reshape(len(levels), width, num_bands)
    if _first(tags, _PREDICTOR, 1) == _DIFFERENCES:
        for left in range(0, width, tile_width or width):
            part = levels[:, left : left + (tile_width or width)]
            np.cumsum(part, axis=1, dtype=levels.dtype, out=part)
    return levels


def _plane(
    data: bytes, order: str, tags: _Tags, index: int, num_bands: int, *, big: bool
) -> NDArray[Any]:
    plane = dict(tags)
    for tag in (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES):
        if places := tags.get(tag):
            per_plane = len(places) // num_bands
            plane[tag] = places[index * per_plane : (index + 1) * per_plane]
    return _decode_grey(data, order, plane, big=big)


def _decode_grey(data: bytes, order: str, tags: _Tags, *, big: bool) -> NDArray[Any]:
    """Decode one band (H, W) that these tags describe."""
    bits = _first(tags, _BITS, 1)
    num_bytes = _first(tags, _WIDTH, 0) * _first(tags, _HEIGHT, 0) * bits // 8
    if num_bytes > _MAX_BYTES:
        raise ImageError("too_large", f"{num_bytes} bytes of bands, over {_MAX_BYTES}")
    tags = {
        **{tag: values for tag, values in tags.items() if values and tag != _EXTRA_SAMPLES},
        _BITS: (bits,),
        _SAMPLES: (1,),
        _PLANES: (1,),
        _PHOTOMETRIC: (_BLACK_IS_ZERO,),
        _SAMPLE_FORMAT: tags.get(_SAMPLE_FORMAT, (1,))[:1],
    }
    try:
        file = _with_directory(data, order, tags, big=big)
        if bits in _BY_OPENCV:
            levels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
            if levels is not None and levels.ndim == 2:
                return levels
        with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as pil_image:
            pil_image.load()
            return np.array(pil_image)
    except Exception as error:
        # On broken files decoders raise almost any exception; each costs one sample.
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageError("truncated" if "truncated" in detail else "undecodable", detail) from error


def _with_directory(data: bytes, order: str, tags: _Tags, *, big: bool) -> bytes:
    """Return the file with another directory at its end, as its first."""
    kind, form, size = (16, "Q", 8) if big else (4, "I", 4)
    data += bytes(-len(data) % 8)
    values, entries = b"", []
    start = len(data)
    for tag in sorted(tags):
        packed = struct.pack(f"{order}{len(tags[tag])}{form}", *tags[tag])
        if len(packed) > size:
            place = struct.pack(f"{order}{form}", start + len(values))
            values += packed
            packed = place
        entry = struct.pack(f"{order}HH{form}", tag, kind, len(tags[tag]))
        entries.append(entry + packed.ljust(size, b"\0"))
    count = struct.pack(f"{order}{'Q' if big else 'H'}", len(entries))
    directory = struct.pack(f"{order}{form}", start + len(values))
    head = data[:8] + directory if big else data[:4] + directory
    return b"".join([head, data[len(head) :], values, count, *entries, bytes(size)])


def _divided(levels: NDArray[Any], alpha: int) -> NDArray[Any]:
    """Divide colours by the opacity that they were multiplied with."""
    opacity = levels[..., alpha : alpha + 1].astype(np.float64)
    full = 1.0 if levels.dtype.kind == "f" else float(np.iinfo(levels.dtype).max)
    divided = levels * full / np.where(opacity > 0, opacity, full)
    divided[..., alpha] = levels[..., alpha]
    return np.clip(divided, 0, full if levels.dtype.kind != "f" else None).astype(levels.dtype)
