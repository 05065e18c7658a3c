"""JPEG header: a walk from marker to marker to the end of the image.

Decoders fill missing data with grey without an error, so missing data must be detected here.
Decoders also differ on rare features. An image is `plain` only if everything was checked that could
make a decoder stop or read it differently.
"""

import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from shards.images.formats.common import ImageError, ImageHeader, exif_orientation, orient_size
from shards.images.formats.foreign import JPEG_LS

_START_OF_SCAN, _END, _START, _RESTART_INTERVAL, _HEIGHT_FOLLOWS = 0xDA, 0xD9, 0xD8, 0xDD, 0xDC
_HUFFMAN_TABLES, _QUANTISERS = 0xC4, 0xDB
_JFIF, _EXIF, _ICC_OR_MPF, _ADOBE = 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Baseline, extended and progressive, each with Huffman or arithmetic coding. The others are
# lossless or hierarchical, which no decoder used here supports.
_DECODABLE_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE = 0xC2
_JPEG_LS_FRAME = 0xF7
_WITHOUT_SEGMENT = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8)})
# Markers that may follow entropy data: tables, scans, application data, comments, the end.
_BETWEEN_SCANS = frozenset({0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_UNUSUAL = frozenset({0xCC, 0xDC, 0xDE, 0xDF})  # arithmetic tables, late heights, hierarchies
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
# Encoders write up to thirteen scans. A decoder visits all blocks in every scan, so thousands of
# empty scans in a few kilobytes would take minutes.
_MAX_SCANS: Final = 100
# Sampling of the first component that encoders write if the other two have 1 x 1.
_USUAL_SAMPLING = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})
_UNKNOWN = -1
_COMPLETE: Final = [0] * 64
_NUM_IMAGES_TAG = 0xB001


