"""GIF header: a walk from block to block."""

import struct

from shards.images.formats.common import ImageError, ImageHeader

_EXTENSION, _FRAME, _TRAILER, _GRAPHIC_CONTROL = 0x21, 0x2C, 0x3B, 0xF9


def read_gif_header(data: bytes) -> ImageHeader:
    """Return the header of a GIF. A first frame larger than the screen enlarges the image."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + _colour_table_length(flags)
    num_frames = 0
    alpha = False
    while place < len(data):
        kind = data[place]
        if kind == _EXTENSION:
            if num_frames == 0 and data[place + 1] == _GRAPHIC_CONTROL:
                alpha = bool(data[place + 3] & 1)
            place = _skip_sub_blocks(data, place + 2)
        elif kind == _FRAME:
            left, top, frame_width, frame_height, flags = struct.unpack_from(
                "<HHHHB", data, place + 1
            )
            place = _skip_sub_blocks(data, place + 11 + _colour_table_length(flags))
            if num_frames == 0:
                width, height = max(width, left + frame_width), max(height, top + frame_height)
            num_frames += 1
        elif kind == _TRAILER or num_frames:
            break
        else:  # junk, which decoders skip byte by byte
            place += 1
    if num_frames == 0:
        raise ImageError("truncated", "a GIF without a frame")
    return ImageHeader(data, "gif", height, width, num_frames=num_frames, alpha=alpha)


def _colour_table_length(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_sub_blocks(data: bytes, place: int) -> int:
    """Return the place after the sub-blocks at `place`; truncated ones are left to the decoder."""
    while place < len(data) and data[place]:
        place += data[place] + 1
    return place + 1
