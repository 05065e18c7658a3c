"""Image headers: fields of every format; broken and hostile files cost one reject each."""

import random
import struct

import numpy as np
import pytest

from shards.images.decode import decode
from shards.images.image_header import MAX_SIDE, ImageError, read_image_header
from tests.hostile import HEIGHT, KINDS, WIDTH, png_chunk, valid
from tests.shards.crops.made import encoded, made_pixels

PIXELS = made_pixels(0, 40, 60)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")


def reason(data):
    with pytest.raises(ImageError) as caught:
        read_image_header(data)
    return caught.value.reason


@pytest.fixture(scope="module")
def files():
    """One good file of every kind."""
    return valid()


@pytest.mark.parametrize("kind", KINDS)
def test_header_of_every_kind_has_the_right_fields(kind, files):
    """A policy would reject or accept the wrong images."""
    image = read_image_header(files[kind])
    assert image.format == {"ico": "ico"}.get(kind, kind.partition("_")[0])
    assert (image.height, image.width, image.orientation) == (HEIGHT, WIDTH, 1)
    several = {"jpeg_images", "tiff_pages"} | {name for name in KINDS if "animated" in name}
    assert (image.num_frames > 1) == (kind in several)
    # The bitmap of an icon has a mask, and Pillow sets the alpha flag of an animated WebP.
    assert image.alpha == ("alpha" in kind or kind in ("ico_bitmap", "webp_animated"))
    assert image.bits == (32 if "float" in kind else 16 if "16" in kind else 8)
    assert image.cmyk == ("cmyk" in kind)
    assert not image.icc_profile


def test_only_ordinary_jpegs_are_plain(files):
    """Engines would decode an unusual file differently."""
    jpegs = {kind for kind in KINDS if kind.startswith("jpeg") and "2000" not in kind}
    assert {kind for kind in jpegs if not read_image_header(files[kind]).plain} == {"jpeg_cmyk"}
    data = files["jpeg_progressive"]
    last = data.rindex(b"\xff\xda")
    for odd in (data[:last] + b"\xff\xd9", data[:-2] + data[last:]):  # scan missing, scan twice
        assert not read_image_header(odd).plain
    data = files["jpeg"]
    assert not read_image_header(encoded(PIXELS, keep_rgb=True)).plain
    # The name of a component, the tables, the end of the band, arithmetic coding.
    for old, new in [
        (b"\x03\x01\x22\x00", b"\x03R\x22\x00"),
        (b"\xff\xc4", b"\xff\xfe"),
        (b"\xff\xdb", b"\xff\xfe"),
        (b"\x00\x3f\x00", b"\x00\x3e\x00"),
        (b"\xff\xc0", b"\xff\xc9"),
    ]:
        odd = data.replace(old, new, 1)
        assert odd != data and not read_image_header(odd).plain, old


def test_many_scans_are_refused():
    """A few kilobytes would keep a decoder busy for minutes."""
    data = encoded(PIXELS, progressive=True)
    last = data.rindex(b"\xff\xda")
    assert reason(data[:-2] + 101 * data[last:-2] + b"\xff\xd9") == "undecodable"


def test_format_that_is_not_accepted_is_not_parsed():
    """A decoder that the user excluded could still be attacked."""
    assert read_image_header(encoded(PIXELS), ("png", "jpeg")).format == "jpeg"
    with pytest.raises(ImageError, match="bmp; allowed are png, jpeg") as caught:
        read_image_header(b"BM and no more", ("png", "jpeg"))
    assert caught.value.reason == "format"


