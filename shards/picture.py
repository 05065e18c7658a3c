"""What is this file? Format, size, orientation and frames from the header, without any pixels.

`inspect` reads JPEG, PNG, WebP and GIF itself: they are nearly all of the web, Pillow takes ten
times as long, and what a decoder would silently paint grey has to be found here. Whatever other
formats are wanted are opened by their own Pillow plugin. A file's name is never looked at.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    DdsImagePlugin,
    IcnsImagePlugin,
    IcoImagePlugin,
    ImageFile,
    Jpeg2KImagePlugin,
    PpmImagePlugin,
    PsdImagePlugin,
    QoiImagePlugin,
    TiffImagePlugin,
)

from shards.records import Reason

# Above this side the boxes of `crops.recipe`, relative numbers in float32, would lose pixels.
MAX_SIDE: Final = 2**22

_ORIENTATION_TAG = 0x0112


class PictureError(Exception):
    """This file cannot be used; `reason` is what a reject is counted under."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture and what its header says.

    `format` is "jpeg", "jpeg_cmyk", "png", "apng", "webp", "gif", or Pillow's name in lower case.
    `height` and `width` hold after `orientation`, the EXIF number 1..8, has been applied. Only the
    first of the `num_frames` is ever used.
    """

    data: bytes
    format: str
    height: int
    width: int
    orientation: int
    num_frames: int


def inspect(data: bytes) -> Picture:
    """Say what `data` is, or raise `PictureError`. No pixel is decoded, so no bomb goes off."""
    if not data:
        raise PictureError("empty", "0 bytes")
    try:
        picture = _inspect_known(data)
    except (struct.error, IndexError) as error:
        # The walks below read as if the file were whole; falling off its end says it is not.
        raise PictureError("truncated", f"the header ends after {len(data)} bytes") from error
    if picture.height < 1 or picture.width < 1:
        raise PictureError("broken_header", f"{picture.height} x {picture.width} pixels")
    if max(picture.height, picture.width) > MAX_SIDE:
        raise PictureError("too_large", f"{picture.height} x {picture.width} pixels")
    return picture


def _inspect_known(data: bytes) -> Picture:
    if data.startswith(b"\xff\xd8\xff"):
        return _inspect_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _inspect_png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _inspect_webp(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _inspect_gif(data)
    for magic, plugin in _PLUGINS:
        if magic.match(data):
            return _inspect_with_pillow(data, plugin)
    raise PictureError("not_a_picture", f"begins with {data[:8]!r}")


def _oriented(
    data: bytes, format_: str, size: tuple[int, int], orientation: int, num_frames: int = 1
) -> Picture:
    """A `Picture` of stored `size` (height, width); orientations 5 to 8 swap the two."""
    if not 1 <= orientation <= 8:
        orientation = 1
    height, width = size if orientation < 5 else size[::-1]
    return Picture(data, format_, height, width, orientation, num_frames)


_START_OF_SCAN, _END, _START, _RESTART_INTERVAL, _EXIF = 0xDA, 0xD9, 0xD8, 0xDD, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Baseline, extended and progressive, each with Huffman or arithmetic coding. The rest is lossless
# or hierarchical, which no decoder used here knows.
_DECODABLE_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_WITHOUT_SEGMENT = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8)})
# What may follow entropy data: tables, another scan, application data, comments, the end.
_BETWEEN_SCANS = frozenset({0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)


@dataclass(slots=True)
class _Frame:
    """The frame header of a JPEG, and the restart interval that holds when the scan starts."""

    kind: int
    height: int
    width: int
    sampling: list[tuple[int, int]]  # of each component: horizontal, vertical
    restarts: bool = False

    @property
    def num_blocks(self) -> int:
        """8 x 8 blocks that every complete scan of the picture has to code, without padding."""
        widest = max(horizontal for horizontal, _ in self.sampling)
        tallest = max(vertical for _, vertical in self.sampling)
        return sum(
            -(-self.width * horizontal // (8 * widest))
            * -(-self.height * vertical // (8 * tallest))
            for horizontal, vertical in self.sampling
        )


def _inspect_jpeg(data: bytes) -> Picture:
    frame: _Frame | None = None
    orientation = 0
    restarts = False
    place = 2
    while True:
        # As every decoder does, step over fill bytes, stray bytes, and markers without a segment.
        place = data.find(b"\xff", place)
        if place < 0:
            raise PictureError("truncated", "no start of scan")
        marker = data[place + 1]
        if marker in _WITHOUT_SEGMENT:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == _END or (marker == _START_OF_SCAN and frame is None):
            raise PictureError("broken_header", "a JPEG without a frame header")
        length = _segment_length(data, place)
        if marker in _FRAMES:
            frame = _read_frame(data, place, marker)
        elif marker == _EXIF and not orientation and data.startswith(b"Exif\0", place + 4):
            orientation = _exif_orientation(data[place + 10 : place + 2 + length])
        elif marker == _RESTART_INTERVAL:
            restarts = data[place + 4 : place + 6] != b"\0\0"
        place += 2 + length
        if marker == _START_OF_SCAN:
            break
    assert frame is not None
    frame.restarts = restarts
    _check_scans(data, place, frame)
    format_ = "jpeg_cmyk" if len(frame.sampling) == 4 else "jpeg"
    return _oriented(data, format_, (frame.height, frame.width), orientation)


def _segment_length(data: bytes, place: int) -> int:
    """Length of the segment whose marker stands at `place`, its own two bytes included."""
    length = data[place + 2] << 8 | data[place + 3]
    if length < 2:
        raise PictureError("broken_header", f"a JPEG segment of length {length} at byte {place}")
    return length


def _read_frame(data: bytes, place: int, marker: int) -> _Frame:
    precision, height, width, num_components = struct.unpack_from(">BHHB", data, place + 4)
    if marker not in _DECODABLE_FRAMES or precision != 8:
        raise PictureError("undecodable", f"JPEG process {marker:02X}, {precision} bits")
    factors = [data[place + 11 + 3 * component] for component in range(num_components)]
    sampling = [(factor >> 4, factor & 15) for factor in factors]
    if num_components not in (1, 3, 4) or not all(1 <= h <= 4 and 1 <= v <= 4 for h, v in sampling):
        raise PictureError("broken_header", f"{num_components} components, sampling {sampling}")
    return _Frame(marker, height, width, sampling)


def _check_scans(data: bytes, start: int, frame: _Frame) -> None:
    """Follow the entropy data from `start` to the end-of-image marker, or raise.

    Decoders do not complain about a scan that stops early: they paint what is missing grey.
    Thumbnails are no danger here, they lie in segments that are stepped over.
    """
    place = start
    while True:
        match = _MARKER_IN_SCAN.search(data, place)
        if match is None:
            raise PictureError("truncated", "no end-of-image marker")
        marker = data[match.start() + 1]
        if marker == _END:
            break
        if marker == _START:
            raise PictureError("truncated", "another picture begins before this one has ended")
        if marker in _BETWEEN_SCANS:
            place = match.start() + 2 + _segment_length(data, match.start())
        elif frame.restarts:
            # A decoder finds its way again at the next restart marker.
            place = match.end()
        else:
            raise PictureError("undecodable", f"marker {marker:02X} within the entropy data")
    # A Huffman code has at least one bit; a block takes at least two codes, but for the first
    # scan of a progressive picture, which takes one.
    bits_per_block = 1 if frame.kind == 0xC2 else 2
    num_bits = 8 * (match.start() - start)
    if frame.kind in _HUFFMAN_FRAMES and num_bits < bits_per_block * frame.num_blocks:
        raise PictureError("truncated", f"{num_bits} bits for {frame.num_blocks} blocks")


def _exif_orientation(tiff: bytes) -> int:
    """The orientation in an EXIF block, or 1 where it has none or cannot be read."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                value = {3: "H", 4: "I"}[kind]
                return int(struct.unpack_from(f"{order}{value}", tiff, entry + 8)[0])
    except (KeyError, struct.error):
        # Broken EXIF is common and says nothing about the pixels.
        return 1
    return 1