@dataclass(slots=True)
class _JpegFrame:
    """Fields of the frame header."""

    kind: int
    height: int
    width: int
    ids: list[int]
    sampling: list[tuple[int, int]]  # of each component: horizontal, vertical
    quantisers: list[int]

    @property
    def num_blocks(self) -> int:
        """Number of 8 x 8 blocks in every complete scan of the image, without padding."""
        widest = max(horizontal for horizontal, _ in self.sampling)
        tallest = max(vertical for _, vertical in self.sampling)
        return sum(
            -(-self.width * horizontal // (8 * widest))
            * -(-self.height * vertical // (8 * tallest))
            for horizontal, vertical in self.sampling
        )

    @property
    def usual(self) -> bool:
        """True if the image is grey, or colour with a sampling that every decoder supports."""
        if self.kind not in _HUFFMAN_FRAMES or len(set(self.ids)) != len(self.ids):
            return False
        if len(self.sampling) == 1:
            return True
        first, *others = self.sampling
        return others == [(1, 1), (1, 1)] and first in _USUAL_SAMPLING


@dataclass(slots=True)
class _JpegWalk:
    """State of the walk: fields of the segments that were read."""

    data: bytes
    frame: _JpegFrame | None = None
    num_scans: int = 0
    restarts: bool = False
    orientation: int = 0
    num_images: int = 1
    icc_profile: bool = False
    jfif: bool = False
    adobe: int | None = None  # which colour transform
    odd: bool = False
    huffman: set[int] = field(default_factory=set)
    quantisers: set[int] = field(default_factory=set)
    # Number of lower bits of each coefficient that are still missing, by component.
    levels: dict[int, list[int]] = field(default_factory=dict)

    def read_segment(self, place: int, marker: int) -> int:
        """Read the segment whose marker is at `place`; return the place after it."""
        data = self.data
        length = data[place + 2] << 8 | data[place + 3]
        if length < 2:
            raise ImageError("broken_header", f"a JPEG segment of length {length} at {place}")
        body, end = place + 4, place + 2 + length
        if marker == _HUFFMAN_TABLES:
            self._read_huffman(data[body:end])
        elif marker == _QUANTISERS:
            self._read_quantisers(data[body:end])
        elif marker in _FRAMES:
            self._read_frame(body, marker)
        elif marker == _START_OF_SCAN:
            self._read_scan(data[body:end])
        elif marker == _RESTART_INTERVAL:
            self.restarts = data[body : body + 2] != b"\0\0"
        elif marker >= _JFIF:
            self._read_application(body, end, marker)
        elif marker in _UNUSUAL:
            self.odd = True
        return end

    def _read_application(self, body: int, end: int, marker: int) -> None:
        data = self.data
        if marker == _EXIF and not self.orientation and data.startswith(b"Exif\0", body):
            self.orientation = exif_orientation(data[body + 6 : end])
        elif marker == _ICC_OR_MPF and data.startswith(b"ICC_PROFILE\0", body):
            self.icc_profile = True
        elif marker == _ICC_OR_MPF and data.startswith(b"MPF\0", body):
            self.num_images = _count_images(data[body + 4 : end])
        elif marker == _JFIF and data.startswith(b"JFIF\0", body):
            self.jfif = True
        elif marker == _ADOBE and data.startswith(b"Adobe", body) and end - body >= 12:
            self.adobe = data[body + 11]

    def _read_frame(self, body: int, marker: int) -> None:
        data = self.data
        precision, height, width, num_components = struct.unpack_from(">BHHB", data, body)
        if marker not in _DECODABLE_FRAMES or precision != 8:
            raise ImageError(
                "undecodable",
                f"JPEG process {marker:02X}, {precision} bits: no decoder here has it; convert it "
                "to PNG",
            )
        if self.frame is not None:
            raise ImageError("broken_header", "a second JPEG frame header")
        rows = [data[row : row + 3] for row in range(body + 6, body + 6 + 3 * num_components, 3)]
        sampling = [(row[1] >> 4, row[1] & 15) for row in rows]
        if num_components not in (1, 3, 4) or not all(
            1 <= horizontal <= 4 and 1 <= vertical <= 4 for horizontal, vertical in sampling
        ):
            raise ImageError("broken_header", f"{num_components} components, sampling {sampling}")
        ids, quantisers = [row[0] for row in rows], [row[2] for row in rows]
        self.frame = _JpegFrame(marker, height, width, ids, sampling, quantisers)

    def _read_huffman(self, body: bytes) -> None:
        place = 0
        while place < len(body):
            length = 17 + sum(body[place + 1 : place + 17])
            table = body[place : place + length]
            if len(table) == length and _is_huffman_table(table):
                self.huffman.add(table[0])
            else:
                self.odd = True
            place += length

    def _read_quantisers(self, body: bytes) -> None:
        place = 0
        while place < len(body):
            length = 129 if body[place] >> 4 else 65
            if body[place] in range(4) and place + length <= len(body):
                self.quantisers.add(body[place])
            else:
                self.odd = True
            place += length

    def _read_scan(self, body: bytes) -> None:
        assert self.frame is not None
        self.num_scans += 1
        if self.num_scans > _MAX_SCANS:
            raise ImageError("undecodable", f"over {_MAX_SCANS} scans")
        num_components = body[0]
        if len(body) != 4 + 2 * num_components:
            self.odd = True
            return
        ids, tables = body[1 : 1 + 2 * num_components : 2], body[2 : 2 + 2 * num_components : 2]
        first, last, bits = body[-3:]
        if self.frame.kind == _PROGRESSIVE:
            self._read_progressive_scan(ids, tables, first, last, bits)
        else:
            self.odd |= (first, last, bits) != (0, 63, 0) or self.num_scans > 1
            for id_, table in zip(ids, tables, strict=True):
                self.odd |= not {table >> 4, 0x10 | table & 15} <= self.huffman
                self.levels[id_] = _COMPLETE

    def _read_progressive_scan(
        self, ids: bytes, tables: bytes, first: int, last: int, bits: int
    ) -> None:
        high, low = bits >> 4, bits & 15
        self.odd |= last > 63 or low > 13
        self.odd |= last != 0 if first == 0 else last < first or len(ids) != 1
        for id_, table in zip(ids, tables, strict=True):
            levels = self.levels.setdefault(id_, [_UNKNOWN] * 64)
            if first == 0 and high == 0:
                self.odd |= table >> 4 not in self.huffman
            elif first > 0:
                # The mean (DC) of a component comes before its other coefficients.
                self.odd |= 0x10 | table & 15 not in self.huffman or levels[0] == _UNKNOWN
            before = high or _UNKNOWN
            self.odd |= levels[first : last + 1] != [before] * (last + 1 - first)
            self.odd |= before not in (_UNKNOWN, low + 1)
            levels[first : last + 1] = [low] * (last + 1 - first)

    def follow_scans(self, start: int) -> None:
        """Follow the entropy data from `start` to the end-of-image marker, or raise ImageError.

        Thumbnails do not disturb the walk: they are inside segments, which are skipped.
        """
        assert self.frame is not None
        place = start
        while True:
            match = _MARKER_IN_SCAN.search(self.data, place)
            if match is None:
                raise ImageError("truncated", "no end-of-image marker")
            marker = self.data[match.start() + 1]
            if marker == _END:
                break
            if marker == _START:
                raise ImageError("truncated", "another image begins before this one has ended")
            if marker in _BETWEEN_SCANS and self._has_segment(match.start(), marker):
                place = self.read_segment(match.start(), marker)
            elif self.restarts:
                # A decoder synchronises at the next restart marker.
                self.odd = True
                place = match.end()
            else:
                raise ImageError("undecodable", f"marker {marker:02X} within the entropy data")
        # A Huffman code has at least one bit. A block needs at least two codes, or one in the first
        # scan of a progressive image.
        bits_per_block = 1 if self.frame.kind == _PROGRESSIVE else 2
        num_bits, num_blocks = 8 * (match.start() - start), self.frame.num_blocks
        if self.frame.kind in _HUFFMAN_FRAMES and num_bits < bits_per_block * num_blocks:
            raise ImageError("truncated", f"{num_bits} bits for {num_blocks} blocks")

    def _has_segment(self, place: int, marker: int) -> bool:
        """Return True if a segment may follow, in a complete or a truncated file."""
        length = int.from_bytes(self.data[place + 2 : place + 4])
        if marker == _HEIGHT_FOLLOWS:
            return length == 4
        return place + 2 + length < len(self.data) or not self.data.endswith(b"\xff\xd9")

    @property
    def plain(self) -> bool:
        frame = self.frame
        assert frame is not None
        # Three components are luminance and two colours, unless an Adobe marker or the component
        # names declare red, green and blue.
        colours = len(frame.ids) == 1 or (
            self.adobe != 0 and (self.jfif or self.adobe == 1 or frame.ids == [1, 2, 3])
        )
        return (
            not self.odd
            and frame.usual
            and colours
            and set(frame.quantisers) <= self.quantisers
            and all(self.levels.get(id_) == _COMPLETE for id_ in frame.ids)
        )


def read_jpeg_header(data: bytes) -> ImageHeader:
    """Return the header of a JPEG; the data must be complete."""
    walk = _JpegWalk(data)
    place = 2
    while not walk.num_scans:
        # Skip fill bytes, stray bytes and markers without a segment, as every decoder does.
        place = data.find(b"\xff", place)
        if place < 0:
            raise ImageError("truncated", "no start of scan")
        marker = data[place + 1]
        if marker in _WITHOUT_SEGMENT:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (_END, _START) or (marker == _START_OF_SCAN and walk.frame is None):
            raise ImageError("broken_header", "a JPEG without a frame header")
        if marker == _JPEG_LS_FRAME:
            raise ImageError("not_an_image", str(JPEG_LS))
        place = walk.read_segment(place, marker)
    walk.follow_scans(place)
    assert walk.frame is not None
    size = (walk.frame.height, walk.frame.width)
    return ImageHeader(
        data,
        "jpeg",
        *orient_size(size, walk.orientation),
        num_frames=walk.num_images,
        cmyk=len(walk.frame.ids) == 4,
        icc_profile=walk.icc_profile,
        plain=walk.plain,
        num_bands=len(walk.frame.ids),
    )


@lru_cache(maxsize=64)
def _is_huffman_table(table: bytes) -> bool:
    """Return True if decoders accept this table: its number, 16 counts and symbols.

    Most images have the four tables of the standard, so the cache answers.
    """
    if table[0] not in (0, 1, 2, 3, 0x10, 0x11, 0x12, 0x13) or len(table) > 17 + 256:
        return False
    code = 0
    for bits in range(1, 17):
        code += table[bits]
        if table[bits] and code >= 1 << bits:  # no code is all ones
            return False
        code <<= 1
    return table[0] >= 0x10 or all(symbol <= 15 for symbol in table[17:])


def _count_images(tiff: bytes) -> int:
    """Return the number of images in a multi-picture index; 1 if it is unreadable."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHII", tiff, entry)
            if tag == _NUM_IMAGES_TAG:
                return max(1, int(value))
    except (KeyError, struct.error):
        return 1
    return 1
