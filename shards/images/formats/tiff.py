"""TIFF and BigTIFF header: the first directory, read without opening a decoder."""

import math
import struct
from typing import Final

from shards.images.formats.common import ImageError, ImageHeader, orient_size

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 262, 274
_SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES, _ICC_PROFILE = 277, 322, 323, 338, 34675
_WANTED = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT}
    | {_EXTRA_SAMPLES, _ICC_PROFILE}
)
_WHOLE_NUMBERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_MAX_VALUES = 1 << 12  # of a tag; a wanted tag has one for each band at most
_PALETTE, _CMYK = 3, 5
# A decoder allocates one whole tile, however small the image is.
_MAX_TILE_BYTES: Final = 1 << 26


def read_tiff_header(data: bytes) -> ImageHeader:
    """Return the header of the first image of a TIFF."""
    order = "<" if data.startswith(b"II") else ">"
    (magic,) = struct.unpack_from(f"{order}H", data, 2)
    tags, following = read_directory(data, order, _WANTED, _MAX_VALUES, big=magic == 43)
    width, height = (tags.get(tag, ()) for tag in (_WIDTH, _HEIGHT))
    if len(width) != 1 or len(height) != 1:
        raise ImageError("broken_header", "a TIFF without dimensions")
    bits, samples, photometric, orientation = (
        max(tags.get(tag, ()), default=default)
        for tag, default in ((_BITS, 1), (_SAMPLES, 1), (_PHOTOMETRIC, 0), (_ORIENTATION, 1))
    )
    tile = math.prod(max(tags.get(tag, ()), default=1) for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    if tile * samples * bits > 8 * _MAX_TILE_BYTES:
        raise ImageError("too_large", f"tiles of {tile} pixels, {samples} samples, {bits} bits")
    extra = tags.get(_EXTRA_SAMPLES, ())
    return ImageHeader(
        data,
        "tiff",
        *orient_size((height[0], width[0]), orientation),
        num_frames=2 if 0 < following < len(data) else 1,
        bits=max(bits, 8),
        # A band is transparency only if it is declared: the fourth of a satellite is infrared.
        alpha=bool({1, 2} & set(extra)),
        cmyk=photometric == _CMYK,
        icc_profile=_ICC_PROFILE in tags,
        num_bands=3 if photometric == _PALETTE else samples,
    )


def read_directory(
    data: bytes, order: str, wanted: frozenset[int], max_values: int, *, big: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return the wanted tags of the first directory, and the offset of the next one or 0.

    A tag of more than `max_values` numbers, or of other than whole numbers, is empty.
    """
    offset, count = (f"{order}Q", f"{order}Q") if big else (f"{order}I", f"{order}H")
    (place,) = struct.unpack_from(offset, data, 8 if big else 4)
    (num_entries,) = struct.unpack_from(count, data, place)
    place += struct.calcsize(count)
    step, inline = (20, 8) if big else (12, 4)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(place, place + step * min(num_entries, 1 << 16), step):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag not in wanted:
            continue
        (num_values,) = struct.unpack_from(offset, data, entry + 4)
        tags[tag] = ()
        if kind in _WHOLE_NUMBERS and 0 < num_values <= max_values:
            form = f"{order}{num_values}{_WHOLE_NUMBERS[kind]}"
            value = entry + step - inline
            if struct.calcsize(form) > inline:
                (value,) = struct.unpack_from(offset, data, value)
            tags[tag] = struct.unpack_from(form, data, value)
    end = place + step * num_entries
    following = struct.unpack_from(offset, data, end)[0] if end + inline <= len(data) else 0
    return tags, following
