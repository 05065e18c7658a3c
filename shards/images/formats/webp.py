"""WebP header: a walk from chunk to chunk."""

import struct

from shards.images.formats.common import ImageError, ImageHeader, exif_orientation, orient_size

_ALPHA_FLAG = 0x10


def read_webp_header(data: bytes) -> ImageHeader:
    """Return the header of a WebP; all its bytes must be present."""
    (num_bytes,) = struct.unpack_from("<I", data, 4)
    if num_bytes + 8 > len(data):
        raise ImageError("truncated", f"{len(data)} of {num_bytes + 8} bytes")
    size: tuple[int, int] | None = None
    orientation, num_frames, place = 1, 0, 12
    alpha = icc_profile = False
    plain = True
    while place + 8 <= num_bytes + 8:
        name, length = struct.unpack_from("<4sI", data, place)
        body = place + 8
        if name == b"VP8X":
            size = _uint24(data, body + 7) + 1, _uint24(data, body + 4) + 1
            alpha |= bool(data[body] & _ALPHA_FLAG)
        elif name == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = height & 0x3FFF, width & 0x3FFF
        elif name == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", data, body + 1)
            size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
            alpha |= bool(bits >> 28 & 1)
        elif name == b"ALPH":
            alpha = True
        elif name == b"ICCP":
            icc_profile = True
        elif name == b"ANIM":
            plain = False
        elif name == b"ANMF":
            num_frames += 1
        elif name == b"EXIF":
            # Some writers keep the prefix that only JPEG has.
            exif = data[body : body + length]
            orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))
        place = body + length + (length & 1)
    if size is None:
        raise ImageError("broken_header", "a WebP without an image")
    return ImageHeader(
        data,
        "webp",
        *orient_size(size, orientation),
        num_frames=max(num_frames, 1),
        alpha=alpha,
        icc_profile=icc_profile,
        plain=plain and num_frames == 0,
        num_bands=3 + alpha,
    )


def _uint24(data: bytes, place: int) -> int:
    return data[place] | data[place + 1] << 8 | data[place + 2] << 16
