"""PNG header: a walk from chunk to chunk to the end."""

import struct
import zlib
from typing import Final

from shards.images.formats.common import ImageError, ImageHeader, exif_orientation, orient_size

_BIT_DEPTHS: Final = {
    0: (1, 2, 4, 8, 16),  # grey
    2: (8, 16),  # RGB
    3: (1, 2, 4, 8),  # palette
    4: (8, 16),  # grey and alpha
    6: (8, 16),  # RGB and alpha
}
_NUM_BANDS: Final = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


def read_png_header(data: bytes) -> ImageHeader:
    """Return the header of a PNG; its chunks must be complete."""
    fields = struct.unpack_from(">I4sIIBBBBBI", data, 8)
    length, name, width, height, depth, colour, compression, filtering, interlacing, crc = fields
    if (
        (length, name, compression, filtering) != (13, b"IHDR", 0, 0)
        or interlacing > 1
        or depth not in _BIT_DEPTHS.get(colour, ())
        or zlib.crc32(data[12:29]) != crc
    ):
        raise ImageError("broken_header", f"PNG header {data[8:33]!r}")
    place, orientation, num_frames, plain = 33, 1, 1, True
    names = set()
    while name != b"IEND":
        if place + 12 > len(data):
            raise ImageError("truncated", "no IEND chunk")
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"acTL":
            plain = False
            (num_frames,) = struct.unpack_from(">I", data, place + 8)
        elif name == b"eXIf":
            orientation = exif_orientation(data[place + 8 : place + 8 + length])
        names.add(name)
        place += 12 + length
    return ImageHeader(
        data,
        "png",
        *orient_size((height, width), orientation),
        num_frames=max(num_frames, 1),
        bits=max(depth, 8),
        alpha=colour in (4, 6) or b"tRNS" in names,
        icc_profile=b"iCCP" in names,
        plain=plain,
        num_bands=_NUM_BANDS[colour],
    )