_PNG_BIT_DEPTHS: Final = {
    0: (1, 2, 4, 8, 16),  # grey
    2: (8, 16),  # RGB
    3: (1, 2, 4, 8),  # palette
    4: (8, 16),  # grey and alpha
    6: (8, 16),  # RGB and alpha
}


def _inspect_png(data: bytes) -> Picture:
    fields = struct.unpack_from(">I4sIIBBBBBI", data, 8)
    length, name, width, height, depth, colour, compression, filtering, interlacing, crc = fields
    if (
        (length, name, compression, filtering) != (13, b"IHDR", 0, 0)
        or interlacing > 1
        or depth not in _PNG_BIT_DEPTHS.get(colour, ())
        or zlib.crc32(data[12:29]) != crc
    ):
        raise PictureError("broken_header", f"PNG header {data[8:33]!r}")
    format_, orientation, num_frames, place = "png", 1, 1, 33
    while name != b"IEND":
        if place + 12 > len(data):
            raise PictureError("truncated", "no IEND chunk")
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"acTL":
            format_ = "apng"
            (num_frames,) = struct.unpack_from(">I", data, place + 8)
        elif name == b"eXIf":
            orientation = _exif_orientation(data[place + 8 : place + 8 + length])
        place += 12 + length
    return _oriented(data, format_, (height, width), orientation, max(num_frames, 1))