def tiff_header(tags):
    """Build a TIFF of tags with one number each, without pixels."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def test_images_that_are_costly_to_decode_are_refused():
    """A small file of ordinary size would take minutes or gigabytes."""
    assert reason(b"qoif" + struct.pack(">IIBB", 3000, 3000, 3, 0)) == "too_large"
    sides = [(256, 60), (257, 40)]
    assert read_image_header(tiff_header([*sides, (322, 1 << 12), (323, 1 << 12)])).width == 60
    assert reason(tiff_header([*sides, (322, 1 << 15), (323, 1 << 15)])) == "too_large"
    stream = bytearray(encoded(PIXELS, "JPEG2000", no_jp2=True))
    stream[24:32] = struct.pack(">II", 1, 1)
    stream[8:16] = struct.pack(">II", 90, 90)
    assert read_image_header(bytes(stream)).width == 90
    stream[8:16] = struct.pack(">II", 1000, 1000)
    assert reason(bytes(stream)) == "too_large"


def test_largest_image_of_an_icon_is_used():
    """The version of 16 pixels would be used."""
    icon = encoded(made_pixels(0, 256, 256), "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    assert read_image_header(icon).height == 64
    assert reason(icon[:200]) == "truncated"


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}])
@pytest.mark.parametrize("size", [(1, 1), (1, 333), (257, 3), (64, 64)])
def test_complete_jpegs_of_every_kind_are_accepted(options, size):
    """The bound on missing bits would reject plain images."""
    for pixels in (made_pixels(1, *size), np.full((*size, 3), 128, np.uint8)):
        for image in (pixels, pixels[..., 0]):
            assert read_image_header(encoded(image, **options)).height == size[0]


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize(
    ("value", "orientation"), [(1, 1), (3, 3), (6, 6), (8, 8), (0, 1), (9, 1), (42, 1)]
)
def test_exif_orientation_is_read_and_an_invalid_one_ignored(byte_order, value, orientation):
    """Boxes would be drawn for a rotated image."""
    magic = b"II*\0" if byte_order == "<" else b"MM\0*"
    entry = struct.pack(byte_order + "HHIHH", 0x0112, 3, 1, value, 0)
    tiff = magic + struct.pack(byte_order + "IH", 8, 1) + entry + bytes(4)
    segment = b"Exif\0\0" + tiff
    data = encoded(PIXELS)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    image = read_image_header(data)
    assert image.orientation == orientation
    assert (image.height, image.width) == ((60, 40) if orientation > 4 else (40, 60))


@pytest.mark.parametrize("tiff", [b"", b"II*\0", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff"])
def test_broken_exif_is_ignored(tiff):
    """Images of cameras that write broken EXIF would be lost."""
    segment = b"Exif\0\0" + tiff
    data = encoded(PIXELS)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert read_image_header(data).orientation == 1


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_truncated_anywhere_is_detected(options):
    """The decoder would fill the missing part with grey."""
    data = encoded(PIXELS, **options)
    for end in range(3, len(data), 3):
        assert reason(data[:end]) == "truncated", end


def test_end_of_a_thumbnail_is_not_the_end_of_the_image():
    """A truncated image would pass because its thumbnail is complete."""
    thumbnail = encoded(made_pixels(1, 16, 16))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    data = encoded(PIXELS)
    data = data[:2] + segment + data[2:]
    assert read_image_header(data).width == 60
    assert reason(data[:-100]) == "truncated"
    assert reason(data[:-100] + thumbnail) == "truncated"


def test_fill_bytes_and_junk_after_the_end_are_ignored():
    """Images with appended data, which are common, would be rejected."""
    data = encoded(PIXELS)
    assert read_image_header(data + b"junk" * 99).width == 60
    assert read_image_header(data + data[: len(data) // 2]).width == 60
    assert read_image_header(data[:2] + b"\xff\xff\xff" + data[3:]).width == 60


@pytest.mark.parametrize("marker", [b"\xff\x4b", b"\xff\xdc", b"\xff\xe5"])
def test_marker_within_the_scan_is_undecodable(marker):
    """The decoder would stop there and fill the rest with grey."""
    data = bytearray(encoded(PIXELS))
    middle = data.index(b"\xff\xda") + (len(data) - data.index(b"\xff\xda")) // 2
    data[middle : middle + 4] = marker + b"\xf0\x00"
    assert reason(bytes(data)) == "undecodable"


def test_height_that_the_data_cannot_fill_is_truncated():
    """A wrong height would give an image that is almost all grey."""
    data = bytearray(encoded(np.full((64, 64, 3), 128, np.uint8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = struct.pack(">H", 6000)
    assert reason(bytes(data)) == "truncated"


def test_lossless_and_twelve_bit_jpegs_are_undecodable():
    """Engines would fail on it in different ways."""
    for place, value in ((1, 0xC3), (4, 12)):
        data = bytearray(encoded(PIXELS))
        data[data.index(b"\xff\xc0") + place] = value
        assert reason(bytes(data)) == "undecodable"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"\0", "not_an_image"),
        (b"<!DOCTYPE html><html>404", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not_an_image"),
        (b"\xef\xbb\xbf\n" + encoded(PIXELS), "not_an_image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xd9", "broken_header"),
        (b"\xff\xd8\xff\xe0\0\0", "broken_header"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (encoded(PIXELS, "PNG")[:-12], "truncated"),
        (encoded(PIXELS, "PNG").replace(b"IHDR\0\0\0", b"IHDR\0\0\1"), "broken_header"),
        (encoded(PIXELS, "WEBP")[:-1], "truncated"),
        (b"RIFF\x04\0\0\0WEBP", "broken_header"),
        (encoded(PIXELS, "GIF")[:20], "truncated"),
        (encoded(PIXELS, "TIFF")[:9], "truncated"),
        (b"II*\0\x08\0\0\0\0\0", "broken_header"),
        (encoded(PIXELS, "BMP")[:17], "broken_header"),
        (encoded(PIXELS, "BMP")[:-1], "truncated"),
        (b"\0\0\0\x18ftypavif" + bytes(30), "broken_header"),
        (b"P6\n60 forty\n255\n", "broken_header"),
        (encoded(PIXELS, "PPM")[:-1], "truncated"),
        (b"P2\n9999 9999\n255\n" + b"1 " * (1 << 20), "truncated"),
        (b"\0\0\1\0\0\0", "broken_header"),
        (b"qoif" + bytes(3), "truncated"),
    ],
)
def test_broken_files_have_the_right_reason(data, expected):
    """Rejects would be counted under the wrong reason, or raise."""
    assert reason(data) == expected


def png_header(height, width):
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IEND", b"")


def test_header_of_a_bomb_is_read_without_decoding():
    """An image of a few bytes would take gigabytes."""
    assert read_image_header(png_header(40000, 40000)).height == 40000
    assert reason(png_header(MAX_SIDE + 1, 1)) == "too_large"
    assert reason(png_header(0, 5)) == "broken_header"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns about broken files
def test_damaged_files_raise_only_image_errors(format_):
    """A broken file would end a reader."""
    rng = random.Random(format_)
    whole = encoded(made_pixels(2, 24, 24), format_)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        try:
            image = read_image_header(data)
            if image.height * image.width < 1_000_000:
                decode(image)
        except ImageError:
            continue