def _inspect_webp(data: bytes) -> Picture:
    (num_bytes,) = struct.unpack_from("<I", data, 4)
    if num_bytes + 8 > len(data):
        raise PictureError("truncated", f"{len(data)} of {num_bytes + 8} bytes")
    size: tuple[int, int] | None = None
    orientation, num_frames, place = 1, 0, 12
    while place + 8 <= num_bytes + 8:
        name, length = struct.unpack_from("<4sI", data, place)
        body = place + 8
        if name == b"VP8X":
            size = _uint24(data, body + 7) + 1, _uint24(data, body + 4) + 1
        elif name == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = height & 0x3FFF, width & 0x3FFF
        elif name == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", data, body + 1)
            size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        elif name == b"ANMF":
            num_frames += 1
        elif name == b"EXIF":
            # Some writers keep the prefix that belongs to JPEG only.
            exif = data[body : body + length]
            orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
        place = body + length + (length & 1)
    if size is None:
        raise PictureError("broken_header", "a WebP without a picture")
    return _oriented(data, "webp", size, orientation, max(num_frames, 1))


def _uint24(data: bytes, place: int) -> int:
    return data[place] | data[place + 1] << 8 | data[place + 2] << 16


def _inspect_gif(data: bytes) -> Picture:
    """Walk the blocks; the first frame may be larger than the screen and then enlarges it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + _colour_table_length(flags)
    num_frames = 0
    while place < len(data):
        kind = data[place]
        if kind == 0x21:  # an extension
            place = _skip_sub_blocks(data, place + 2)
        elif kind == 0x2C:  # a frame
            left, top, frame_width, frame_height, flags = struct.unpack_from(
                "<HHHHB", data, place + 1
            )
            place = _skip_sub_blocks(data, place + 11 + _colour_table_length(flags))
            if num_frames == 0:
                width, height = max(width, left + frame_width), max(height, top + frame_height)
            num_frames += 1
        else:  # the trailer, or junk after which nothing can be found
            break
    if num_frames == 0:
        raise PictureError("truncated", "a GIF without a frame")
    return Picture(data, "gif", height, width, 1, num_frames)


def _colour_table_length(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_sub_blocks(data: bytes, place: int) -> int:
    """The place after the sub-blocks at `place`; cut off ones are for the decoder to judge."""
    while place < len(data) and data[place]:
        place += data[place] + 1
    return place + 1


# The formats that are wanted, each with its own magic. A list of what may come in, because Pillow
# would also start Ghostscript for an EPS and tries dozens of plugins on anything it is given. The
# plugins are used directly because `Image.open` refuses large sizes before it tells them.
_PLUGINS: Final[tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...]] = (
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
    (re.compile(rb"(?s)....ftyp(avif|avis|mif1|msf1)"), AvifImagePlugin.AvifImageFile),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), Jpeg2KImagePlugin.Jpeg2KImageFile),
    (re.compile(rb"P[1-6]\s|P[fF]\s"), PpmImagePlugin.PpmImageFile),
    (re.compile(rb"\0\0\x01\0"), IcoImagePlugin.IcoImageFile),
    (re.compile(rb"qoif"), QoiImagePlugin.QoiImageFile),
    (re.compile(rb"8BPS"), PsdImagePlugin.PsdImageFile),
    (re.compile(rb"DDS "), DdsImagePlugin.DdsImageFile),
    (re.compile(rb"icns"), IcnsImagePlugin.IcnsImageFile),
)


def _inspect_with_pillow(data: bytes, plugin: type[ImageFile.ImageFile]) -> Picture:
    try:
        image = plugin(io.BytesIO(data))
        width, height = image.size
        # A TIFF's size and pixels are already turned by Pillow.
        turned = plugin is TiffImagePlugin.TiffImageFile
        orientation = 1 if turned else int(image.getexif().get(_ORIENTATION_TAG, 1))
        num_frames = int(getattr(image, "n_frames", 1))
    except Exception as error:
        # Broken files make the plugins raise OSError, SyntaxError, ValueError, TypeError, KeyError,
        # IndexError, OverflowError, NotImplementedError, struct.error and more: all mean the same.
        raise PictureError("broken_header", f"{type(error).__name__}: {error}") from error
    return _oriented(data, str(image.format).lower(), (height, width), orientation, num_frames)
